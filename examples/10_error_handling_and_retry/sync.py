"""Errors that can occur, and what to do then."""

import uuid

from codex_app_server import (
    Codex,
    InvalidInputError,
    JsonRpcError,
    RequestTimeoutError,
    Thread,
    TurnFailedError,
    TurnResult,
    retry_on_overload,
)

ATTEMPTS = 3


def ask(thread: Thread, question: str) -> TurnResult:
    """Ask until there is an answer. A question may be asked twice; of a turn that acts, first look at what it did."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            # An app-server that is overloaded refuses the request: that is tried again with a growing wait.
            return retry_on_overload(lambda: thread.run(question, timeout=120))
        except TurnFailedError as error:
            print(f"attempt {attempt} failed: {error} ({error.codex_error_info})")
            if attempt == ATTEMPTS:
                raise
        except RequestTimeoutError:
            print(f"attempt {attempt} took too long and was interrupted")
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


with Codex() as codex:
    print(ask(codex.thread_start(), "Why is the sky blue?").final_response)

    try:
        codex.thread_resume(str(uuid.uuid4()))
    except JsonRpcError as error:
        print("refused by the app-server:", type(error).__name__, error.code, error.message)

    try:
        codex.thread_start().run([])
    except InvalidInputError as error:
        print("refused before it was sent:", error)
