"""Notifications outside of turns: of threads, of the account, of nothing in particular; who gets them, and when. Pure.

What the app-server reports of a thread whose followers want no deltas is not sent at once, but with the next end of a
turn or tick: no client waits for it, and each message costs as much as the notifications of a short turn together.
"""

from __future__ import annotations

from codex_app_server._core.deliveries import GlobalRun, ThreadRun
from codex_app_server._protocol import envelope
from codex_app_server.generated.routing import NOTIFICATIONS

from ..protocol import jsonrpc, wire
from ..protocol.bound_methods import KIND_OF_NOTIFICATION
from . import broadcasts
from .applied_changes import AppliedChanges
from .bound_objects import BoundObjects
from .broadcasts import Broadcasts
from .calls import Calls
from .coalescer import NotificationCoalescer
from .effects import Outbox
from .running_turns import RunningTurns
from .server_requests import ServerRequests
from .session_options import SessionOptions
from .start_notices import StartNotices
from .threads import Threads

# Of pending notifications of a thread.
MAX_PENDING_LINES = 256

_BOUND = frozenset(KIND_OF_NOTIFICATION)
_LOGGED_IN = "account/login/completed"
_LIMITS_UPDATED = "account/rateLimits/updated"
_RESOLVED = "serverRequest/resolved"
_USAGE = "thread/tokenUsage/updated"
_DEPRECATED = "deprecationNotice"


