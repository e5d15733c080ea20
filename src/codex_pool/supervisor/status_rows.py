"""StatusRows: what the broker shows of the supervisor's side, each row sent when it has changed.

The records are those of `broker_child`. A new broker is sent all of them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..runtime.problems import Problems
from .parts import Parts


class StatusRows:
    """See the module's docstring. Each row is made by the part that it is about."""

    def __init__(self, parts: Parts, problems: Problems) -> None:
        self._parts = parts
        self._broker = parts.broker
        self._problems = problems
        # As the broker knows them, by the key of their record.
        self._sent: dict[str, dict[str, Any]] = {}

    def send_all(self) -> None:
        """Send a broker that has just been started everything."""
        self._sent.clear()
        self.send_slots()
        self.send_mode()
        self.send_configuration()
        self._parts.upgrades.show(self._broker, again=True)
        self.send_codex_pool()
        self.send_entrances()
        self.send_problems()

    def send_slots(self) -> None:
        """Send the slots with their workers."""
        core = self._parts.core
        self._broker.send({"slots": core.states(), "workers": core.wanted, "replaced": core.replaced})

    def send_mode(self) -> None:
        """Send what the operator has asked for: pausing, draining, stopping."""
        self._broker.send({"mode": msgspec.to_builtins(self._parts.steering.mode)})

    def send_configuration(self) -> None:
        """Send the state of the configuration; a pool without a file has none."""
        if row := self._parts.configuration.row:
            self._broker.send({"configuration": row})

    def send_codex_pool(self) -> None:
        """Send the version that runs, with its upgrade, if that has changed."""
        self._send("codex_pool", self._parts.self_upgrade.row)

    def send_entrances(self) -> None:
        """Send the states of the gateway and the tracer that have changed; a pool without one has none."""
        if self._parts.gateway.is_wanted:
            self._send("gateway", self._parts.gateway.row())
        if (row := self._parts.tracer.row()) is not None:
            self._send("tracer", row)

    def send_problems(self) -> None:
        """Send whether the endpoint is held, and what cannot be written."""
        self._broker.send_problems(self._parts.bookkeeping.holds, self._problems.rows())

    def _send(self, key: str, row: dict[str, Any]) -> None:
        if row != self._sent.get(key):
            self._sent[key] = row
            self._broker.send({key: row})
