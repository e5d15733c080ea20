"""UsageLedger: what the turns of each principal have used, for its limits and for the usage store. Pure.

A turn counts at its end, as in the tally of its worker. What it has used before is known from its worker's reports of
activity, and counts against limits meanwhile (`key_limits`); of a turn that is lost with its worker that counts.

The store has, with the rows, the tally of each worker that they are complete up to (`counted`). A worker that registers
brings its tally: what that has beyond, of turns that ended while there was no broker or that a killed broker had not
written, is counted then, as of a model that is not known.

    closed    the store cannot be relied upon: nothing is counted, as the tallies have it; what a principal has used is
              not known. Once it is open, what the tallies have beyond it is counted
    open      counted here at once, and given to the store
"""

from __future__ import annotations

from ..auth.usage import DAY_S, Rates, UsageKey, UsageSums, Used
from ..auth.usage_store import Change, Counted, Rows
from ..protocol.wire_types import Tokens, TurnTokens


class UsageLedger:
    """See the module's docstring. `is_stored`: there is a store, which is closed until `opened`."""

    def __init__(self, rates: Rates, unix_offset: float = 0.0, *, is_stored: bool = False) -> None:
        self.rates = rates
        self._unix_offset = unix_offset
        self.is_stored = is_stored
        self.is_open = not is_stored
        # There is something that the store does not have.
        self.has_news = False
        # Why it is closed.
        self.problem = "it has not been read yet"
        self._all: dict[str, Used] = {}
        self._today: dict[str, Used] = {}
        self._day = 0
        # The models that each principal has used.
        self._models: dict[str, set[str]] = {}
        # The tallies of workers, as of now; of those that are gone until the store is open.
        self._tallies: dict[str, Counted] = {}
        self._gone: list[str] = []
        # The tallies that what is counted here is complete up to.
        self._counted: dict[str, Counted] = {}
        self._rows: Rows = {}
        self._changed: set[str] = set()

    # The store.

    def opened(self, totals: Rows, today: Rows, counted: dict[str, Counted], now: float) -> None:
        """Take over the store's rows, and count what workers have beyond them."""
        self.is_open, self.problem, self._day = True, "", self.day(now)
        self._all, self._today, self._rows = {}, {}, {}
        for table, rows in ((self._all, totals), (self._today, today)):
            for key, sums in rows.items():
                if table is self._all or key.day == self._day:
                    table[key.principal] = table.get(key.principal, Used()).plus(self.rates.used(key, sums))
                    self._models.setdefault(key.principal, set()).add(key.model)
        self._counted, self._changed = dict(counted), set()
        for worker in self._tallies:
            self._catch_up(worker, now)
        for worker in self._gone:
            del self._tallies[worker]
            self._counted.pop(worker, None)

    def closed(self, problem: str) -> None:
        """Note that the store cannot be relied upon, and why."""
        if self.is_stored:
            self.is_open, self.problem = False, problem

    def take_changed(self, names: dict[str, str] | None = None) -> Change:
        """Take what the store does not have yet; only while it is open. `names` of principals, by their ids."""
        workers = {name: self._counted[name] for name in self._changed if name in self._counted}
        change = Change(self._rows, names or {}, workers, self._gone)
        self._rows, self._changed, self._gone, self.has_news = {}, set(), [], False
        return change

    @property
    def unsaved_principals(self) -> set[str]:
        """The principals of rows that the store does not have yet."""
        return {key.principal for key in self._rows}

    # Workers and turns.

    def registered(self, worker: str, tally: Counted, now: float) -> None:
        """Take over the turns and tokens that a worker has counted, by principal."""
        self._tallies[worker] = dict(tally)
        if self.is_open:
            self._catch_up(worker, now)

    def ended(self, worker: str, principal: str, model: str, tokens: Tokens, tally: Counted, now: float) -> None:
        """Count a turn that has ended; `tally`: all that its worker has counted then."""
        self._tallies[worker] = dict(tally)
        if self.is_open:
            self._add(principal, model, 1, tokens, now)
            self._note(worker)

    def turn_lost(self, principal: str, model: str, tokens: Tokens, now: float) -> None:
        """Count a turn that was lost with its worker, which is in no tally."""
        if self.is_open:
            self._add(principal, model, 1, tokens, now)

    def lost(self, worker: str) -> None:
        """Note that a worker is dead: its tally grows no more."""
        if worker not in self._tallies and worker not in self._counted:
            return
        self._gone.append(worker)
        self.has_news = self.is_stored
        if self.is_open:
            self._tallies.pop(worker, None)
            self._counted.pop(worker, None)

    # Limits.

    def used(self, principal: str, running: Used, now: float) -> tuple[Used, Used]:
        """Usage of a principal on this day, and in all; `running`: by turns that run."""
        self._turn_day(now)
        found = (table.get(principal, Used()).plus(running) for table in (self._today, self._all))
        return next(found), next(found)

    def most(self, principal: str, tokens: Tokens, model: str) -> float:
        """The highest cost that tokens of this principal can have."""
        return self.rates.most(tokens, model, self._models.get(principal, ()))

    def day(self, now: float) -> int:
        """The day of UTC, in days since 1970."""
        return int((now + self._unix_offset) // DAY_S)

    def next_day(self, now: float) -> int:
        """The Unix second at which the next day begins."""
        return (self.day(now) + 1) * DAY_S

    def _turn_day(self, now: float) -> None:
        if self.day(now) != self._day:
            self._day, self._today = self.day(now), {}

    def _catch_up(self, worker: str, now: float) -> None:
        """Count what the worker's tally has beyond what is counted."""
        before = self._counted.get(worker, {})
        more = {who: sums - before.get(who, TurnTokens()) for who, sums in self._tallies[worker].items()}
        more = {who: sums for who, sums in more.items() if sums != TurnTokens()}
        for principal, sums in more.items():
            tokens = Tokens(sums.input, sums.cached, sums.output, sums.reasoning)
            # A worker of an earlier version counts no turns by principal.
            self._add(principal, "", max(0, sums.turns), tokens, now)
        if more:
            self._note(worker)

    def _add(self, principal: str, model: str, turns: int, tokens: Tokens, now: float) -> None:
        self._turn_day(now)
        models = self._models.setdefault(principal, set())
        models.add(model)
        sums = self.rates.sums(turns, tokens, model, models)
        key = UsageKey(self._day, principal, model, self.rates.currency)
        if self.is_stored:
            self.has_news = True
            self._rows[key] = self._rows.get(key, UsageSums()) + sums
        used = self.rates.used(key, sums)
        for table in (self._today, self._all):
            table[principal] = table.get(principal, Used()).plus(used)

    def _note(self, worker: str) -> None:
        self._counted[worker] = self._tallies[worker]
        self.has_news = self.is_stored
        self._changed.add(worker)
