"""The exceptions. Every error of the SDK is an `AppServerError`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .generated.models import ErrorNotification, Turn
    from .results import TurnResult


CLOSED = "the client was closed; make a new one, or use it inside of its `with` block"


class AppServerError(Exception):
    """Base of every error raised by the SDK."""


StartErrorKind = Literal[
    "binary_not_found",
    "interpreter_not_found",
    "not_executable",
    "not_a_program",
    "working_directory",
    "home",
    "arguments_too_long",
    "out_of_memory",
    "too_many_processes",
    "too_many_files",
    "binary_busy",
    "other",
]


class StartError(AppServerError):
    """A process could not be started: the message gives the cause and the remedy.

    `kind` is the reason: `binary_not_found`, `interpreter_not_found` (of a script, or the loader of a program),
    `not_executable`, `not_a_program` (also: for another processor or system), `working_directory` (missing, no
    directory, or not to be entered), `home` (the CODEX_HOME), `arguments_too_long`, `out_of_memory`,
    `too_many_processes` (or threads), `too_many_files`, `binary_busy` (being written), or `other`. None, from a pool:
    its app-server was started, and ended.
    """

    def __init__(self, message: str, kind: StartErrorKind | None = "other") -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.kind)


class BinaryNotFoundError(StartError, FileNotFoundError):
    """The codex binary is not at the configured path, or no runtime package is installed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "binary_not_found")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self),)


