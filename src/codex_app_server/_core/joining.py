"""Joining: the future of a request to join a turn that another client of the pool runs. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .mailbox import Mailbox


class Joining:
    """See the module's docstring. Only `mailbox` waits for it; `on_failure` is called if the turn cannot be joined."""

    def __init__(
        self, turn_id: str, mailbox: Mailbox, on_failure: Callable[[str, Mailbox, BaseException], None]
    ) -> None:
        self._turn_id = turn_id
        self._mailbox = mailbox
        self._on_failure = on_failure

    def done(self) -> bool:
        return False

    def set_result(self, result: Any, /) -> None:
        """Do nothing: the turn's notifications are on their way."""

    def set_exception(self, exception: BaseException, /) -> None:
        self._on_failure(self._turn_id, self._mailbox, exception)
