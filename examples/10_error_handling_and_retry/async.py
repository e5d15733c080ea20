"""Errors that can occur, and what to do then. For asyncio."""

import asyncio
import uuid

from codex_app_server import (
    AsyncCodex,
    AsyncThread,
    InvalidInputError,
    JsonRpcError,
    RequestTimeoutError,
    TurnFailedError,
    TurnResult,
    aretry_on_overload,
)

ATTEMPTS = 3


async def ask(thread: AsyncThread, question: str) -> TurnResult:
    """Ask until there is an answer. A question may be asked twice; of a turn that acts, first look at what it did."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await aretry_on_overload(lambda: thread.run(question, timeout=120))
        except TurnFailedError as error:
            print(f"attempt {attempt} failed: {error} ({error.codex_error_info})")
            if attempt == ATTEMPTS:
                raise
        except RequestTimeoutError:
            print(f"attempt {attempt} took too long and was interrupted")
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


async def main() -> None:
    async with AsyncCodex() as codex:
        print((await ask(await codex.thread_start(), "Why is the sky blue?")).final_response)

        try:
            await codex.thread_resume(str(uuid.uuid4()))
        except JsonRpcError as error:
            print("refused by the app-server:", type(error).__name__, error.code, error.message)

        try:
            await (await codex.thread_start()).run([])
        except InvalidInputError as error:
            print("refused before it was sent:", error)


asyncio.run(main())