class HomeError(StartError, OSError):
    """The CODEX_HOME cannot be used: it is no directory, cannot be made, or cannot be written. Nothing was started."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "home")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self),)


class InvalidInputError(AppServerError, ValueError):
    """An argument that the app-server would refuse, never answer, or silently do without; nothing was started."""


class TransportClosedError(AppServerError):
    """The app-server, or the pool, is gone: this and every later call fails the same way.

    `stderr_lines` holds the last lines the process wrote to stderr, oldest first, as they came; the message ends with
    the one that names the cause.
    """

    def __init__(self, message: str, stderr_lines: Sequence[str] = ()) -> None:
        self.stderr_lines: tuple[str, ...] = tuple(stderr_lines)
        reason = ""
        if self.stderr_lines:
            from ._runtime.stderr import cause

            reason = cause(self.stderr_lines)
        super().__init__(f"{message}\n  stderr: {reason}" if reason and reason not in message else message)

    def __reduce__(self) -> tuple[Any, ...]:
        # The message names the cause already.
        return type(self), (str(self), self.stderr_lines)


class WrongProcessError(AppServerError, RuntimeError):
    """An object was used in a process forked from the one that made it, where it owns nothing.

    `made_in` and `used_in` are the ids of the two processes.
    """

    def __init__(self, called: str, made_in: int, used_in: int) -> None:
        pool = "; to use the same pool, connect to its endpoint" if called == "pool" else ""
        super().__init__(
            f"this {called} was made in process {made_in} and is used in process {used_in}, which was forked from it; "
            f'make a new one after the fork, or start processes with the "spawn" method of multiprocessing{pool}'
        )
        self.called = called
        self.made_in = made_in
        self.used_in = used_in

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.called, self.made_in, self.used_in)


class WrongEventLoopError(AppServerError, RuntimeError):
    """An async object was used from another event loop than the one it belongs to, or where no asyncio loop runs."""


class ReentrantCallError(AppServerError, RuntimeError):
    """A signal handler or a finalizer asked for something in the middle of a call of the same client.

    The answer could not come before the handler has returned. `interrupt` and `close` may be called there.
    """

    def __init__(self) -> None:
        super().__init__(
            "a signal handler or finalizer has interrupted a call of this client, so that no answer could come before "
            "it returns; only interrupt and close there, or set a flag and call the client outside of the handler"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class RequestTimeoutError(AppServerError, TimeoutError):
    """No answer to a request, or no end of a turn, within its deadline.

    `last_error` is the last `error` notification of that turn, if there was one: while its provider cannot be reached,
    a turn sends one every few seconds, with `will_retry`, and does not fail.
    """

    def __init__(self, message: str, last_error: ErrorNotification | None = None) -> None:
        super().__init__(message)
        self.last_error = last_error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.last_error)


class LineTooLongError(AppServerError):
    """The app-server wrote a line beyond the size cap; the turn it belongs to cannot be followed further."""


class TurnEndedError(AppServerError):
    """The turn asked for has already ended, and its notifications are no longer kept."""


class UnknownTurnError(AppServerError):
    """The turn asked for was never seen by this client, or long ago: nothing would ever come. `turn_id` names it."""

    def __init__(self, turn_id: str) -> None:
        super().__init__(
            f"turn {turn_id} is not known to this client: it does not run on this app-server, or ended long ago; "
            "check the id, and read what is stored of its thread with thread.read(include_turns=True)"
        )
        self.turn_id = turn_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.turn_id,)


class ThreadBusyError(AppServerError):
    """The thread runs a turn already; `turn_id` names it (None while its start is not answered yet)."""

    def __init__(self, thread_id: str, turn_id: str | None) -> None:
        super().__init__(
            f"thread {thread_id} runs turn {turn_id or '(being started)'} already; "
            'wait for its end, or pass on_busy="queue" or on_busy="steer"'
        )
        self.thread_id = thread_id
        self.turn_id = turn_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.thread_id, self.turn_id)


class ThreadListError(AppServerError):
    """The list of threads cannot be read to its end without skipping some.

    More threads than a page holds have the same `sort_key` time, and the runtime's `cursor` names nothing else. `seen`
    is how many threads were read before.
    """

    def __init__(self, sort_key: str, cursor: str, seen: int) -> None:
        super().__init__(
            f"the list of threads cannot go on after {seen}: more threads than a page holds have the same {sort_key}, "
            f"{cursor}, and the rest of them would be skipped; narrow the list, e.g. by cwd or source_kinds, or use "
            "use_state_db_only=True for what the app-server's database knows"
        )
        self.sort_key = sort_key
        self.cursor = cursor
        self.seen = seen

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sort_key, self.cursor, self.seen)


class OutputTypeError(AppServerError, ValueError):
    """The turn completed, but its final response is not of the type that was asked for. `result` has it."""

    def __init__(self, message: str, result: TurnResult) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.result)


class TurnFailedError(AppServerError, RuntimeError):
    """A turn that ended with status `failed`.

    `kind` is `failed`, or, from a pool, `lost` (its worker died), `stalled` (ended at the pool's idle or wall limit) or
    `overflow` (this client did not read it; it goes on). `safe_to_retry` is true only where it is known that the turn
    never ran. `codex_error_info` is the runtime's own typed reason, if it gave one. `last_error` is the last `error`
    notification of the turn: of a stalled one it may say why.
    """

    def __init__(
        self,
        message: str,
        *,
        turn: Turn | None = None,
        kind: str = "failed",
        safe_to_retry: bool = False,
        last_error: ErrorNotification | None = None,
    ):
        super().__init__(message)
        self.last_error = last_error
        self.turn = turn
        self.kind = kind
        self.safe_to_retry = safe_to_retry

    @property
    def codex_error_info(self) -> Any:
        error = self.turn.error if self.turn is not None else None
        return error.codex_error_info if error is not None else None


class JsonRpcError(AppServerError):
    """A request answered with an error: `code`, `message` and `data` as they came; its text may add what to do."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        remedy = _remedy_of(message)
        super().__init__(f"{message} (JSON-RPC error {code}){f'; {remedy}' if remedy else ''}")
        self.code = code
        self.message = message
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are rebuilt from `args`, which is the composed text here.
        return type(self), (self.code, self.message, self.data)


class AppServerRpcError(JsonRpcError):
    """Base of the JSON-RPC errors that have a meaning of their own here."""


class ParseError(AppServerRpcError):
    """-32700: the app-server could not parse what was sent."""


class InvalidRequestError(AppServerRpcError):
    """-32600: the request makes no sense now, e.g. an unknown thread."""


class MethodNotFoundError(AppServerRpcError):
    """-32601: no such method, or not available over this transport."""


class InvalidParamsError(AppServerRpcError):
    """-32602: the parameters do not fit the method."""


class InternalRpcError(AppServerRpcError):
    """-32603: the app-server failed while it worked on the request."""


class ServerBusyError(AppServerRpcError):
    """-32001: overloaded; the same request may succeed a little later (see `retry_on_overload`)."""


class RetryLimitExceededError(ServerBusyError):
    """The server gave up its own retries of an overloaded operation."""


class ThreadLostError(AppServerRpcError):
    """-32010, from a pool: the worker that held the thread died, and the thread cannot be restored elsewhere."""


class TurnLostError(AppServerRpcError):
    """-32011, from a pool: the worker died before it answered; `safe_to_retry` is True if the request never ran."""

    @property
    def safe_to_retry(self) -> bool:
        return isinstance(self.data, dict) and self.data.get("safeToRetry") is True


class KeyLimitError(AppServerRpcError):
    """-32013, from a pool: a limit of tokens or spend of the client's key is reached, or cannot be checked.

    `what` names the limit: `tokens_per_day`, `tokens`, `spend_per_day`, `spend`; `usage` or `prices` where what was
    used, or its price, is not known. `limit` and `used` are tokens, or an amount of `data["currency"]`.
    """

    @property
    def what(self) -> str:
        return str(self._field("what") or "")

    @property
    def limit(self) -> float | None:
        return self._number("limit")

    @property
    def used(self) -> float | None:
        return self._number("used")

    @property
    def free_at(self) -> float | None:
        """The Unix second from which the limit allows more; None if it does not by itself."""
        return self._number("freeAt")

    def _field(self, name: str) -> Any:
        return self.data.get(name) if isinstance(self.data, dict) else None

    def _number(self, name: str) -> float | None:
        value = self._field(name)
        return value if isinstance(value, int | float) else None


# Of JSON-RPC; CANCELLED of the Language Server Protocol; then those of codex, and of a pool.
PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
CANCELLED = -32800
SERVER_OVERLOADED = -32001
THREAD_LOST = -32010
TURN_LOST = -32011
KEY_LIMIT = -32013

# Codex's messages for the id of an unknown thread, or one that is no id.
_NO_THREAD = (
    "invalid session id",
    "invalid thread id",
    "no rollout found for thread id",
    "no archived rollout found for thread id",
    "thread not found",
    "thread not loaded",
)


def _remedy_of(message: str) -> str:
    if message.lower().startswith(_NO_THREAD):
        return "check the id: thread_list() has those of the threads in this CODEX_HOME, and thread_resume() loads one"
    return ""


def is_retryable_error(error: BaseException) -> bool:
    """True if the same call may succeed a little later: overload, and nothing else."""
    if isinstance(error, RetryLimitExceededError):
        return False
    return isinstance(error, ServerBusyError)