class SessionNotifications:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        outbox: Outbox,
        threads: Threads,
        running: RunningTurns,
        options: SessionOptions,
        calls: Calls,
        changes: AppliedChanges,
        server_requests: ServerRequests,
        bound: BoundObjects,
        start_notices: StartNotices,
    ) -> None:
        self._outbox = outbox
        self._threads = threads
        self._running = running
        self._options = options
        self._calls = calls
        self._changes = changes
        self._server_requests = server_requests
        self._broadcasts = Broadcasts(threads, options)
        self._bound = bound
        self._start_notices = start_notices
        self._globals = NotificationCoalescer()
        # Pending notifications of threads, by the sessions that get them.
        self._pending: dict[tuple[wire.SessionId, ...], list[bytes]] = {}
        # Turns that the app-server began unasked within the lines that are being handled.
        self._begun: set[str | None] = set()

    @property
    def waits(self) -> bool:
        """Return True if any notification is pending."""
        return bool(self._pending) or self._globals.waits

    def begin_read(self) -> None:
        """Lines of another read of the app-server follow."""
        self._begun.clear()

    def tick(self) -> None:
        """Send what is pending, and the coalesced notifications whose time has come."""
        for line in self._globals.due(self._outbox.now):
            self._outbox.sessions([], line)
        self.flush()

    def on_run(self, run: ThreadRun | GlobalRun) -> None:
        """Notifications of a thread, or of no followed thread."""
        lines, methods = run.lines, run.methods
        if isinstance(run, GlobalRun) and "thread/started" in methods[:-1]:
            # A sub-agent's thread has followers from this line on.
            after = methods.index("thread/started") + 1
            self.on_run(GlobalRun(lines[:after], methods[:after]))
            self.on_run(GlobalRun(lines[after:], methods[after:]))
            return
        thread_id = run.thread_id if isinstance(run, ThreadRun) else None
        if self._begun or "turn/started" in methods:
            self._on_lines_with_turns(thread_id, lines, methods)
        else:
            self._on_lines(thread_id, lines, methods)

    def _on_lines_with_turns(self, thread_id: str | None, lines: list[bytes], methods: list[str]) -> None:
        """Handle lines of which some may belong to turns that the app-server has begun unasked in this read."""
        current: str | None = None
        first = 0
        for place, (line, method) in enumerate(zip(lines, methods, strict=True)):
            header = envelope.scan(line)
            turn_id = header.turn_id if header.turn_id in self._begun else None
            is_start = turn_id is None and method == "turn/started"
            if place > first and (is_start or turn_id != current):
                self._on_lines_of(current, thread_id, lines[first:place], methods[first:place])
                first = place
            current = turn_id
            if is_start and self._running.begin_own(header, line):
                current = header.turn_id
                self._begun.add(current)
        self._on_lines_of(current, thread_id, lines[first:], methods[first:])

    def _on_lines_of(self, turn_id: str | None, thread_id: str | None, lines: list[bytes], methods: list[str]) -> None:
        if turn_id is None:
            self._on_lines(thread_id, lines, methods)
        else:
            self._running.on_notifications(turn_id, lines, methods, ended="turn/completed" in methods)

    def _on_lines(self, thread_id: str | None, lines: list[bytes], methods: list[str]) -> None:
        """Handle lines that are of no followed turn; `thread_id` is the thread of all of them, if it has followers."""
        if thread_id is None:
            self._on_global_lines(lines, methods)
        else:
            # Not those of when the read was routed: an answer in it may have added or removed some.
            self._on_thread_lines(thread_id, self._threads.concerned(thread_id, methods), lines, methods)

    def _on_thread_lines(
        self, thread_id: str, sessions: list[wire.SessionId], lines: list[bytes], methods: list[str]
    ) -> None:
        if _USAGE in methods and len(lines) > 1:
            for line, method in zip(lines, methods, strict=True):
                self._on_thread_lines(thread_id, sessions, [line], [method])
            return
        others = self._broadcasts.others(thread_id, methods, sessions)
        self._running.observe(thread_id, lines, methods)
        to_send: list[tuple[bytes, str]] = []
        for line, method in zip(lines, methods, strict=True):
            if self._threads.is_internal(thread_id, method) or self._changes.observe(method, line, sessions):
                continue
            to_send.append((self._server_requests.resolved(line, sessions) if method == _RESOLVED else line, method))
        if methods == [_USAGE]:
            # That of a turn which runs is in its stream: this one is the last of a thread that was resumed.
            sessions = self._threads.resumers(thread_id, sessions)
        if others:
            self._send(thread_id, others, [each for each in to_send if each[1] in broadcasts.METHODS])
        self._send(thread_id, sessions, to_send)

    def _send(self, thread_id: str, sessions: list[wire.SessionId], to_send: list[tuple[bytes, str]]) -> None:
        """Send notifications of a thread, or have them wait if no session needs them at once."""
        if not to_send or not sessions:
            # An empty list would be all sessions.
            return
        lines, methods = [line for line, _ in to_send], [method for _, method in to_send]
        sessions = self._running.followers.insert(thread_id, sessions, lines, methods)
        if not sessions:
            return
        pending = self._pending.setdefault(tuple(sessions), [])
        pending += lines
        has_readers = any(self._threads.interest_of(thread_id, session) == "full" for session in sessions)
        # The followers of a thread that starts have the answer to its start.
        is_news = any(method != "thread/started" for method in methods)
        is_ordered = not self._options.all_turns.isdisjoint(sessions)
        if (has_readers and is_news) or is_ordered or _RESOLVED in methods or len(pending) >= MAX_PENDING_LINES:
            self._outbox.sessions(sessions, b"\n".join(self._pending.pop(tuple(sessions))))

    def flush(self) -> None:
        """Send the pending notifications of threads."""
        pending, self._pending = self._pending, {}
        for sessions, lines in pending.items():
            self._outbox.sessions([*sessions], b"\n".join(lines))

    def _on_global_lines(self, lines: list[bytes], methods: list[str]) -> None:
        if not _BOUND.isdisjoint(methods):
            taken = self._bound.on_lines(lines, methods)
            lines = [line for place, line in enumerate(lines) if place not in taken]
            methods = [method for place, method in enumerate(methods) if place not in taken]
        for line, method in zip(lines, methods, strict=True):
            entry = NOTIFICATIONS.get(method)
            is_of_thread = entry is None or entry.thread is not None
            thread_id = envelope.scan(line).thread_id if is_of_thread else None
            sessions = self._threads.concerned(thread_id, [method]) if thread_id is not None else []
            if thread_id is not None and sessions:
                # Followed since an earlier line of the same read, or until the answer before it.
                self._on_thread_lines(thread_id, sessions, [line], [method])
            elif method == "thread/started":
                followers = self._threads.sub_agents.on_thread_started(line)
                if followers:
                    self._outbox.sessions(followers, line)
            elif self._start_notices.take(method, line):
                continue
            elif entry is None and thread_id is None:
                # A method that is not known, of no thread: all sessions get it.
                self._outbox.sessions([], line)
            elif self._changes.observe(method, line, self._login_sessions(method, line)):
                continue
            elif is_of_thread:
                # Of a thread that no session follows.
                if thread_id is not None:
                    self._on_thread_lines(thread_id, [], [line], [method])
                else:
                    self._running.observe(None, [line], [method])
            elif method == _DEPRECATED and (noticed := self._calls.take_deprecated()) is not None:
                if noticed.session is not None and not noticed.gone:
                    self._outbox.sessions([noticed.session], line)
            else:
                if method == _LIMITS_UPDATED:
                    self._running.observe_limit(method, line)
                ready = self._globals.offer(method, line, self._outbox.now)
                if ready is not None:
                    self._outbox.sessions([], ready)

    def _login_sessions(self, method: str, line: bytes) -> list[wire.SessionId]:
        session = self._calls.take_login(jsonrpc.login_id_of(line)) if method == _LOGGED_IN else None
        return [session] if session is not None else []
