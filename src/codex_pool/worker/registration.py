"""Registration: the handshake with the app-server, and all that a broker has to know of this worker. Pure."""

from __future__ import annotations

from typing import NamedTuple

from codex_app_server._protocol import runtime_version

from ..protocol import jsonrpc, tally, wire
from .applied_changes import AppliedChanges
from .bound_objects import BoundObjects
from .calls import Calls
from .effects import Fail, Outbox, Ready
from .process_counts import ProcessCounts
from .request_table import RequestTable
from .running_turns import RunningTurns
from .server_requests import ServerRequests
from .session_options import SessionOptions
from .start_notices import StartNotices
from .threads import Threads


class Identity(NamedTuple):
    """A worker, as of `wire.Register`."""

    worker: str
    slot: int
    pid: int
    app_server_pid: int
    started_at: float


class Registration:
    """See the module's docstring. `initialize`: the parameters of that request to the app-server."""

    def __init__(
        self,
        identity: Identity,
        initialize: dict[str, object],
        *,
        outbox: Outbox,
        requests: RequestTable,
        threads: Threads,
        running: RunningTurns,
        server_requests: ServerRequests,
        calls: Calls,
        changes: AppliedChanges,
        options: SessionOptions,
        bound: BoundObjects,
        processes: ProcessCounts,
        start_notices: StartNotices,
    ) -> None:
        self._identity = identity
        self._initialize = initialize
        self._outbox = outbox
        self._requests = requests
        self._threads = threads
        self._running = running
        self._server_requests = server_requests
        self._calls = calls
        self._changes = changes
        self._options = options
        self._bound = bound
        self._processes = processes
        self._start_notices = start_notices
        # The app-server's answer to `initialize`.
        self._initialized: bytes | None = None

    @property
    def is_initialized(self) -> bool:
        """Return True once the app-server has answered `initialize`."""
        return self._initialized is not None

    def begin(self) -> None:
        """Send `initialize`; the broker is sent the registration once it is answered."""
        self._requests.submit_own("initialize", self._initialize, self._on_initialized)

    def _on_initialized(self, line: bytes, is_error: bool) -> None:
        if is_error:
            self._outbox.put(Fail(f"initialize failed: {jsonrpc.error_of(line)}"))
            return
        self._initialized = jsonrpc.result_of(line)
        self._threads.user_agent = jsonrpc.user_agent_of(self._initialized)
        self._outbox.app_server(b'{"method":"initialized"}')
        self.send()
        self._outbox.put(Ready(runtime_version.version_of(self._threads.user_agent)))

    def send(self) -> None:
        """Register with the broker; nothing before the app-server is initialized."""
        if self._initialized is None:
            return
        changes, identity = self._changes, self._identity
        head = wire.Register(
            identity.slot,
            identity.worker,
            identity.pid,
            identity.app_server_pid,
            changes.as_of,
            changes.changed_at,
            identity.started_at,
        )
        state = wire.WorkerState(
            records=self._threads.records,
            followers=self._threads.followers,
            turns=self._running.records(self._server_requests.waiting),
            calls=self._calls.known,
            ended=self._running.subscriptions.ended_turns,
            logins=self._calls.logins,
            replayed_requests=changes.replayed_requests,
            replayed_at=changes.replayed_at,
            tree=self._processes.tree,
            options=self._options.records,
            bound=self._bound.records,
            tally=tally.encode(self._running.tally),
        )
        self._outbox.broker(wire.encode(head), self._initialized, wire.encode_worker_state(state))
        self._start_notices.report()
        self._threads.sub_agents.report()
