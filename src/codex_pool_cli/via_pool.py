"""`codex-via-pool`: a codex whose app-server is a pool. For settings that name the codex to run, as editors have them.

Where the arguments ask for an app-server on stdin and stdout it is a bridge to a pool; for everything else, and when no
pool answers in time, this process becomes the real codex, with the same arguments.

    arguments                                            becomes
    app-server, --listen stdio://, --stdio,              a bridge
        --analytics-default-enabled (the pool decides)
    -c KEY=VALUE of START_KEYS and THREAD_KEYS           a bridge: given to each thread
    any other option of app-server                       the real codex, with a line on stderr
    app-server with a command or another --listen        the real codex
    everything else                                      the real codex

Only settings that a thread keeps when it moves to another worker are given to threads.
"""

from __future__ import annotations

import os
import sys

# As in `typing`, which takes longer than to become the real codex.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from codex_pool.bridge import Bridge

# Environment variables: the pool, its key, the real codex, and how often this command has called itself.
ENDPOINT = "CODEX_POOL_ENDPOINT"
KEY = "CODEX_POOL_KEY"
CODEX_BIN = "CODEX_POOL_CODEX_BIN"
DEPTH = "CODEX_VIA_POOL_DEPTH"
MAX_DEPTH = 4

# How long a pool may take to answer.
LIMIT_S = 1.0
# Settings that only a new thread gets: others have their own. And one that codex forgets with each resume.
START_KEYS = frozenset({"model", "model_provider", "model_reasoning_effort", "approval_policy"})
THREAD_KEYS = frozenset({"sandbox_mode"})
# A command that cannot be run, as a shell reports it.
CANNOT_RUN = 126

_IGNORED = frozenset({"--stdio", "--analytics-default-enabled"})


class NotForPoolError(Exception):
    """These arguments are for the real codex; the message says why, and is empty where that is plain."""


def main() -> None:
    """Entry of `codex-via-pool`."""
    from . import _leave_working_directory

    _leave_working_directory()
    arguments = sys.argv[1:]
    try:
        overrides = parse(arguments)
        made = _connected(overrides)
    except NotForPoolError as error:
        become_codex(arguments, str(error))
    from . import streams
    from .bridge import end, run

    streams.prepare()
    end(run(made))


def parse(arguments: list[str]) -> dict[str, str]:
    """The -c overrides of a command for an app-server on stdin and stdout. Raises NotForPoolError for any other."""
    overrides: dict[str, str] = {}
    others: list[str] = []
    is_app_server = False
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name.startswith("-c") and not name.startswith("--") and len(name) > 2:
            # As one word: -cKEY=VALUE.
            name, equals, value = "-c", "=", argument[2:]
        if argument == "app-server" and not is_app_server:
            is_app_server = True
        elif not argument.startswith("-"):
            # Another command, a command of app-server, or a prompt.
            raise NotForPoolError
        elif name in ("-c", "--config"):
            key, has_value, setting = (value if equals else next(waiting, "")).partition("=")
            if not has_value:
                # The real codex says what is wrong with it.
                raise NotForPoolError
            overrides[key.strip()] = setting
        elif name in ("--enable", "--disable"):
            others.append(f"{name} {value if equals else next(waiting, '')}")
        elif name == "--listen" and is_app_server:
            if (value if equals else next(waiting, "")) != "stdio://":
                raise NotForPoolError
        elif argument in ("-h", "--help", "-V", "--version"):
            raise NotForPoolError
        elif not (argument in _IGNORED and is_app_server):
            others.append(argument)
            if not is_app_server:
                # It may have a value, so that what follows cannot be told apart.
                break
    if others and "app-server" in arguments:
        raise NotForPoolError(f"{', '.join(others)} is of one process, and a pool has several")
    if not is_app_server:
        raise NotForPoolError
    unknown = sorted(overrides.keys() - START_KEYS - THREAD_KEYS)
    if unknown:
        raise NotForPoolError(
            f"-c {', '.join(unknown)} is of one process, and a pool has several: give it to codex-pool serve instead, "
            f"or set it in config.toml"
        )
    return overrides


