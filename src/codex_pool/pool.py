"""Pool: a pool of app-servers as a context manager; connect() and aconnect(): a client of one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from codex_app_server import AppServerConfig, AsyncCodex, Codex, InvalidInputError, StartError, TransportClosedError
from codex_app_server._paths import check_environment, shown
from codex_app_server._start_failures import directory_problem, start_error, working_directory
from codex_app_server.async_client import AsyncApprovalHandler
from codex_app_server.client import ApprovalHandler
from codex_app_server.errors import StartErrorKind
from codex_app_server.home import codex_home as home_of
from codex_app_server.home import ensure_home
from codex_pool import defaults, endpoints, start
from codex_pool.client.transport import PoolTransport
from codex_pool.configuration import read_configuration
from codex_pool.keys import KeyStore
from codex_pool.supervisor.homes import root_of
from codex_pool.wire import Priority, WhenGone

START_LIMIT_S = 90.0
STOP_LIMIT_S = 20.0

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


class Pool:
    """`workers` app-server processes behind one endpoint. Use it as a context manager.

    `config`: how each app-server is started; the pool adds only switches that the model cannot see
    (see docs/guides/pool.md). `turns_per_worker`: turns that run at once on one app-server; further ones wait.
    `endpoint`: where clients connect, an ipc:// path; by default one of its own in the user's runtime directory.
    `listen`: tcp://HOST:PORT, where clients with a key connect as well; `keys`: the directory of the keys (see
    `codex-pool keys` and docs/security.md), by default the user's own.
    `log_file`: where the pool's processes log; stderr by default. `on_slots` is called with the slots' states, from
    a thread of the pool, whenever they change.
    `recycle_turns`, `recycle_threads`, `recycle_age_s`, `recycle_memory_bytes`: a worker is replaced, without a failed
    turn, once it has finished so many turns, loaded so many threads, run for so long, or once it and all below it -
    app-server, MCP servers, commands that have outlived their turn - occupy so much memory. `recycle_descendants`: as
    many MCP servers and left commands may be below each worker's app-server; threads that would bring more wait while
    the worker is replaced. `turn_idle_limit_s`: a turn from which nothing has been heard for so long, while no item
    and no question is open, is ended as stalled. `turn_wall_limit_s`: the longest that a turn may run. None: no limit.
    Raises StartError, InvalidInputError, EndpointError, ConfigurationError, PoolStartError (on start); nothing is left
    behind then.
    """

    def __init__(
        self,
        workers: int = defaults.WORKERS,
        config: AppServerConfig | None = None,
        *,
        turns_per_worker: int = defaults.TURNS_PER_WORKER,
        endpoint: str | None = None,
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
        self._config = config or AppServerConfig()
        self._log_file = log_file
        self._on_slots = on_slots
        self._own_directory: Path | None = None
        self._endpoint = endpoint
        self._listen = listen
        self._keys = keys
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._started = threading.Event()
        self._failure: dict[str, Any] | None = None
        self._closing = False
        self._close_lock = threading.Lock()

    def __enter__(self) -> Pool:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Pool:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    @property
    def endpoint(self) -> str:
        """Where clients connect. Raises TransportClosedError before the start."""
        if self._endpoint is None:
            raise TransportClosedError("the pool has not been started")
        return self._endpoint

    @property
    def supervisor_pid(self) -> int | None:
        return self._supervisor.pid if self._supervisor is not None else None

    def start(self) -> None:
        """Start all processes and wait until every worker is ready."""
        config = self._config
        argv = lean_argv(config)
        cwd, environ = _working_directory(config), config.environ()
        environ |= {name: value for name, value in LEAN_ENVIRON.items() if name not in environ}
        check_environment(environ, cwd)
        home = ensure_home(environ)
        if self._supervisor is not None:
            raise InvalidInputError("the pool has been started already")
        self._started.clear()
        self._failure, self._closing = None, False
        if self._endpoint is None:
            name = f"p{os.getpid()}-{os.urandom(3).hex()}"
            self._own_directory = endpoints.runtime_directory() / name
            self._endpoint = f"ipc://{self._own_directory / 's.sock'}"
        endpoints.check_private(endpoints.ipc_path(self._endpoint).parent)
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
        with contextlib.ExitStack() as stack:
            log: IO[bytes] | None = None
            if self._log_file is not None:
                log = stack.enter_context(open(self._log_file, "ab"))
            # A session of its own: Ctrl-C in the terminal is ours to handle, not the pool's.
            command = start.python("codex_pool.supervisor")
            try:
                self._supervisor = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environ,
                    start_new_session=True,
                )
            except OSError as error:
                self._remove_directory()
                failure = start_error(error, command, environ)
                raise PoolStartError(f"the pool could not start: {failure}", kind=failure.kind) from error
            except ValueError as error:
                self._remove_directory()
                raise InvalidInputError(f"the pool cannot be started with this environment: {error}") from error
        self._reader = threading.Thread(target=self._read_reports, name="codex-pool-reports", daemon=True)
        self._reader.start()
        try:
            assert self._supervisor.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._supervisor.stdin.write(start.encode_arguments(arguments))
                self._supervisor.stdin.flush()
            in_time = self._started.wait(START_LIMIT_S)
            if self._failure is not None:
                raise PoolStartError(
                    f"the pool could not start {shown(argv[0])}: {self._failure['reason']}",
                    self._failure["stderr"],
                    self._failure.get("kind"),
                )
            if not in_time:
                raise PoolStartError(f"the pool was not ready within {START_LIMIT_S:.0f} s")
            if config.launch_args_override is None:
                with self.connect(name="start") as codex:
                    read_configuration(codex)
            with contextlib.suppress(BrokenPipeError):
                self._supervisor.stdin.write(b"\n")
                self._supervisor.stdin.flush()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all processes and wait until they are gone. May be called twice."""
        with self._close_lock:
            supervisor = self._supervisor
            if supervisor is None:
                return
            assert supervisor.stdin is not None and supervisor.stdout is not None
            self._closing = True
            with contextlib.suppress(OSError):
                supervisor.stdin.close()
            try:
                supervisor.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                supervisor.kill()
                supervisor.wait()
            self._reader.join()
            supervisor.stdout.close()
            self._supervisor = None
            self._remove_directory()

    def _remove_directory(self) -> None:
        if self._own_directory is not None:
            shutil.rmtree(self._own_directory, ignore_errors=True)
            self._own_directory = self._endpoint = None

    def connect(
        self,
        *,
        name: str = "",
        approval_handler: ApprovalHandler | None = None,
        priority: Priority = "interactive",
        when_gone: WhenGone = "interrupt",
    ) -> Codex:
        """A client of this pool; any number may be connected at once. Options as for the function `connect`."""
        return connect(
            self.endpoint, name=name, approval_handler=approval_handler, priority=priority, when_gone=when_gone
        )

    async def aconnect(
        self,
        *,
        name: str = "",
        approval_handler: AsyncApprovalHandler | None = None,
        priority: Priority = "interactive",
        when_gone: WhenGone = "interrupt",
    ) -> AsyncCodex:
        """An asyncio client of this pool, connected. Options as for the function `connect`."""
        return await aconnect(
            self.endpoint, name=name, approval_handler=approval_handler, priority=priority, when_gone=when_gone
        )

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until the pool has ended by itself; whether it has. `failure` then says why."""
        self._reader.join(timeout_s)
        return not self._reader.is_alive()

    @property
    def failure(self) -> str | None:
        """Why the pool has given up, if it has."""
        return str(self._failure["reason"]) if self._failure is not None else None

    def _read_reports(self) -> None:
        assert self._supervisor is not None and self._supervisor.stdout is not None
        for line in self._supervisor.stdout:
            try:
                record = json.loads(line)
                event = record["event"]
            except (ValueError, TypeError, KeyError):
                # It may be killed in the middle of a line; whatever is wrong with one, its end must be noticed.
                continue
            if event == "slots" and self._on_slots is not None:
                self._on_slots(record["slots"])
            elif event == "ready":
                self._started.set()
            elif event == "failed":
                self._failure = record
        if self._failure is None and not self._closing:
            self._failure = {"reason": "its supervisor died", "stderr": []}
        self._started.set()


def connect(
    endpoint: str | None = None,
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
    endpoint = endpoint or endpoints.default_endpoint()
    transport = PoolTransport(endpoint, client=name, key=key, priority=priority, when_gone=when_gone)
    return Codex(transport=transport, approval_handler=approval_handler)


async def aconnect(
    endpoint: str | None = None,
    *,
    name: str = "",
    key: str | os.PathLike[str] | None = None,
    approval_handler: AsyncApprovalHandler | None = None,
    priority: Priority = "interactive",
    when_gone: WhenGone = "interrupt",
) -> AsyncCodex:
    """An asyncio client of the pool at `endpoint`, connected. Options and what it raises as for `connect`."""
    endpoint = endpoint or endpoints.default_endpoint()
    transport = PoolTransport(endpoint, client=name, key=key, priority=priority, when_gone=when_gone)
    codex = AsyncCodex(transport=transport, approval_handler=approval_handler)
    await codex.start()
    return codex


def running_daemon(endpoint: str) -> str | None:
    """`endpoint` if a pool holds it, else None."""
    lock_path = endpoints.ipc_path(endpoint).with_suffix(".lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return endpoint
    finally:
        os.close(lock)


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
