"""Pool: a pool of app-servers as a context manager."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
import threading
import weakref
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server import AppServerConfig, Codex, InvalidInputError, TransportClosedError
from codex_app_server._async.client import AsyncApprovalHandler
from codex_app_server._runtime import fork, threads
from codex_app_server._runtime.paths import check_environment, shown
from codex_app_server._runtime.start_failures import start_error
from codex_app_server._sync.client import ApprovalHandler
from codex_app_server.config import config_of
from codex_app_server.home import codex_home as home_of
from codex_app_server.home import ensure_home

from .client.transport import PoolTransport
from .configuration import read_configuration
from .connecting import Connecting
from .errors import PoolLostError, PoolStartError
from .lean_profile import lean_argv, lean_environ
from .option_sources import ConfigSource
from .options import PoolOptions, options_of
from .protocol import endpoints
from .protocol.wire import Priority, WhenGone
from .runtime import startup
from .supervisor.report_reader import OnSlots, ReportReader
from .supervisor.spawn import arguments_of, command_of, open_log, own_stderr, spawn, working_directory_of

_log = logging.getLogger(__name__)

START_LIMIT_S = 90.0
# More than a supervisor takes for its children, and less than the 10 s that a caller may allow for the end. What is
# left below one that is killed ends on its own.
STOP_LIMIT_S = 9.5
# Of a supervisor that has not reported anything: it has started nothing.
EARLY_STOP_LIMIT_S = 4.0
# How long after its end the supervisor may take to be reaped, and after a client's its own to be noticed.
ENDED_LIMIT_S = 1.0


class Pool(fork.ProcessBound):
    """`workers` app-server processes behind one endpoint. Use it as a context manager.

    Options: docs/reference/pool-options.md. Raises StartError, InvalidInputError, EndpointError, ConfigurationError,
    PoolStartError (on start); nothing is left behind then. Should the pool end unexpectedly, what its clients wait for
    raises PoolLostError at once; `restart` starts it again. In a process forked from the one that made it, it ends
    nothing, and raises WrongProcessError when it is used; a client of its endpoint may be made there with `connect`.
    """

    _called = "pool"

    # Made of PoolOptions by scripts/pool_options.py, down to the next such line: `make options`.
    def __init__(
        self,
        workers: int = 2,
        config: AppServerConfig | None = None,
        *,
        turns_per_worker: int = 8,
        endpoint: str | os.PathLike[str] | None = None,
        listen: str | None = None,
        listen_unix: str | os.PathLike[str] | None = None,
        listen_group: str | None = None,
        listen_ws: str | None = None,
        insecure_no_auth: bool = False,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        allow_host: str | None = None,
        listen_http: str | None = None,
        metrics_token: str | os.PathLike[str] | None = None,
        traces: bool = False,
        control_socket: bool = False,
        keys: str | os.PathLike[str] | None = None,
        log_file: str | os.PathLike[str] | None = None,
        prices: str | None = None,
        audit_log: str | os.PathLike[str] | None = None,
        audit_log_bytes: int = 67_108_864,
        audit_log_files: int = 8,
        recycle_turns: int | None = None,
        recycle_threads: int | None = None,
        recycle_age_s: float | None = None,
        recycle_memory_bytes: int | None = 1_610_612_736,
        recycle_descendants: int | None = 32,
        waiting_turns_per_worker: int = 32,
        approval_timeout_s: float | None = 86400.0,
        turn_idle_limit_s: float | None = 600.0,
        turn_wall_limit_s: float | None = None,
        drain_timeout_s: float | None = 20.0,
        on_slots: OnSlots | None = None,
    ) -> None:
        """Keywords, as options of a pool; see docs/reference/pool-options.md.

        `workers`: App-server processes.
        `config`: How each app-server is started; the pool adds only switches that the model cannot see.
        `turns_per_worker`: Turns that run at once on one app-server; further ones wait.
        `endpoint`: Where clients connect.
        `listen`: Where clients with a key connect as well; `codex-pool keys new NAME` makes one.
        `listen_unix`: Unix socket for clients of `codex app-server`, such as `codex --remote unix://PATH`.
        `listen_group`: Group whose users may connect there too; `codex-pool keys new NAME --unix-user USER` says as
            whom.
        `listen_ws`: WebSocket for clients with the token of a key, such as `codex --remote ws://HOST:PORT`.
        `insecure_no_auth`: Ask for no token there, so that every local user may do what this user may.
        `tls_cert`: Certificates of the WebSocket and of HTTP, in PEM, for wss://HOST:PORT and https://HOST:PORT.
        `tls_key`: Private key of the first certificate, in PEM.
        `allow_host`: Further names that clients may call the host of the WebSocket and of HTTP by, separated by
            commas.
        `listen_http`: HTTP for probes and metrics: /healthz, /readyz and, with a token, /metrics for Prometheus.
        `metrics_token`: File with the token that /metrics asks for, beside those of admin keys.
        `traces`: Send OpenTelemetry traces of turns by OTLP over HTTP, where OTEL_* variables say.
        `control_socket`: Listen where a plain `codex` looks for its daemon, so that it uses this pool.
        `keys`: Directory of the keys.
        `log_file`: Log of the pool's processes, opened again after it was removed or rotated.
        `prices`: Prices of tokens by model, for limits of spend and `codex-pool usage`; `litellm` is the table of
            an installed litellm.
        `audit_log`: File for a JSON line for each decision: who asked for what, and whether it was allowed.
        `audit_log_bytes`: Size at which the audit log is rotated, to FILE.1 and so on.
        `audit_log_files`: Files of the audit log that are kept, with the present one.
        `recycle_turns`: Replace a worker that has finished so many turns.
        `recycle_threads`: Replace a worker that has loaded so many threads.
        `recycle_age_s`: Replace a worker that has run for so many seconds.
        `recycle_memory_bytes`: Replace a worker that occupies so much memory with all below it.
        `recycle_descendants`: Replace a worker with so many MCP servers and commands left of turns; it loads no
            thread beyond.
        `waiting_turns_per_worker`: Turns of one app-server that may wait for an approval beside those that run;
            others count as running.
        `approval_timeout_s`: Seconds after which an approval that no client could give is declined.
        `turn_idle_limit_s`: Seconds after which a turn without any event is stalled, unless a tool or an approval
            is open.
        `turn_wall_limit_s`: Seconds that a turn may run at most.
        `drain_timeout_s`: Seconds that `serve` waits for running turns, after SIGTERM or `codex-pool stop`.
        `on_slots`: Called with the slots' states, from a thread of the pool, whenever they change.

        Raises InvalidInputError.
        """
        self._options = options_of(
            {
                "workers": workers,
                "turns_per_worker": turns_per_worker,
                "endpoint": endpoint,
                "listen": listen,
                "listen_unix": listen_unix,
                "listen_group": listen_group,
                "listen_ws": listen_ws,
                "insecure_no_auth": insecure_no_auth,
                "tls_cert": tls_cert,
                "tls_key": tls_key,
                "allow_host": allow_host,
                "listen_http": listen_http,
                "metrics_token": metrics_token,
                "traces": traces,
                "control_socket": control_socket,
                "keys": keys,
                "log_file": log_file,
                "prices": prices,
                "audit_log": audit_log,
                "audit_log_bytes": audit_log_bytes,
                "audit_log_files": audit_log_files,
                "recycle_turns": recycle_turns,
                "recycle_threads": recycle_threads,
                "recycle_age_s": recycle_age_s,
                "recycle_memory_bytes": recycle_memory_bytes,
                "recycle_descendants": recycle_descendants,
                "waiting_turns_per_worker": waiting_turns_per_worker,
                "approval_timeout_s": approval_timeout_s,
                "turn_idle_limit_s": turn_idle_limit_s,
                "turn_wall_limit_s": turn_wall_limit_s,
                "drain_timeout_s": drain_timeout_s,
            }
        )
        self._set_up(config, on_slots)

    # End of what is made of PoolOptions.

    @classmethod
    def of(cls, options: PoolOptions, config: AppServerConfig | None = None, on_slots: OnSlots | None = None) -> Pool:
        """A pool with these options."""
        return cls(config=config, on_slots=on_slots, **msgspec.structs.asdict(options))

    def _set_up(self, config: AppServerConfig | None, on_slots: OnSlots | None) -> None:
        self._config = config_of(config)
        self._on_slots = on_slots
        # Set by a daemon, before the start; `source` is where it reads its options again.
        self.is_daemon = False
        self.source: ConfigSource | None = None
        self._own_directory: Path | None = None
        self._endpoint = self._options.endpoint
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._reports = ReportReader(on_slots, self._on_lost)
        self._close_lock = threading.RLock()
        # The thread that closes: a signal handler that closes too may have interrupted it.
        self._closing_in = 0
        self._keeps_directory = False
        self._lost: PoolLostError | None = None
        self._transports: weakref.WeakSet[PoolTransport] = weakref.WeakSet()
        self._bind_to_process()

    def __enter__(self) -> Pool:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Pool:
        starting = asyncio.ensure_future(threads.in_thread(self.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await self._abandon(starting)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await threads.in_thread(self.close)

    @property
    def endpoint(self) -> str:
        """The address for clients. Raises TransportClosedError before the start."""
        if self._endpoint is None:
            raise TransportClosedError(
                "the pool does not run: it was not started, or is closed; use it as a context manager, or start() it"
            )
        return self._endpoint

    @property
    def supervisor_pid(self) -> int | None:
        return self._supervisor.pid if self._supervisor is not None else None

    def start(self) -> None:
        """Start all processes and wait until every worker is ready."""
        self._check_process()
        config = self._config
        argv = lean_argv(config)
        cwd, environ = working_directory_of(config), lean_environ(config)
        check_environment(environ, cwd)
        home = ensure_home(environ)
        if self._supervisor is not None:
            raise InvalidInputError("the pool has been started already")
        threads.check_patches(blocks=True)
        self._reports, self._lost = ReportReader(self._on_slots, self._on_lost), None
        if self._endpoint is None:
            if self._own_directory is None:
                name = f"p{os.getpid()}-{os.urandom(3).hex()}"
                self._own_directory = endpoints.runtime_directory() / name
            self._endpoint = f"ipc://{self._own_directory / 's.sock'}"
        path = endpoints.ipc_path(self._endpoint)
        endpoints.check_private(path.parent)
        endpoints.check_socket(path)
        arguments = arguments_of(
            self._options,
            config,
            endpoint=self._endpoint,
            argv=argv,
            cwd=cwd,
            home=home,
            is_daemon=self.is_daemon,
            source=self.source,
        )
        try:
            supervisor = self._spawn(environ)
            _send(supervisor, startup.encode_arguments(arguments))
            in_time = self._reports.started.wait(START_LIMIT_S)
            failure = self._reports.failure
            if failure is not None:
                raise PoolStartError(
                    f"the pool could not start {shown(argv[0])}: {failure['reason']}",
                    failure["stderr"],
                    failure.get("kind"),
                )
            if self._reports.closing:
                raise PoolStartError("the pool was closed before it was ready")
            if not in_time:
                raise PoolStartError(f"the pool was not ready within {START_LIMIT_S:.0f} s")
            if config.launch_args_override is None:
                with self.connect(name="start") as codex:
                    read_configuration(codex)
            _send(supervisor, b'{"command":"started"}\n')
        except BaseException:
            # A signal or a cancellation too, whatever was waited for.
            self.close()
            raise

    def _spawn(self, environ: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start the supervisor and the thread that reads its reports."""
        log_file = self._options.log_file
        with contextlib.ExitStack() as stack:
            # A thread that closes the pool meanwhile finds both, or neither.
            stack.enter_context(self._close_lock)
            stderr = own_stderr() if log_file is None else open_log(log_file)
            if log_file is not None and stderr is not None:
                stack.callback(os.close, stderr)
            try:
                self._supervisor = spawn(environ, log_file, stderr)
            except OSError as error:
                self._remove_directory()
                failure = start_error(error, command_of(log_file), environ)
                raise PoolStartError(f"the pool could not start: {failure}", kind=failure.kind) from error
            except ValueError as error:
                self._remove_directory()
                raise InvalidInputError(f"the pool cannot be started with this environment: {error}") from error
            self._reports.start(self._supervisor)
            return self._supervisor

    async def _abandon(self, starting: asyncio.Future[None]) -> None:
        """End a pool that may still be starting in its thread."""
        while True:
            await threads.in_thread(self.close)
            if starting.done():
                break
            await asyncio.wait({starting}, timeout=0.1)
        if not starting.cancelled():
            # The waiting caller has got the exception.
            starting.exception()

    def restart(self) -> None:
        """Start the pool again at the same endpoint, after ending what is left of it, or all of it if it is running.

        Clients whose connection broke connect again automatically while they still try, for 60 s, and find their turns
        lost; clients of `Pool.connect` that got PoolLostError have ended. Raises what `start` raises, and may be called
        again then.
        """
        # What a killed supervisor has left is ended by the lock and the list that lie there.
        self._keeps_directory = True
        try:
            self.close()
            self.start()
        finally:
            self._keeps_directory = False

    async def arestart(self) -> None:
        """Start the pool again, as `restart` does, in a thread."""
        await threads.in_thread(self.restart)

    def close(self) -> None:
        """End all processes and wait until they are gone. May be called twice.

        In a process forked from the one that made it, it does nothing.
        """
        if self._is_inherited or self._closing_in == threading.get_ident():
            return
        with self._close_lock:
            self._closing_in = threading.get_ident()
            try:
                self._close()
            finally:
                self._closing_in = 0

    def _close(self) -> None:
        supervisor, reports = self._supervisor, self._reports
        if supervisor is None:
            return
        assert supervisor.stdin is not None and supervisor.stdout is not None
        reports.closing = True
        with contextlib.suppress(OSError):
            supervisor.stdin.close()
        try:
            supervisor.wait(STOP_LIMIT_S if reports.has_reported else EARLY_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()
        # It may be in a function of the user's that does not return, or be the one that closes.
        if reports.thread not in (None, threading.current_thread()) and not reports.ended.wait(STOP_LIMIT_S):
            _log.error("on_slots has not returned within %g s after the end of the pool", STOP_LIMIT_S)
        supervisor.stdout.close()
        self._supervisor = None
        self._remove_directory()

    def _let_go(self) -> None:
        supervisor = self._supervisor
        if supervisor is not None:
            fork.let_go(fork.descriptor_of(supervisor.stdin), fork.descriptor_of(supervisor.stdout))
            # It is no child of this process: there is nothing to wait for or report.
            supervisor.returncode = 0

    def _remove_directory(self) -> None:
        if self._own_directory is not None and not self._keeps_directory:
            shutil.rmtree(self._own_directory, ignore_errors=True)
            self._endpoint = None

    def connect(
        self,
        *,
        name: str = "",
        approval_handler: ApprovalHandler | None = None,
        priority: Priority = "interactive",
        when_gone: WhenGone = "interrupt",
    ) -> Codex:
        """A client of this pool; any number may be connected at once. Options as for the function `connect`."""
        return Codex(transport=self._transport(name, priority, when_gone), approval_handler=approval_handler)

    def aconnect(
        self,
        *,
        name: str = "",
        approval_handler: AsyncApprovalHandler | None = None,
        priority: Priority = "interactive",
        when_gone: WhenGone = "interrupt",
    ) -> Connecting:
        """An asyncio client of this pool, connected: await it, or use it with `async with`, which also closes it.

        Options as for the function `connect`.
        """

        def transport() -> PoolTransport:
            return self._transport(name, priority, when_gone)

        return Connecting(transport, approval_handler, "Pool.aconnect")

    def _transport(self, name: str, priority: Priority, when_gone: WhenGone) -> PoolTransport:
        self._check_process()
        transport = PoolTransport(
            self.endpoint, client=name, priority=priority, when_gone=when_gone, explain=self.explained
        )
        self.notify_of_end(transport)
        return transport

    def notify_of_end(self, transport: PoolTransport) -> None:
        """Have a transport to this pool end at once, should the pool end unexpectedly."""
        self._transports.add(transport)

    def explained(self, error: TransportClosedError) -> TransportClosedError:
        """Return the error of a client, or that of the pool if the pool has ended unexpectedly."""
        # The end of its broker may reach the client before the supervisor's end is known here.
        if not self._reports.closing:
            self._reports.ended.wait(ENDED_LIMIT_S)
        return error if self._lost is None else self._lost

    def begin_drain(self) -> None:
        """Refuse new threads and turns from now on, for good; those that run go on. `draining` then reports on them."""
        self._check_process()
        if self._supervisor is not None:
            _send(self._supervisor, b'{"command":"drain_to_stop"}\n')

    def reload(self) -> None:
        """Have a daemon read its configuration again; what comes of it is in its log and its status."""
        self._check_process()
        if self._supervisor is not None:
            _send(self._supervisor, b'{"command":"reload"}\n')

    @property
    def draining(self) -> dict[str, Any] | None:
        """Turns that a pool waits for while it drains, None before they are known.

        `turns` that run, `clients`: how many by the name of the client, and `waiting`: how many wait for a person.
        """
        return self._reports.draining

    @property
    def stop_asked(self) -> str:
        """Request of a client to a daemon: "drain" to end once its turns are over, "now", or "" for nothing."""
        return self._reports.stop

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until the pool has ended unexpectedly; return True if it has. `failure` is then the reason."""
        self._check_process()
        return self._reports.ended.wait(timeout_s)

    @property
    def failure(self) -> str | None:
        """The reason why the pool has given up, None if it has not."""
        failure = self._reports.failure
        return str(failure["reason"]) if failure is not None else None

    def _on_lost(self, supervisor: subprocess.Popen[bytes]) -> None:
        """End the clients of a pool that has ended unexpectedly."""
        try:
            status = supervisor.wait(ENDED_LIMIT_S)
        except subprocess.TimeoutExpired:
            # Only its reports have ended: the pool works.
            return
        reason, log_file = self.failure or "", self._options.log_file
        self._lost = PoolLostError(self._endpoint or "", reason, supervisor.pid, status, log_file)
        for transport in list(self._transports):
            transport.fail(self._lost)


def _send(supervisor: subprocess.Popen[bytes], line: bytes) -> None:
    assert supervisor.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        supervisor.stdin.write(line)
        supervisor.stdin.flush()


def codex_home(config: AppServerConfig) -> Path:
    """The CODEX_HOME that app-servers of this configuration use."""
    return home_of(config.environ())