def _connected(overrides: dict[str, str]) -> Bridge:
    """A bridge that is connected. Raises NotForPoolError when no pool answers, or not one of the CODEX_HOME wanted."""
    from codex_app_server.errors import AppServerError
    from codex_pool.bridge import to_endpoint
    from codex_pool.protocol import endpoints

    values = {key: _value(text) for key, text in overrides.items()}
    endpoint, key = os.environ.get(ENDPOINT), os.environ.get(KEY)
    try:
        made = to_endpoint(
            endpoint or endpoints.default_endpoint(),
            key=key if endpoint and endpoints.is_tcp(endpoint) else None,
            limit_s=LIMIT_S,
            start_config={key: value for key, value in values.items() if key in START_KEYS},
            thread_config={key: value for key, value in values.items() if key in THREAD_KEYS},
        )
        made.connect()
    except (endpoints.EndpointError, AppServerError) as error:
        raise NotForPoolError(str(error)) from None
    home = os.environ.get("CODEX_HOME")
    if home and not endpoint:
        served = _home_of(made.server_info)
        if os.path.realpath(home) != os.path.realpath(served):
            made.close()
            raise NotForPoolError(
                f"CODEX_HOME is {home}, and the pool's is {served}; set {ENDPOINT} to use that pool all the same"
            )
    return made


def _home_of(server_info: bytes) -> str:
    import json

    return str(json.loads(server_info or b"{}").get("codexHome", ""))


def _value(text: str) -> Any:
    """A value as `codex -c` reads it: TOML, or else the text itself."""
    import tomli

    try:
        return tomli.loads(f"value = {text}")["value"]
    except tomli.TOMLDecodeError:
        return text.strip().strip("\"'")


def become_codex(arguments: list[str], why: str) -> NoReturn:
    """Run the real codex in place of this process. `why` is reported on stderr, unless it is empty."""
    environ = dict(os.environ)
    depth = environ.get(DEPTH, "")
    calls = int(depth) if depth.isdigit() else 0
    codex, problem = _find_codex(environ)
    if codex is not None and calls >= MAX_DEPTH:
        problem = f"{codex} has led back here {calls} times; set {CODEX_BIN} to the real codex"
        codex = None
    if codex is None:
        _say(f"{why}; and no codex to run instead: {problem}" if why else problem)
        sys.exit(CANNOT_RUN)
    if why:
        _say(f"{why}; running {codex} instead")
    environ[DEPTH] = str(calls + 1)
    try:
        os.execve(codex, [codex, *arguments], environ)
    except OSError as error:
        _say(f"{codex} cannot be run: {error.strerror}")
        sys.exit(CANNOT_RUN)


def _find_codex(environ: dict[str, str]) -> tuple[str | None, str]:
    """The real codex - of $CODEX_POOL_CODEX_BIN, the runtime package, or PATH - or why there is none.

    For that of the package the tools that it brings are put on PATH.
    """
    from codex_app_server.config import find_codex
    from codex_app_server.errors import AppServerError

    named = environ.get(CODEX_BIN)
    try:
        found = str(find_codex(named or None))
    except AppServerError as error:
        if named:
            return None, f"{CODEX_BIN} is {named}: {error}"
        return _on_path(environ.get("PATH", os.defpath)), f"{error}, or put codex on PATH"
    if _is_this_command(found):
        return None, f"{CODEX_BIN} is {named}, which is this command; set it to the real codex"
    if not named:
        from codex_app_server._runtime.bundled_tools import with_tools

        environ["PATH"] = with_tools(environ.get("PATH", ""))
    return found, ""


def _on_path(path: str) -> str | None:
    """The first codex on PATH that is not this command under another name."""
    for place in path.split(os.pathsep):
        found = os.path.join(place, "codex")
        # A checkout is not to choose what is run.
        if os.path.isabs(place) and os.path.isfile(found) and os.access(found, os.X_OK) and not _is_this_command(found):
            return found
    return None


def _is_this_command(path: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(sys.argv[0])


def _say(message: str) -> None:
    print(f"codex-via-pool: {message}", file=sys.stderr, flush=True)
