"""Starting a supervisor, from the process that the pool belongs to: its command, its start arguments, its log."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec

from codex_app_server import AppServerConfig, StartError
from codex_app_server._runtime import fork
from codex_app_server._runtime.paths import shown
from codex_app_server._runtime.start_failures import directory_problem, working_directory

from ..auth.keys import KeyStore
from ..gateway.sessions import ListenerConfig
from ..lean_profile import NEVER_WANTED
from ..option_sources import ConfigSource
from ..options import PoolOptions
from ..protocol import endpoints
from ..runtime import startup
from ..runtime.startup import as_utf8
from ..tracer.check import check_traces
from .arguments import SupervisorArguments
from .sqlite_homes import root_of


def spawn(environ: dict[str, str], log_file: str | None, stderr: int | None) -> subprocess.Popen[bytes]:
    """Start a supervisor, which waits for its start arguments on stdin.

    Its processes log to `stderr`, which is `log_file` opened if there is one. Raises OSError, and ValueError for an
    environment that no process can have.
    """
    with fork.opening():
        return subprocess.Popen(
            command_of(log_file),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environ,
            # A session of its own: Ctrl-C in the terminal is ours to handle, not the pool's.
            start_new_session=True,
        )


def arguments_of(
    options: PoolOptions,
    config: AppServerConfig,
    *,
    endpoint: str,
    argv: list[str],
    cwd: Path,
    home: Path,
    source: ConfigSource | None = None,
    is_daemon: bool = False,
) -> SupervisorArguments:
    """Arguments for a pool at `endpoint` whose app-servers run `argv` in `cwd` on the CODEX_HOME `home`.

    `source`: where a daemon reads its options again.

    Raises EndpointError for an address that cannot be listened at, for listeners and traces that cannot be, and for
    keys that cannot be used.
    """
    check_traces(options, os.environ)
    keys = None
    if options.listen is not None:
        endpoints.check_tcp(options.listen)
    if options.lets_keys_in:
        store = KeyStore(options.keys)
        # Checked here, where an error of theirs can still be reported to the caller.
        store.server()
        keys = as_utf8(os.path.abspath(store.directory))
    prices = None if options.prices is None else as_utf8(checked_prices(options.prices))
    audit_log = None if options.audit_log is None else as_utf8(os.path.abspath(options.audit_log))
    log_file = None if options.log_file is None else as_utf8(os.path.abspath(options.log_file))
    options = msgspec.structs.replace(
        options, endpoint=as_utf8(endpoint), keys=keys, log_file=log_file, prices=prices, audit_log=audit_log
    )
    return SupervisorArguments(
        options=options,
        argv=[as_utf8(word) for word in argv],
        cwd=as_utf8(cwd),
        environ={},
        initialize={
            "clientInfo": {
                "name": config.client_name,
                "title": config.client_title,
                "version": config.client_version,
            },
            "capabilities": {
                "experimentalApi": config.experimental_api,
                "optOutNotificationMethods": list(NEVER_WANTED),
            },
        },
        sqlite_root=as_utf8(root_of(home)),
        listeners=_listeners(options, home),
        auth_json=as_utf8(home / "auth.json"),
        configurable=config.launch_args_override is None,
        source=source,
        is_daemon=is_daemon,
    )


def checked_prices(asked: str) -> str:
    """The table of prices that an option names, with an absolute path. Raises EndpointError for one that is none."""
    # Loaded by need: few pools have prices.
    from ..litellm_prices import NAME, find_prices
    from ..prices import PricesError

    kind, colon, file = asked.partition(":")
    if kind == NAME and colon and file:
        asked = f"{NAME}:{os.path.abspath(os.path.expanduser(file))}"
    elif kind != NAME:
        asked = os.path.abspath(asked)
    try:
        find_prices(asked)
    except PricesError as error:
        raise endpoints.EndpointError(f"prices: {error}") from None
    return asked


def _listeners(options: PoolOptions, home: Path) -> ListenerConfig | None:
    if not options.has_listener_options:
        return None
    # Loaded by need: it brings OpenSSL.
    from ..gateway.listeners.configuration import listener_config

    return listener_config(options, home)


def command_of(log_file: str | None) -> list[str]:
    """The command that starts a supervisor."""
    named = [] if log_file is None else [as_utf8(os.path.abspath(log_file))]
    return startup.python("codex_pool.supervisor", *named)


def own_stderr() -> int | None:
    """Return the stderr of the pool's processes where no log file is named: ours, or nothing if that is closed."""
    try:
        os.fstat(2)
    except OSError:
        # The first file that a process opens would have its number, and get its log.
        return subprocess.DEVNULL
    return None


def open_log(path: str | os.PathLike[str]) -> int:
    """Open the log file. Raises OSError, also for a FIFO without a reader: it would block."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    os.set_blocking(log, True)
    return log


def working_directory_of(config: AppServerConfig) -> Path:
    """Return where its app-servers work. Raises StartError when that cannot be."""
    cwd = working_directory(config.cwd)
    problem = directory_problem(cwd)
    if problem is not None:
        raise StartError(
            f"cannot start a pool: its working directory {shown(cwd)} {problem}; give cwd an existing directory",
            "working_directory",
        )
    return Path(cwd)
