"""Commands of the operator, carried out: steering, reloading the configuration, upgrades of codex and of codex-pool.

They come by way of the broker (`commands`); the process that has started the pool gives `reload` and `drain_to_stop`
over stdin.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from . import reload
from .arguments import SupervisorArguments
from .commands import CommandError, Commands, Params, Reply, Result, Send
from .effects import Effect
from .parts import Parts
from .status_rows import StatusRows

# Those of `steering`.
STEERING = ("pause", "resume", "drain", "scale", "recycle", "stop")

_log = logging.getLogger(__name__)


class OperatorCommands:
    """See the module's docstring. `apply` carries out effects; `environ` gives the variables of app-servers."""

    def __init__(
        self,
        arguments: SupervisorArguments,
        parts: Parts,
        rows: StatusRows,
        *,
        apply: Callable[[list[Effect]], None],
        environ: Callable[[], dict[str, str]],
    ) -> None:
        self._arguments = arguments
        self._parts = parts
        self._steering = parts.steering
        self._configuration = parts.configuration
        self._rows = rows
        self._apply = apply
        self._environ = environ
        self._commands = Commands()
        for name in STEERING:
            self._commands.add(name, functools.partial(self._steer, name))
        self._commands.add("reload", self._reload)
        self._commands.add("upgrade", self._upgrade_codex)
        self._commands.add("upgradeSelf", self._upgrade_self)

    def take(self, number: int, name: str, params: Params, send: Send) -> None:
        """Carry out a command that the broker has passed on; `send` takes the answer."""
        self._commands.take(number, name, params, send)

    def drain_to_stop(self) -> None:
        """Begin no more turns, because the pool is about to end."""
        self._steering.drain_to_stop()
        self._rows.send_mode()

    def reload(self) -> None:
        """Read the configuration again; a failure is in the log and in status."""
        with contextlib.suppress(CommandError):
            self._reload({}, None)

    def _steer(self, name: str, params: Params, _: Reply | None) -> Result:
        """Carry out a command of `steering`. Raises CommandError."""
        try:
            result, effects = self._steering.command(name, params, time.monotonic())
        except CommandError as error:
            _log.info(f"{name} is refused: {error}")
            raise
        _log.info(f"{name}: {result['message']}")
        # First, so that no turn begins which the command has wait.
        self._rows.send_mode()
        self._apply(effects)
        return result

    def _reload(self, _: Params, reply: Reply | None) -> Result:
        """Read the configuration again, and take over what a pool that runs can. Raises CommandError."""
        try:
            changes = self._configuration.read()
            if workers := changes.live.get("workers"):
                self._steer("scale", {"workers": workers[1]}, reply)
        except (reload.ReloadError, CommandError) as error:
            message = f"the configuration was not reloaded, and the one before stays in force: {error}"
            _log.warning(message)
            self._configuration.failed(str(error))
            self._rows.send_configuration()
            raise CommandError(message) from None
        options = self._arguments.options = reload.with_changes(self._arguments.options, changes)
        now = time.monotonic()
        self._configuration.apply(changes, now)
        self._arguments.source = self._configuration.source
        self._parts.broker.send({"limits": msgspec.to_builtins(reload.broker_limits(options))})
        limits: dict[str, Any] = {"limits": msgspec.to_builtins(reload.turn_limits(options))}
        for child in self._parts.workers.children.values():
            child.send(limits)
        self._apply(self._parts.core.set_options(options, now))
        self._rows.send_configuration()
        result = reload.result_of(changes)
        _log.info(f"the configuration was read again: {result['message']}")
        return result

    def _upgrade_codex(self, params: Params, _: Reply | None) -> Result:
        """Begin an upgrade of codex. Raises CommandError."""
        if self._parts.self_upgrade.is_under_way:
            raise CommandError("an upgrade of codex-pool is under way; repeat this once it is over")
        result = self._parts.upgrades.take(params, self._environ(), time.monotonic())
        self._parts.upgrades.show(self._parts.broker)
        return result

    def _upgrade_self(self, _: Params, __: Reply | None) -> Result:
        """Begin an upgrade of codex-pool. Raises CommandError."""
        if self._parts.upgrades.is_under_way:
            raise CommandError("an upgrade of codex is under way; repeat this once it is over")
        if self._steering.mode.stopping:
            raise CommandError("the pool is stopping")
        result = self._parts.self_upgrade.ask()
        # Before the answer: a client that asks for the status then must not be shown the upgrade before.
        self._rows.send_codex_pool()
        return result
