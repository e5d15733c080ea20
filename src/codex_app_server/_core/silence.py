"""SilentTurn: asks the app-server about a turn that a reader waits for and that sends nothing.

A turn may be silent for as long as its tools take. But the end of one may also have come in a form that this SDK does
not know, from another version of codex: then nothing would ever end the wait. So after SILENT_S seconds its thread is
read, and again later; a turn whose thread does not run anything both times, with nothing in between, has ended.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from .._protocol import runtime_version
from ..errors import AppServerError, JsonRpcError, MethodNotFoundError, TurnFailedError

if TYPE_CHECKING:
    from .mailbox import Mailbox

SILENT_S = 60.0
READ = "thread/read"
_ACTIVE = "active"
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Status(msgspec.Struct):
    type: str


class _Thread(msgspec.Struct):
    status: _Status


class _Read(msgspec.Struct):
    thread: _Thread


_decode = msgspec.json.Decoder(_Read).decode


class SilentTurn:
    """The question about the turn of one mailbox; also the future of its answer.

    `send(method, params, future, thread_id)` sends a request, `thread_of(turn_id)` is the thread of a followed turn;
    `on_ended(mailbox)` is called once the mailbox is closed.
    """

    __slots__ = ("_idle_at", "_is_asked", "_mailbox", "_on_ended", "_send", "_thread_of")

    def __init__(
        self,
        mailbox: weakref.ref[Mailbox],
        *,
        send: Callable[[str, bytes, SilentTurn, str], Any],
        thread_of: Callable[[str], str | None],
        on_ended: Callable[[Mailbox], None],
    ) -> None:
        self._mailbox = mailbox
        self._send = send
        self._thread_of = thread_of
        self._on_ended = on_ended
        self._is_asked = False
        # How many bytes had come when the thread was idle last.
        self._idle_at: int | None = None

    def ask(self) -> None:
        """Ask, unless a question is not answered yet. Raises nothing."""
        mailbox = self._mailbox()
        if self._is_asked or mailbox is None or mailbox.closed or mailbox.turn_id is None:
            return
        thread_id = self._thread_of(mailbox.turn_id)
        if thread_id is None:
            return
        self._is_asked = True
        params = msgspec.json.encode({"threadId": thread_id, "includeTurns": False})
        try:
            self._send(READ, params, self, thread_id)
        except AppServerError:
            self._is_asked = False

    # The future of the answer.

    def done(self) -> bool:
        return not self._is_asked

    def set_result(self, result: Any, /) -> None:
        try:
            status = _decode(result).thread.status.type
        except _UNREADABLE:
            status = "unreadable"
        self._answered(status)

    def set_exception(self, exception: BaseException, /) -> None:
        # Which methods there are is in the answer to one that there is not.
        unknown = isinstance(exception, JsonRpcError) and f"unknown variant `{READ}`" in exception.message
        if unknown or isinstance(exception, MethodNotFoundError):
            self._answered("unknown")
        else:
            self._is_asked = False

    def _answered(self, status: str) -> None:
        self._is_asked = False
        mailbox = self._mailbox()
        if mailbox is None or status == _ACTIVE:
            self._idle_at = None
        elif self._idle_at != mailbox.received_bytes:
            self._idle_at = mailbox.received_bytes
        else:
            message = (
                f"turn {mailbox.turn_id} has ended without a turn/completed that can be read: the status of its thread "
                f"is {status}; {runtime_version.both_in_use()}"
            )
            mailbox.close(TurnFailedError(message))
            with contextlib.suppress(AppServerError):
                self._on_ended(mailbox)
