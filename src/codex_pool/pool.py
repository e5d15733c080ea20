"""Pool: a pool of app-servers as a context manager; connect() and aconnect(): a client of one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import subprocess
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from codex_app_server import (
    AppServerConfig,
    AsyncCodex,
    Codex,
    InvalidInputError,
    StartError,
    TransportClosedError,
    _fork,
    _threads,
)
from codex_app_server._awaited import Awaited
from codex_app_server._paths import check_environment, shown
from codex_app_server._start_failures import directory_problem, start_error, working_directory
from codex_app_server._waking import Latch
from codex_app_server.async_client import AsyncApprovalHandler
from codex_app_server.client import ApprovalHandler
from codex_app_server.config import config_of
from codex_app_server.errors import StartErrorKind
from codex_app_server.home import codex_home as home_of
from codex_app_server.home import ensure_home
from codex_pool import defaults, endpoint_name, endpoints, start
from codex_pool.client.transport import PoolTransport
from codex_pool.configuration import read_configuration
from codex_pool.keys import KeyStore
from codex_pool.pool_lost import PoolLostError
from codex_pool.supervisor.homes import root_of
from codex_pool.wire import Priority, WhenGone

_log = logging.getLogger(__name__)

START_LIMIT_S = 90.0
# More than a supervisor takes for its children, and less than the 10 s that whoever asks for the end may give. What is
# left below one that is killed ends by itself.
STOP_LIMIT_S = 9.5
# Of a supervisor that has not reported anything: it has started nothing.
EARLY_STOP_LIMIT_S = 4.0
# How long after its end the supervisor may take to be reaped, and after a client's its own to be noticed.
ENDED_LIMIT_S = 1.0

# Switches that the model cannot see. A login shell per thread, the first one, costs more than the turns.
LEAN_OVERRIDES = ("features.shell_snapshot=false",)
LEAN_ENVIRON = {"RUST_LOG": "error"}
# Notifications that nobody can want, and what alone brings each: a request that no client of a pool may make.
NEVER_WANTED = {
    "externalAgentConfig/import/completed": "externalAgentConfig/import",
    "externalAgentConfig/import/progress": "externalAgentConfig/import",
    "mcpServer/event/stream/notification": "mcpServer/event/stream/start",
    "remoteControl/status/changed": "remoteControl/enable",
    "windowsSandbox/setupCompleted": "windowsSandbox/setupStart",
}


class PoolStartError(TransportClosedError, StartError):
    """The pool could not start; `stderr_lines` are the last words of the app-server.

    `kind` is that of a StartError when a process could not be started; None when the app-server was, and has ended.
    """

    def __init__(self, message: str, stderr_lines: Sequence[str] = (), kind: StartErrorKind | None = None) -> None:
        TransportClosedError.__init__(self, message, stderr_lines)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.stderr_lines, self.kind)


class Pool(_fork.ProcessBound):
    """`workers` app-server processes behind one endpoint. Use it as a context manager.

    `config`: how each app-server is started; the pool adds only switches that the model cannot see
    (see docs/guides/pool.md). `turns_per_worker`: turns that run at once on one app-server; further ones wait.
    `endpoint`: where clients connect, an ipc:// path; by default one of its own in the user's runtime directory.
    `listen`: tcp://HOST:PORT, where clients with a key connect as well; `keys`: the directory of the keys (see
    `codex-pool keys` and docs/security.md), by default the user's own.
    `log_file`: where the pool's processes log, opened again when it was removed or replaced; stderr by default.
    `on_slots` is called with the slots' states, from a thread of the pool, whenever they change.
    `recycle_turns`, `recycle_threads`, `recycle_age_s`, `recycle_memory_bytes`: a worker is replaced, without a failed
    turn, once it has finished so many turns, loaded so many threads, run for so long, or once it and all below it -
    app-server, MCP servers, commands that have outlived their turn - occupy so much memory. `recycle_descendants`: as
    many MCP servers and left commands may be below each worker's app-server; threads that would bring more wait while
    the worker is replaced. `turn_idle_limit_s`: a turn from which nothing has been heard for so long, while no tool
    and no question is open, is ended as stalled; errors that codex retries are silence. `turn_wall_limit_s`: the
    longest that a turn may run. None: no limit.
    Raises StartError, InvalidInputError, EndpointError, ConfigurationError, PoolStartError (on start); nothing is left
    behind then. Should the pool end by itself, what its clients wait for raises PoolLostError at once; `restart` starts
    it again. In a process forked from the one that made it, it ends nothing, and raises WrongProcessError when it is
    used; a client of its endpoint may be made there with `connect`.
    """

    _called = "pool"

    def __init__(
        self,
        workers: int = defaults.WORKERS,
        config: AppServerConfig | None = None,
        *,
        turns_per_worker: int = defaults.TURNS_PER_WORKER,
        endpoint: str | os.PathLike[str] | None = None,
        listen: str | None = None,
        keys: str | os.PathLike[str] | None = None,
        log_file: str | os.PathLike[str] | None = None,
        on_slots: Callable[[list[dict[str, Any]]], None] | None = None,
        recycle_turns: int | None = None,
        recycle_threads: int | None = None,
        recycle_age_s: float | None = None,
        recycle_memory_bytes: int | None = defaults.RECYCLE_MEMORY_BYTES,
        recycle_descendants: int | None = defaults.RECYCLE_DESCENDANTS,
        turn_idle_limit_s: float | None = defaults.TURN_IDLE_LIMIT_S,
        turn_wall_limit_s: float | None = None,
    ) -> None:
        for name, number in (("workers", workers), ("turns_per_worker", turns_per_worker)):
            if not isinstance(number, int):
                raise InvalidInputError(f"{name} is {number!r}; expected a whole number")
        if workers < 1 or turns_per_worker < 1:
            raise InvalidInputError(f"workers={workers}, turns_per_worker={turns_per_worker}: both must be at least 1")
        recycle: dict[str, float | None] = {
            "turns": recycle_turns,
            "threads": recycle_threads,
            "age_s": recycle_age_s,
            "memory_bytes": recycle_memory_bytes,
            "descendants": recycle_descendants,
        }
        limits = {"turn_idle_limit_s": turn_idle_limit_s, "turn_wall_limit_s": turn_wall_limit_s}
        for name, value in ({f"recycle_{name}": value for name, value in recycle.items()} | limits).items():
            if value is not None and value <= 0:
                raise InvalidInputError(f"{name}={value}: must be more than 0, or None for no limit")
        self._recycle = {name: value for name, value in recycle.items() if value is not None}
        self._limits = limits
        self._workers = workers
        self._turns_per_worker = turns_per_worker
        self._config = config_of(config)
        self._log_file = log_file
        self._on_slots = on_slots
        self._own_directory: Path | None = None
        self._endpoint = _endpoint_of(endpoint)
        self._listen = listen
        self._keys = keys
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._started = Latch()
        self._reader: threading.Thread | None = None
        self._failure: dict[str, Any] | None = None
        self._closing = False
        self._has_reported = False
        self._close_lock = threading.RLock()
        # The thread that closes: a signal handler that closes too may have interrupted it.
        self._closing_in = 0
        self._keeps_directory = False
        self._lost: PoolLostError | None = None
        self._ended = Latch()
        self._transports: weakref.WeakSet[PoolTransport] = weakref.WeakSet()
        self._bind_to_process()

    def __enter__(self) -> Pool:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Pool:
        starting = asyncio.ensure_future(_threads.in_thread(self.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await self._abandon(starting)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await _threads.in_thread(self.close)

    @property
    def endpoint(self) -> str:
        """Where clients connect. Raises TransportClosedError before the start."""
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
        cwd, environ = _working_directory(config), config.environ()
        environ |= {name: value for name, value in LEAN_ENVIRON.items() if name not in environ}
        check_environment(environ, cwd)
        home = ensure_home(environ)
        if self._supervisor is not None:
            raise InvalidInputError("the pool has been started already")
        _threads.check_patches(blocks=True)
        self._started, self._ended = Latch(), Latch()
        self._failure, self._lost, self._closing, self._has_reported = None, None, False, False
        if self._endpoint is None:
            if self._own_directory is None:
                name = f"p{os.getpid()}-{os.urandom(3).hex()}"
                self._own_directory = endpoints.runtime_directory() / name
            self._endpoint = f"ipc://{self._own_directory / 's.sock'}"
        path = endpoints.ipc_path(self._endpoint)
        endpoints.check_private(path.parent)
        endpoints.check_socket(path)
        keys = None
        if self._listen is not None:
            endpoints.check_tcp(self._listen)
            store = KeyStore(self._keys)
            # Here, because here it can be said what is wrong with them.
            store.server()
            keys = os.path.abspath(store.directory)
        info = {"name": config.client_name, "title": config.client_title, "version": config.client_version}
        capabilities = {
            "experimentalApi": config.experimental_api,
            "optOutNotificationMethods": list(NEVER_WANTED),
        }
        arguments = {
            "endpoint": start.as_utf8(self._endpoint),
            "slots": self._workers,
            "turns_per_worker": self._turns_per_worker,
            "argv": [start.as_utf8(word) for word in argv],
            "cwd": start.as_utf8(cwd),
            "environ": {},
            "initialize": {"clientInfo": info, "capabilities": capabilities},
            "sqlite_root": start.as_utf8(root_of(home)),
            "auth_json": start.as_utf8(home / "auth.json"),
            "configurable": config.launch_args_override is None,
            "recycle": self._recycle,
            "listen": self._listen,
            "keys": None if keys is None else start.as_utf8(keys),
            **self._limits,
        }
        try:
            supervisor = self._spawn(environ)
            assert supervisor.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                supervisor.stdin.write(start.encode_arguments(arguments))
                supervisor.stdin.flush()
            in_time = self._started.wait(START_LIMIT_S)
            if self._failure is not None:
                raise PoolStartError(
                    f"the pool could not start {shown(argv[0])}: {self._failure['reason']}",
                    self._failure["stderr"],
                    self._failure.get("kind"),
                )
            if self._closing:
                raise PoolStartError("the pool was closed before it was ready")
            if not in_time:
                raise PoolStartError(f"the pool was not ready within {START_LIMIT_S:.0f} s")
            if config.launch_args_override is None:
                with self.connect(name="start") as codex:
                    read_configuration(codex)
            with contextlib.suppress(BrokenPipeError):
                supervisor.stdin.write(b"\n")
                supervisor.stdin.flush()
        except BaseException:
            # A signal or a cancellation too, whatever was waited for.
            self.close()
            raise

    def _spawn(self, environ: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start the supervisor and the thread that reads its reports."""
        command = start.python("codex_pool.supervisor")
        with contextlib.ExitStack() as stack:
            # Whoever closes the pool meanwhile finds both, or neither.
            stack.enter_context(self._close_lock)
            log = _stderr()
            if self._log_file is not None:
                log = _open_log(self._log_file)
                stack.callback(os.close, log)
                command.append(start.as_utf8(os.path.abspath(self._log_file)))
            try:
                with _fork.opening():
                    self._supervisor = subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        env=environ,
                        # A session of its own: Ctrl-C in the terminal is ours to handle, not the pool's.
                        start_new_session=True,
                    )
            except OSError as error:
                self._remove_directory()
                failure = start_error(error, command, environ)
                raise PoolStartError(f"the pool could not start: {failure}", kind=failure.kind) from error
            except ValueError as error:
                self._remove_directory()
                raise InvalidInputError(f"the pool cannot be started with this environment: {error}") from error
            reader = threading.Thread(target=self._read_reports, name="codex-pool-reports", daemon=True)
            _threads.start(reader, "to hear from the pool")
            self._reader = reader
            return self._supervisor

    async def _abandon(self, starting: asyncio.Future[None]) -> None:
        """End a pool that may still be starting in its thread."""
        while True:
            await _threads.in_thread(self.close)
            if starting.done():
                break
            await asyncio.wait({starting}, timeout=0.1)
        if not starting.cancelled():
            # Whoever waited for it has been told.
            starting.exception()

    def restart(self) -> None:
        """Start the pool again at the same endpoint, after ending what is left of it, or all of it if it is running.

        Clients whose connection broke connect again by themselves while they still try, for 60 s, and find their turns
        lost; those that were told of the end have ended. Raises what `start` raises, and may be called again then.
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
        await _threads.in_thread(self.restart)

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
        supervisor, reader = self._supervisor, self._reader
        if supervisor is None:
            return
        assert supervisor.stdin is not None and supervisor.stdout is not None
        self._closing = True
        with contextlib.suppress(OSError):
            supervisor.stdin.close()
        try:
            supervisor.wait(STOP_LIMIT_S if self._has_reported else EARLY_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()
        # It may be in a function of the user's that does not return, or be the one that closes.
        if reader not in (None, threading.current_thread()) and not self._ended.wait(STOP_LIMIT_S):
            _log.error("on_slots has not returned within %g s after the end of the pool", STOP_LIMIT_S)
        supervisor.stdout.close()
        self._supervisor = self._reader = None
        self._remove_directory()

    def _let_go(self) -> None:
        supervisor = self._supervisor
        if supervisor is not None:
            _fork.let_go(_fork.descriptor_of(supervisor.stdin), _fork.descriptor_of(supervisor.stdout))
            # It is no child of this process: nothing is to be waited for or said of it.
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
            self.endpoint, client=name, priority=priority, when_gone=when_gone, explain=self._explained
        )
        self._transports.add(transport)
        return transport

    def _explained(self, error: TransportClosedError) -> TransportClosedError:
        """The error of a client, as what has become of the pool if that has ended by itself."""
        # Its broker may tell the client before the supervisor's end is known here.
        if not self._closing:
            self._ended.wait(ENDED_LIMIT_S)
        return error if self._lost is None else self._lost

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until the pool has ended by itself; whether it has. `failure` then says why."""
        self._check_process()
        return self._ended.wait(timeout_s)

    @property
    def failure(self) -> str | None:
        """Why the pool has given up, if it has."""
        return str(self._failure["reason"]) if self._failure is not None else None

    def _read_reports(self) -> None:
        assert self._supervisor is not None and self._supervisor.stdout is not None
        try:
            for line in self._supervisor.stdout:
                self._on_report(line)
        except (OSError, ValueError) as error:
            _log.error("the pool cannot be heard any more: %s", error)
        finally:
            if self._failure is None and not self._closing:
                self._failure = {"reason": "its supervisor died", "stderr": []}
            if not self._closing:
                self._tell_clients(self._supervisor)
            self._ended.open()
            self._started.open()

    def _on_report(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            event = record["event"]
        except (ValueError, TypeError, KeyError):
            # It may be killed in the middle of a line; whatever is wrong with one, its end must be noticed.
            return
        self._has_reported = True
        if event == "slots" and self._on_slots is not None:
            try:
                self._on_slots(record["slots"])
            except Exception:
                _log.exception("on_slots failed; the pool goes on")
        elif event == "ready":
            self._started.open()
        elif event == "failed":
            self._failure = record

    def _tell_clients(self, supervisor: subprocess.Popen[bytes]) -> None:
        """End the clients of this pool, which has ended by itself."""
        try:
            status = supervisor.wait(ENDED_LIMIT_S)
        except subprocess.TimeoutExpired:
            # Only its reports have ended: the pool works.
            return
        log_file = None if self._log_file is None else os.fspath(self._log_file)
        self._lost = PoolLostError(self._endpoint or "", self.failure or "", supervisor.pid, status, log_file)
        for transport in list(self._transports):
            transport.fail(self._lost)


def connect(
    endpoint: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    key: str | os.PathLike[str] | None = None,
    approval_handler: ApprovalHandler | None = None,
    priority: Priority = "interactive",
    when_gone: WhenGone = "interrupt",
) -> Codex:
    """A client of the pool at `endpoint`, by default the user's own daemon. `approval_handler` as for `Codex`.

    `key`: for an endpoint of the form tcp://HOST:PORT, the file that its owner has made with `codex-pool keys new`.
    `priority`: of its turns that wait; four of "interactive" clients are started for one of "batch".
    `when_gone`: what becomes of its running turns when it has not been heard for 20 s; "keep" lets them run on.
    Raises EndpointError, and TransportClosedError when there is no pool.
    """
    endpoint = _endpoint_of(endpoint) or endpoints.default_endpoint()
    transport = PoolTransport(endpoint, client=name, key=key, priority=priority, when_gone=when_gone)
    return Codex(transport=transport, approval_handler=approval_handler)


def aconnect(
    endpoint: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    key: str | os.PathLike[str] | None = None,
    approval_handler: AsyncApprovalHandler | None = None,
    priority: Priority = "interactive",
    when_gone: WhenGone = "interrupt",
) -> Connecting:
    """An asyncio client of the pool at `endpoint`, connected: await it, or use it with `async with`, which closes it.

    Options and what it raises as for `connect`.
    """

    def transport() -> PoolTransport:
        named = _endpoint_of(endpoint) or endpoints.default_endpoint()
        return PoolTransport(named, client=name, key=key, priority=priority, when_gone=when_gone)

    return Connecting(transport, approval_handler, "aconnect")


class Connecting(Awaited[AsyncCodex]):
    """A client of a pool that is about to connect: awaited it is an AsyncCodex; with `async with` it is closed too."""

    __slots__ = ("_codex",)

    def __init__(
        self, transport: Callable[[], PoolTransport], approval_handler: AsyncApprovalHandler | None, called: str
    ) -> None:
        connected = _connected(transport, approval_handler)
        # The name that Python says was never awaited.
        connected.__qualname__ = called  # type: ignore[attr-defined]
        super().__init__(connected, called)

    async def __aenter__(self) -> AsyncCodex:
        self._codex: AsyncCodex = await self
        return self._codex

    async def __aexit__(self, *_: object) -> None:
        await self._codex.close()


async def _connected(
    transport: Callable[[], PoolTransport], approval_handler: AsyncApprovalHandler | None
) -> AsyncCodex:
    codex = AsyncCodex(transport=transport(), approval_handler=approval_handler)
    await codex.start()
    return codex


def _endpoint_of(endpoint: Any) -> str | None:
    """An endpoint by its address, or by the path of its socket. Raises InvalidInputError."""
    if isinstance(endpoint, os.PathLike):
        return f"ipc://{os.path.abspath(endpoint)}"
    if endpoint is not None and not isinstance(endpoint, str):
        raise InvalidInputError(f"endpoint is {endpoint!r}; expected an address such as ipc:///run/user/1000/pool.sock")
    return endpoint


def running_daemon(endpoint: str) -> str | None:
    """`endpoint` if a pool holds it, else None."""
    path = endpoints.ipc_path(endpoint)
    with (
        contextlib.suppress(OSError),
        _fork.Held(lambda: os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CLOEXEC)) as lock,
    ):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return endpoint
    # The lock file may have been removed, and not been made again yet.
    return endpoint if endpoint_name.holder(path) is not None else None


