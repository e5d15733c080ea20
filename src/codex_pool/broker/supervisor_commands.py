"""Commands of the supervisor, as of `supervisor.broker_child`, given to the core."""

from __future__ import annotations

from typing import Any

import msgspec

from ..protocol import tally
from ..runtime import log
from .arguments import BrokerLimits
from .core import BrokerCore
from .effects import Effect
from .mode import Mode
from .reports import report


def carry_out(command: dict[str, Any], core: BrokerCore, now: float) -> list[Effect]:
    """Carry out a command; return what follows. One that is not known is ignored."""
    if "lost" in command:
        counted = tally.converted(command.get("tally"))
        return core.worker_lost(command["lost"], command.get("reason", "unknown"), now, counted)
    if "drain" in command:
        return core.drain(command["drain"], now)
    if "slots" in command:
        effects = core.slots(command["slots"], command["workers"])
        core.replaced(command["replaced"])
        return effects
    if "mode" in command:
        return core.set_mode(msgspec.convert(command["mode"], Mode), now)
    if "limits" in command:
        return core.set_limits(msgspec.convert(command["limits"], BrokerLimits), now)
    if "command_result" in command:
        done = command["command_result"]
        return core.command_done(done["id"], done.get("result"), done.get("error"), now)
    if "ping" in command:
        core.state.lost_lines = command.get("lost_lines", 0) + log.lost()
        registered, drained = core.registered, core.drained
        report({"event": "pong", "registered": registered, "drained": drained, "lost_lines": log.lost()})
    else:
        _show(command, core)
    return []


def _show(command: dict[str, Any], core: BrokerCore) -> None:
    """Take in a row that status shows."""
    if "gateway" in command:
        core.gateway(command["gateway"])
    elif "tracer" in command:
        core.tracer(command["tracer"])
    elif "configuration" in command:
        core.configuration(command["configuration"])
    elif "upgrade" in command:
        core.upgrade(command["upgrade"])
    elif "codex_pool" in command:
        core.codex_pool(command["codex_pool"])
