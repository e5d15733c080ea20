"""RestartedChildren: token holder, ingress, gateway and tracer, started when due, and replaced when they end."""

from __future__ import annotations

import functools
import logging
import selectors
import time
from collections.abc import Callable

from codex_app_server.errors import StartError

from .effects import GiveUp
from .parts import Parts
from .restarted_child import Entrance, RestartedChild
from .status_rows import StatusRows

_log = logging.getLogger(__name__)


class RestartedChildren:
    """See the module's docstring.

    `on_ready` is called when one that clients come in by is ready, `give_up` when one cannot listen as it was asked to.
    """

    def __init__(
        self,
        parts: Parts,
        selector: selectors.BaseSelector,
        rows: StatusRows,
        *,
        on_ready: Callable[[], None],
        give_up: Callable[[GiveUp], None],
    ) -> None:
        self._parts = parts
        self._account = parts.account
        self._all: tuple[RestartedChild, ...] = (parts.account, parts.ingress, parts.gateway, parts.tracer)
        self._selector = selector
        self._rows = rows
        self._on_ready = on_ready
        self._give_up = give_up

    def begin(self, now: float) -> None:
        """Start the token holder, which comes first, if there is a login for it."""
        self.wake_account_when_asked()
        self._account.look(now)
        if self._account.due <= now:
            self._start(self._account)

    def wake_account_when_asked(self) -> None:
        """Have a token holder that sleeps be started by the first request to it."""
        if self._account.is_asleep:
            self._selector.register(self._account, selectors.EVENT_READ, lambda: self._account.wake(time.monotonic()))

    def go_on(self) -> None:
        """Take the reports of those that the program before has started."""
        for each in self._all:
            if each.child is not None:
                each.child.watch(self._selector, functools.partial(self._on_reports, each))

    def deadlines(self) -> list[float]:
        """Return when those that do not run are to be started."""
        return [each.due for each in self._all if each.child is None]

    def start_due(self, now: float) -> None:
        """Start those whose time has come."""
        for each in self._all:
            if each.child is None and now >= each.due:
                self._start(each)
                self._rows.send_entrances()

    def sample(self, now: float) -> None:
        """Look for a login that has appeared, and ask all for a sign of life."""
        self._account.look(now)
        for each in self._all:
            if each.ping():
                _log.warning(f"killing the {each.name}: it does not answer")

    def _start(self, process: RestartedChild) -> None:
        if process is self._account and self._account in self._selector.get_map():
            self._selector.unregister(self._account)
        now = time.monotonic()
        try:
            child = process.start(now)
        except StartError as error:
            _log.warning(f"the {process.name} cannot be started: {error}; again in {process.died(now):g} s")
            return
        self._parts.children.watch(child, functools.partial(self._on_reports, process))

    def _on_reports(self, process: RestartedChild) -> None:
        child = process.child
        assert child is not None
        records, ended = child.reports()
        for record in records:
            process.take(record)
            if isinstance(process, Entrance) and record.get("event") == "ready":
                self._on_ready()
        if isinstance(process, Entrance) and process.failure:
            self._give_up(GiveUp(process.failure, ()))
        if ended:
            how = self._parts.children.ended(child)
            delay_s = process.died(time.monotonic())
            _log.warning(f"the {process.name} has ended: {how}; it is replaced in {delay_s:g} s")
        self._rows.send_entrances()
