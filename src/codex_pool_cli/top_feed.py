"""Feed: asks a daemon for its state again and again, on a thread of its own, and connects again when it is gone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from codex_app_server.errors import AppServerError
from codex_pool.protocol.endpoints import EndpointError

from . import views
from .line_client import LineClient
from .top_screen import SECTIONS, Snapshot

MAX_ROWS = 1000
RETRY_S = 1.0
ANSWER_LIMIT_S = 90.0


class Feed:
    """See the module's docstring. `connect` makes a client that is not started; `changed` is called on the thread."""

    def __init__(self, connect: Callable[[], LineClient], interval_s: float, changed: Callable[[], None]) -> None:
        self._connect = connect
        self._interval_s = interval_s
        self._changed = changed
        self._closing = threading.Event()
        self._client: LineClient | None = None
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self.snapshot: Snapshot | None = None
        # Why there is no connection; since when requests have no answer; an error of the program itself.
        self.problem = ""
        self.asked_at: float | None = None
        self.error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the session. A thread that waits for the daemon is left alone."""
        self._closing.set()
        client = self._client
        if client is not None:
            client.close()
        self._thread.join(1.0)

    def once(self) -> Snapshot:
        """Ask once, on the caller's thread. Raises what LineClient raises."""
        client = self._connect()
        try:
            client.start()
            return self._ask(client)
        finally:
            client.close()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._follow()
                self._closing.wait(RETRY_S)
        except BaseException as error:
            self.error = error
        self._changed()

    def _follow(self) -> None:
        """Ask until the session is over."""
        try:
            client = self._client = self._connect()
        except (AppServerError, EndpointError) as error:
            self._note(str(error))
            return
        try:
            client.start()
            while not self._closing.is_set():
                began = time.monotonic()
                self.asked_at = began
                self.snapshot = self._ask(client)
                self.asked_at = None
                self._note("")
                self._closing.wait(max(0.0, began + self._interval_s - time.monotonic()))
        except AppServerError as error:
            self._note(str(error))
        finally:
            self.asked_at = None
            with contextlib.suppress(AppServerError):
                client.close()

    def _note(self, problem: str) -> None:
        self.problem = problem if not self._closing.is_set() else ""
        self._changed()

    def _ask(self, client: LineClient) -> Snapshot:
        status = client.request("pool/status", {}, timeout_s=ANSWER_LIMIT_S)
        lists = {
            section: client.request(views.VIEWS[section].method, {"limit": MAX_ROWS}, timeout_s=ANSWER_LIMIT_S)
            for section in SECTIONS
        }

        def value(answer: Any) -> Any:
            return msgspec.json.decode(client.wait(answer, ANSWER_LIMIT_S))

        return Snapshot(time.monotonic(), value(status), {section: value(answer) for section, answer in lists.items()})
