"""ReportReader: the reports of a supervisor, read in the process that the pool belongs to."""

from __future__ import annotations

import json
import logging
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from codex_app_server._runtime import threads
from codex_app_server._runtime.wakeup import Latch

_log = logging.getLogger("codex_pool.pool")

OnSlots = Callable[[list[dict[str, Any]]], None]


class ReportReader:
    """A thread that reads what one supervisor reports.

    `started` opens when the pool is ready or its supervisor has ended, `ended` with the supervisor's end. `failure` is
    its report of why it has given up, or that it died. `on_slots` and, at an end that `closing` does not announce,
    `on_lost` are called in the thread. `draining`: what a pool that drains waits for, as last reported: `turns` that
    run, `clients` (how many by the name of the client), `waiting` for a person. `stop`: what a client has asked for,
    "drain" or "now", "" if nothing.
    """

    def __init__(self, on_slots: OnSlots | None, on_lost: Callable[[subprocess.Popen[bytes]], None]) -> None:
        self._on_slots = on_slots
        self._on_lost = on_lost
        self.thread: threading.Thread | None = None
        self.started, self.ended = Latch(), Latch()
        self.failure: dict[str, Any] | None = None
        self.has_reported = False
        self.draining: dict[str, Any] | None = None
        self.stop = ""
        self.closing = False

    def start(self, supervisor: subprocess.Popen[bytes]) -> None:
        """Begin to read."""
        reader = threading.Thread(target=self._read, args=(supervisor,), name="codex-pool-reports", daemon=True)
        threads.start(reader, "to hear from the pool")
        self.thread = reader

    def _read(self, supervisor: subprocess.Popen[bytes]) -> None:
        assert supervisor.stdout is not None
        try:
            for line in supervisor.stdout:
                self._on_report(line)
        except (OSError, ValueError) as error:
            _log.error("the reports of the pool cannot be read any more: %s", error)
        finally:
            if self.failure is None and not self.closing:
                self.failure = {"reason": "its supervisor died", "stderr": []}
            if not self.closing:
                self._on_lost(supervisor)
            self.ended.open()
            self.started.open()

    def _on_report(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            event = record["event"]
        except (ValueError, TypeError, KeyError):
            # It may be killed in the middle of a line; whatever is wrong with one, its end must be noticed.
            return
        self.has_reported = True
        if event == "slots" and self._on_slots is not None:
            try:
                self._on_slots(record["slots"])
            except Exception:
                _log.exception("on_slots failed; the pool goes on")
        elif event == "draining":
            self.draining = record
        elif event == "stop":
            self.stop = "now" if record["at_once"] or self.stop == "now" else "drain"
        elif event == "ready":
            self.started.open()
        elif event == "failed":
            self.failure = record
