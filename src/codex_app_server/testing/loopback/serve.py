"""Serving as a process of its own: until a signal comes, or until the parent is gone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, Any

import msgspec

from .script import Script, ScriptError
from .server import LoopbackModel

_CONFIG_LIMIT_BYTES = 64 * 1024


class _Stop(BaseException):
    """A stop signal came; not an Exception, so that nothing on the way takes it for an error."""


class ChildConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The one line on stdin of `python -m codex_app_server.testing.loopback`."""

    script: str | None = None
    """Path of a script file, `demo`, or null."""
    host: str = "127.0.0.1"
    port: int = 0


def load_script(name: str | Path | None) -> Script:
    """A script file's content; for `demo` the script of `codex-pool batch --demo`, for None the empty one.

    Raises ScriptError.
    """
    if name is None:
        return Script()
    if name == "demo":
        from .demo import DEMO_SCRIPT

        return DEMO_SCRIPT
    return Script.load(name)


def serve_forever(
    port: int = 0,
    script: Script | str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    on_ready: Callable[[LoopbackModel], object] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; call it in the main thread. `on_ready` gets the model once clients can connect.

    Raises ScriptError, ValueError (host), OSError (port taken).
    """
    model = LoopbackModel(script if isinstance(script, Script) else load_script(script), host=host, port=port)
    _serve(model, on_ready or (lambda model: None), threading.Event().wait)


def run_child(stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """Read a ChildConfig from `stdin`, report on `stdout`, serve until `stdin` ends; return the exit code."""

    def say(**message: Any) -> None:
        stdout.write(msgspec.json.encode(message) + b"\n")
        stdout.flush()

    def wait_for_parent() -> None:
        while stdin.read(4096):
            pass

    line = stdin.readline(_CONFIG_LIMIT_BYTES)
    try:
        config = msgspec.json.decode(line, type=ChildConfig)
        model = LoopbackModel(load_script(config.script), host=config.host, port=config.port)
        _serve(
            model,
            lambda ready: say(event="ready", base_url=ready.base_url, pid=os.getpid()),
            wait_for_parent,
            child=True,
        )
    except msgspec.DecodeError as error:
        say(event="failed", message=f"stdin: {line[:200]!r}: {error}; expected one JSON line with script, host, port")
        return 2
    except (ScriptError, ValueError, OSError) as error:
        say(event="failed", message=str(error))
        return 2
    return 0


def _serve(
    model: LoopbackModel,
    on_ready: Callable[[LoopbackModel], object],
    wait: Callable[[], object],
    *,
    child: bool = False,
) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stop

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    if child:
        # Ctrl-C reaches the whole foreground group; the parent may want to finish the turns that run.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with model:
            on_ready(model)
            wait()
    except _Stop:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
