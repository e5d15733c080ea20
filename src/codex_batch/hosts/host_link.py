"""HostLink: one host as the run sees it: its calls, the files that it has, and what it is still to be told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from codex_app_server._runtime import threads

from . import messages
from .bundle import Bundle
from .engine import Engine, HostError, HostGoneError
from .host_state import HostState
from .leases import LEASE_S
from .messages import Collect, Renewed, Report

COLLECT_S = 1.0
CALL_LIMIT_S = LEASE_S
# Files are sent in parts of about so much.
PART_BYTES = 8 * 2**20


class HostLink:
    """See the module's docstring."""

    def __init__(self, engine: Engine, bundle: Bundle, name: str) -> None:
        self._engine = engine
        self._bundle = bundle
        self.state = HostState(name)
        self.trees: set[str] = set()
        """Digests of the trees that it has."""
        self.acknowledged: list[str] = []
        """Results on the run's disk, of which it has not been told."""
        self.halted: dict[str, str] = {}
        self.confirmed: set[str] = set()
        """Leases that it has answered for, or failed to."""
        self._renewals: dict[str, asyncio.Task[None]] = {}

    async def call(self, method: str, *arguments: Any, limit_s: float = CALL_LIMIT_S) -> Any:
        """Call a method of the host. Raises HostGoneError, also after `limit_s` seconds, and HostError if it does."""
        self.state.sent_bytes += sum(len(each) for each in arguments if isinstance(each, bytes))
        try:
            answer = await asyncio.wait_for(self._engine.call(self.state.name, method, *arguments), limit_s)
        except asyncio.TimeoutError:
            raise HostGoneError(f"it has not answered for {limit_s:.0f} s") from None
        self.state.received_bytes += len(answer) if isinstance(answer, bytes) else 0
        return answer

    async def send_trees(self, trees: tuple[str, ...]) -> None:
        """Send the trees that it lacks. Raises as `call`, and OSError for a file that cannot be read any more."""
        for tree in trees:
            if tree in self.trees:
                continue
            manifest = self._bundle.manifest(tree)
            missing = await self.call("missing", manifest)
            part: dict[str, bytes] = {}
            for digest in missing:
                part[digest] = await threads.in_thread(self._bundle.blob, digest)
                if sum(map(len, part.values())) >= PART_BYTES:
                    await self.call("put", part)
                    part = {}
            if part:
                await self.call("put", part)
            await self.call("lay", manifest)
            self.trees.add(tree)

    async def collect(self) -> Report:
        """Tell it what is acknowledged and halted; return its report. Raises as `call`."""
        request = Collect(tuple(self.acknowledged), dict(self.halted), COLLECT_S)
        report = messages.report(await self.call("collect", messages.encode(request), limit_s=COLLECT_S + CALL_LIMIT_S))
        del self.acknowledged[: len(request.acknowledged)]
        for key in request.halted:
            self.halted.pop(key, None)
        return report

    @property
    def renewals(self) -> list[asyncio.Task[None]]:
        """Renewals that are under way."""
        return list(self._renewals.values())

    def renew(self, tokens: tuple[str, ...], renew: Callable[[str], Renewed]) -> None:
        """Have tokens renewed that it has asked for, and tell it; one that is under way is not begun again."""
        for token in tokens:
            if token not in self._renewals:
                task = self._renewals[token] = asyncio.ensure_future(self._renew(token, renew))
                task.add_done_callback(lambda _, token=token: self._renewals.pop(token, None))  # type: ignore[misc]

    async def _renew(self, token: str, renew: Callable[[str], Renewed]) -> None:
        renewed = await threads.in_thread(renew, token)
        # A host that has not got it asks again.
        with contextlib.suppress(HostGoneError, HostError):
            await self.call("renewed", messages.encode(renewed))
