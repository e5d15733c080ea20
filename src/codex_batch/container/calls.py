"""Calls of a container engine's program: bounded in time and in output, and outliving nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from .errors import ContainerError
from .session import Ran

KEPT_BYTES = 512 * 1024
LIMIT_S = 120.0
"""Limit of a call that only the engine works for."""
_SHOWN_CHARACTERS = 500


async def call(argv: Sequence[str], *, timeout_s: float = LIMIT_S, stdin: bytes | None = None) -> Ran:
    """Run the engine's program to its end. Raises ContainerError if it is not there."""
    try:
        # A session of its own: Ctrl-C on the terminal is for the run to handle.
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise ContainerError(
            f"the container engine {argv[0]} cannot be started: {error.strerror}; install it, or name another one "
            "with --container"
        ) from None
    assert child.stdout is not None and child.stderr is not None
    feeding = asyncio.ensure_future(_feed(child, stdin))
    reading = asyncio.ensure_future(asyncio.gather(_read(child.stdout), _read(child.stderr), child.wait()))
    try:
        stdout, stderr, code = await asyncio.wait_for(reading, timeout_s)
    except asyncio.TimeoutError:
        return Ran(None, b"", b"", timed_out=True)
    finally:
        feeding.cancel()
        reading.cancel()
        await asyncio.gather(feeding, reading, return_exceptions=True)
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await asyncio.shield(child.wait())
    return Ran(code, stdout, stderr)


async def output(argv: Sequence[str], what: str, *, timeout_s: float = LIMIT_S) -> str:
    """Return what the engine's program prints. Raises ContainerError, which begins with `what`, if it fails."""
    ran = await call(argv, timeout_s=timeout_s)
    if ran.exit_code == 0:
        return ran.stdout.decode("utf-8", "replace").strip()
    how = f"took longer than {timeout_s:g} s" if ran.timed_out else words(ran)
    raise ContainerError(f"{what}: {Path(argv[0]).name} {argv[1]}: {how}")


def words(ran: Ran) -> str:
    """Return what a failed call has said, its end if that is long."""
    said = (ran.stderr.strip() or ran.stdout.strip()).decode("utf-8", "replace")
    return said[-_SHOWN_CHARACTERS:] or f"exit code {ran.exit_code}"


async def _feed(child: asyncio.subprocess.Process, data: bytes | None) -> None:
    if child.stdin is None or data is None:
        return
    # It need not be read.
    with contextlib.suppress(ConnectionError):
        child.stdin.write(data)
        await child.stdin.drain()
    child.stdin.close()


async def _read(stream: asyncio.StreamReader) -> bytes:
    half = KEPT_BYTES // 2
    head, tail, dropped = bytearray(), bytearray(), 0
    while part := await stream.read(1 << 16):
        room = max(0, half - len(head))
        head += part[:room]
        tail += part[room:]
        if len(tail) > half:
            dropped += len(tail) - half
            del tail[:-half]
    return bytes(head) + (b"\n[... %d bytes ...]\n" % dropped if dropped else b"") + bytes(tail)
