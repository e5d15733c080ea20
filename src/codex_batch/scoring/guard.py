"""Runs one process of the user and answers for it: when it ends, takes too long, or we die, all of it is gone.

    python -I -S guard.py FD TIMEOUT_S DIRECTORY COMMAND...

FD is a socket: its end is our death; on it comes, at the end, one JSON object: {"exit": code}, {"signal": number},
{"timeout": true} or {"failed": words}; `ended` has the names of what it left running. Standard input, output and error
are the command's own. It runs as a program of its own, in a directory that no agent writes, so nothing that lies in a
workspace can get into it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    # -I keeps out what PYTHONPATH and the working directory hold; this package is all it needs.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from codex_pool.runtime import processes

SWEEP_LIMIT_S = 5.0
ENDED_SHOWN = 8


def main(arguments: list[str]) -> int:
    """Run the command; the exit code means nothing."""
    line = socket.socket(fileno=int(arguments[0]))
    line.set_inheritable(False)
    processes.become_subreaper()
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # A Ctrl-C at the terminal is the batch's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    report = _run(line, woken, float(arguments[1]), arguments[2], arguments[3:])
    processes.sweep(os.getpid(), timeout_s=SWEEP_LIMIT_S)
    with contextlib.suppress(OSError):
        line.sendall(json.dumps(report).encode())
    return 0


def _run(line: socket.socket, woken: int, timeout_s: float, directory: str, command: list[str]) -> dict[str, object]:
    deadline = time.monotonic() + timeout_s
    try:
        child = subprocess.Popen(command, cwd=directory, start_new_session=True)
    except OSError as error:
        return {"failed": f"{command[0]}: {error.strerror or error}"}
    while (code := child.poll()) is None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            _end(child)
            return {"timeout": True}
        readable, _, _ = select.select([line.fileno(), woken], [], [], left_s)
        if line.fileno() in readable:
            _end(child)
            return {"failed": "the batch is gone"}
        if readable:
            os.read(woken, 4096)
    left = sorted({name for each in processes.descendants(os.getpid()) if (name := _name_of(each.pid))})
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    report: dict[str, object] = {"signal": -code} if code < 0 else {"exit": code}
    return report | ({"ended": left[:ENDED_SHOWN]} if left else {})


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
