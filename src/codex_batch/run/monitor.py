"""RunMonitor: the work beside the samples of a run: requests from outside, the display, logs, the state of slots."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from codex_app_server import AppServerError

from ..configuration.settings import Settings
from ..display import live, snapshot_file
from ..manage import control
from ..redaction import scrub
from ..redaction.known_secrets import known_secrets
from ..rules.progress import Progress, rate_limit_of
from ..store import RunDirectory, layout
from . import home
from .live_transcripts import LiveTranscripts
from .output import RunOutput
from .run_pools import RunClients, Slots, joined_slots

STATUS_EVERY_S = 0.25


class RunMonitor:
    """Calls `on_request` with each request that is made of the run through its directory."""

    def __init__(
        self,
        settings: Settings,
        directory: RunDirectory,
        progress: Progress,
        output: RunOutput,
        *,
        title: Callable[[], str],
        on_request: Callable[[dict[str, Any]], None],
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._redactor = directory.redactor
        self._logs = [scrub.Log(directory.file(name)) for name in (layout.LOG, layout.OUTPUT)]
        self._logins: list[int] = []
        self._progress = progress
        self._output = output
        self._title = title
        self._on_request = on_request
        self.live = LiveTranscripts(directory.path)

    async def refresh(self) -> None:
        """Take requests, draw the display and publish the progress, without end."""
        published_at = 0.0
        while True:
            for request in control.requests(self._directory.path):
                self._on_request(request)
            self._output.display.refresh()
            with contextlib.suppress(OSError):
                self.live.refresh()
            now = time.monotonic()
            if now - published_at >= snapshot_file.EVERY_S:
                published_at = now
                with contextlib.suppress(OSError):
                    snapshot_file.publish(self._directory.path, self._progress, self._title(), now, self._redactor)
                with contextlib.suppress(OSError):
                    self._redact_logs()
            await asyncio.sleep(live.REFRESH_S)

    async def watch(self, clients: RunClients) -> None:
        """Ask the pools what their slots do, without end."""
        slots: dict[str, Slots] = {}
        paces: dict[str, dict[str, Any]] = {}
        while True:
            for name, pools in clients.all().items():
                with contextlib.suppress(AppServerError):
                    status = await pools.codex.client.request("pool/status")
                    slots[name], paces[name] = status["workers"], status.get("rateLimiter") or {}
            if len(slots) == len(clients.all()):
                self._progress.slots = joined_slots(slots)
                self._progress.rate_limiter = next(filter(rate_limit_of, paces.values()), {})
            await asyncio.sleep(STATUS_EVERY_S if self._output.display.is_live else snapshot_file.EVERY_S)

    async def watch_hosts(self, shown: Callable[[], list[dict[str, Any]]]) -> None:
        """Look at the hosts of a run on several machines, without end."""
        while True:
            self._progress.hosts = shown()
            limited = (host["rate_limiter"] for host in self._progress.hosts if host["state"] == "ready")
            self._progress.rate_limiter = next(filter(rate_limit_of, limited), {})
            await asyncio.sleep(STATUS_EVERY_S if self._output.display.is_live else snapshot_file.EVERY_S)

    def _redact_logs(self) -> None:
        """Look for tokens that were refreshed, and take secrets out of the logs. Raises OSError."""
        if not self._redactor:
            return
        homes = home.known(self._settings.home, self._settings.endpoint)
        logins = [path.stat().st_mtime_ns for path in (one / home.LOGIN for one in homes) if path.exists()]
        if logins != self._logins:
            self._logins = logins
            self._redactor.add(known_secrets({}, homes))
        for each in self._logs:
            each.mask(self._redactor)