def _stderr() -> int | None:
    """What the pool's processes have as stderr where no log file is named: ours, or nothing if that is closed."""
    try:
        os.fstat(2)
    except OSError:
        # The first file that a process opens would have its number, and get its log.
        return subprocess.DEVNULL
    return None


def _open_log(path: str | os.PathLike[str]) -> int:
    """Open the log file. Raises OSError, also for a FIFO that nobody reads: it would block."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    os.set_blocking(log, True)
    return log


def _working_directory(config: AppServerConfig) -> Path:
    """Where its app-servers work. Raises StartError when that cannot be."""
    cwd = working_directory(config.cwd)
    problem = directory_problem(cwd)
    if problem is not None:
        raise StartError(
            f"cannot start a pool: its working directory {shown(cwd)} {problem}; give cwd an existing directory",
            "working_directory",
        )
    return Path(cwd)


def codex_home(config: AppServerConfig) -> Path:
    """The CODEX_HOME that app-servers of this configuration use."""
    return home_of(config.environ())


def lean_argv(config: AppServerConfig) -> list[str]:
    """The app-server's command line with the lean profile; the user's own overrides come after it and win."""
    argv = config.argv()
    if config.launch_args_override is not None:
        return argv
    lean = [part for override in LEAN_OVERRIDES for part in ("--config", override)]
    return [argv[0], *lean, *argv[1:]]
