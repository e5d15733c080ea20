"""Runs a process of the user for a scorer: with a limit in time, its output bounded, nothing of it left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import guard
from .scorer import ScoringFailed

# Of what is printed the beginning and the end are kept.
KEPT_BYTES = 512 * 1024
# How long the guard may take to end everything, beyond the command's own time.
GUARD_GRACE_S = 15.0
# What an agent wrote may run in there: it gets no credentials of ours.
_SECRET = re.compile(r"token|(^|_)key|secret|passw|credential|auth(?!or)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """End of a process: it exited with `exit_code`, was killed by `signal`, or exceeded its time.

    `stdout` and `stderr` are the beginning and the end of what it printed. `ended` names the processes that it had left
    running, which were ended with it.
    """

    exit_code: int | None
    signal: int | None
    timed_out: bool
    stdout: bytes
    stderr: bytes
    ended: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        if self.timed_out:
            return "took too long"
        return f"exit code {self.exit_code}" if self.signal is None else f"ended by signal {self.signal}"


async def run(
    command: Sequence[str], *, directory: Path, stdin: bytes, timeout_s: float, env: Mapping[str, str]
) -> ProcessResult:
    """Run a command in a directory. Raises ScoringFailed when it cannot be started."""
    ours, theirs = socket.socketpair()
    try:
        ours.setblocking(False)
        guarded = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            guard.__file__,
            str(theirs.fileno()),
            f"{timeout_s:.3f}",
            str(directory),
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            env=dict(env),
            cwd="/",
            start_new_session=True,
        )
        theirs.close()
        return await _follow(guarded, ours, stdin, timeout_s)
    finally:
        # The guard sees it, also when we are cancelled.
        ours.close()
        theirs.close()


async def _follow(
    guarded: asyncio.subprocess.Process, line: socket.socket, stdin: bytes, timeout_s: float
) -> ProcessResult:
    assert guarded.stdin is not None and guarded.stdout is not None and guarded.stderr is not None
    feeding = asyncio.ensure_future(_feed(guarded.stdin, stdin))
    reading = asyncio.ensure_future(asyncio.gather(_read(guarded.stdout), _read(guarded.stderr)))
    try:
        report = await asyncio.wait_for(_report(line), timeout_s + GUARD_GRACE_S)
        stdout, stderr = await asyncio.wait_for(reading, GUARD_GRACE_S)
    except asyncio.TimeoutError:
        raise ScoringFailed(f"what was started could not be ended within {GUARD_GRACE_S:.0f} s") from None
    finally:
        line.close()
        feeding.cancel()
        reading.cancel()
        await asyncio.gather(feeding, reading, return_exceptions=True)
        await asyncio.shield(_ended(guarded))
    if not report:
        raise ScoringFailed(f"its guard died: {stderr.decode('utf-8', 'replace').strip()[-500:]}")
    how = json.loads(report)
    if "failed" in how:
        raise ScoringFailed(f"cannot be started: {how['failed']}")
    return ProcessResult(
        how.get("exit"), how.get("signal"), "timeout" in how, stdout, stderr, tuple(how.get("ended", ()))
    )


async def _report(line: socket.socket) -> bytes:
    report = b""
    while part := await asyncio.get_running_loop().sock_recv(line, 4096):
        report += part
    return report


async def _ended(guarded: asyncio.subprocess.Process) -> None:
    try:
        await asyncio.wait_for(guarded.wait(), GUARD_GRACE_S)
    except asyncio.TimeoutError:
        guarded.kill()
        await guarded.wait()


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    # The process need not read it.
    with contextlib.suppress(ConnectionError):
        stream.write(data)
        await stream.drain()
    with contextlib.suppress(ConnectionError):
        stream.close()
        await stream.wait_closed()


async def _read(stream: asyncio.StreamReader) -> bytes:
    head, tail, dropped = bytearray(), bytearray(), 0
    half = KEPT_BYTES // 2
    while part := await stream.read(65536):
        room = half - len(head)
        head += part[:room]
        tail += part[room:] if room < len(part) else b""
        if len(tail) > half:
            dropped += len(tail) - half
            del tail[:-half]
    return bytes(head) + (b"\n[... %d bytes ...]\n" % dropped if dropped else b"") + bytes(tail)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Our environment without what looks like a credential, with the given variables added."""
    return {name: value for name, value in os.environ.items() if not _SECRET.search(name)} | dict(extra)
