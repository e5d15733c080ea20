"""UserRecords: the broker's I/O for users of the pool: the usage store, and the audit log. Both are optional."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..auth.principal import Identity
from . import audit
from .arguments import BrokerArguments
from .audit_log import AuditLog
from .core import BrokerCore
from .effects import Audit, Effect, ReadUsage, SaveUsage
from .usage_ledger import UsageLedger
from .usage_writer import Closed, Found, Opened, Query, rates_of, usage_writer_of


class UserRecords:
    """See the module's docstring. `ledger` is for the core; `descriptor` is readable when `reports` has something."""

    def __init__(self, arguments: BrokerArguments, log: Callable[[str], None]) -> None:
        self._usage = usage_writer_of(arguments, log)
        rates = rates_of(arguments.prices, log)
        self.ledger = UsageLedger(rates, arguments.unix_offset, is_stored=self._usage is not None)
        self._audit: AuditLog | None = None
        if arguments.audit_log is not None:
            self._audit = AuditLog(arguments.audit_log, arguments.audit_log_bytes, arguments.audit_log_files)

    def attach(self, core: BrokerCore) -> None:
        """Give the core what it must know of them."""
        if self._usage is not None:
            core.state.limits.remedy = self._usage.remedy
        core.state.audit_file = self._audit.path if self._audit is not None else None

    @property
    def descriptor(self) -> int | None:
        """Return what is readable when there are reports; None without a usage store."""
        return self._usage.descriptor if self._usage is not None else None

    def reports(self, core: BrokerCore, now: float) -> list[Effect]:
        """Give the core what has become of the usage store; the effects of that."""
        effects: list[Effect] = []
        for report in self._usage.reports() if self._usage is not None else ():
            match report:
                case Opened():
                    effects += core.usage_opened(report.totals, report.today, report.workers, now)
                case Closed():
                    core.usage_closed(report.problem)
                case Found():
                    effects += core.usage_found(report.number, report.rows, report.names, report.problem, now)
        return effects

    def apply(self, effect: SaveUsage | ReadUsage | Audit) -> None:
        """Carry out an effect of the core."""
        match effect:
            case SaveUsage() if self._usage is not None:
                self._usage.save(effect.change)
            case ReadUsage() if self._usage is not None:
                self._usage.ask(Query(effect.number, effect.since, effect.principal))
            case Audit():
                self._write(effect.record)

    def keys_changed(self, before: Mapping[str, Identity], after: Mapping[str, Identity]) -> None:
        """Note what has changed on the allow-list; both by public key."""
        if self._audit is not None:
            for record in audit.of_keys(before, after):
                self._write(record)

    def refused(self, counts: Mapping[str, int]) -> None:
        """Note what another process has refused, by reason."""
        if self._audit is not None:
            for record in audit.of_refusals(counts):
                self._write(record)

    def look(self, core: BrokerCore) -> list[dict[str, Any]]:
        """Have what failed tried again, and return what cannot be written for now; once a second."""
        if self._audit is not None:
            core.state.audit_lost = self._audit.lost
        if self._usage is None:
            return []
        self._usage.look()
        return self._usage.problems.rows()

    def close(self) -> None:
        """Wait for what is to be written, for some seconds at most."""
        if self._usage is not None:
            self._usage.close()
        if self._audit is not None:
            self._audit.close()

    def _write(self, record: dict[str, Any]) -> None:
        if self._audit is not None:
            self._audit.write(record)
