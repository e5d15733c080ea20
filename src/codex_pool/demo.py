"""`--demo`: the loopback model as a child process, and a CODEX_HOME that points to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codex_app_server._runtime import fork
from codex_app_server.testing.loopback.home import write_loopback_home

from .runtime import log, startup

STOP_LIMIT_S = 5.0


@contextmanager
def demo_home(home: Path, script: str | None = "demo") -> Iterator[Path]:
    """Run the loopback model as long as the context lasts; `home` is a CODEX_HOME that uses it.

    A process of its own, so that it does not share the caller's interpreter lock. Raises RuntimeError if it cannot
    serve, and FileExistsError when `home` holds a configuration that is not a demo's.
    """
    with fork.opening():
        # Its own session: Ctrl-C must not end the model while turns are being interrupted.
        child = subprocess.Popen(
            startup.python("codex_pool.demo"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        model = _Model(child)
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(json.dumps({"script": script}).encode() + b"\n")
        child.stdin.flush()
        ready = json.loads(child.stdout.readline() or b"{}")
        if ready.get("event") != "ready":
            raise RuntimeError(f"the loopback model could not start: {ready.get('message', 'it died')}")
        write_loopback_home(home, ready["base_url"])
        yield home
    finally:
        model.close()


class _Model(fork.ProcessBound):
    """The process of the model, of which a forked process holds nothing."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._bind_to_process()

    def close(self) -> None:
        child = self._child
        if self._is_inherited:
            return
        assert child.stdin is not None and child.stdout is not None
        child.stdin.close()
        try:
            child.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()

    def _let_go(self) -> None:
        fork.let_go(fork.descriptor_of(self._child.stdin), fork.descriptor_of(self._child.stdout))
        self._child.returncode = 0


if __name__ == "__main__":
    from codex_app_server.testing.loopback.serve import run_child

    log.begin("loopback-model")
    sys.exit(run_child(sys.stdin.buffer, sys.stdout.buffer))
