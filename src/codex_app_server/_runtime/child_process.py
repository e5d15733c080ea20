"""Starting an app-server as a child process, and ending it for certain.

The child gets a session of its own, so that a signal to its group reaches the shells and servers it started, and
Ctrl-C in our terminal does not reach it: stopping is our decision.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from ..errors import InvalidInputError
from .start_failures import start_error

EXIT_AFTER_STDIN_S = 2.0
EXIT_AFTER_TERM_S = 2.0
EXIT_AFTER_KILL_S = 5.0
KILL_ROUNDS = 20


def spawn(
    argv: Sequence[str], *, environ: Mapping[str, str], cwd: str | os.PathLike[str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `argv` with pipes for stdin, stdout and stderr, unbuffered. Raises StartError, InvalidInputError."""
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=cwd,
            env=dict(environ),
            start_new_session=os.name != "nt",
        )
    except OSError as error:
        raise start_error(error, argv, environ, cwd) from error
    except (TypeError, ValueError) as error:
        # A NUL, a name of a variable with `=`, or letters that the encoding of file names does not have.
        words = "arguments, environment and cwd must be text that the system can take"
        raise InvalidInputError(f"cannot start {argv[0]!r}: {error}; {words}") from error


def widen(pipe: int, size_bytes: int) -> None:
    """Let a pipe hold as much as is read in one go, where the system can: what comes at once is handled at once.

    Less where that is too much: what the pipes of one user may hold is bounded.
    """
    import fcntl

    while size_bytes > 64 * 1024:
        try:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size_bytes)
            return
        except AttributeError:
            return
        except OSError:
            size_bytes //= 2


def stop(
    process: subprocess.Popen[bytes],
    *,
    after_stdin_s: float = EXIT_AFTER_STDIN_S,
    after_term_s: float = EXIT_AFTER_TERM_S,
) -> int | None:
    """End the child: close its stdin, wait; SIGTERM its group, wait; SIGKILL the group and the session; reap.

    Returns its exit code, None if it could not be reaped. Group and session are killed even after a clean exit, because
    what the child started may have outlived it.
    """
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    code = _wait(process, after_stdin_s)
    if code is None:
        signal_group(process, signal.SIGTERM)
        code = _wait(process, after_term_s)
    signal_group(process, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    if code is None:
        code = _wait(process, EXIT_AFTER_KILL_S)
    _kill_session(process.pid)
    return code


def _kill_session(leader: int) -> None:
    """Kill every member of the session that `leader` began, in whatever process group (Linux; elsewhere a no-op).

    codex gives each of its tools and sandboxes a group of its own. A sandbox whose parent ends before it has asked to
    end with it waits without end: seen at 3 of 100 ends of codex 0.163.0 in the middle of a sandboxed file access.
    """
    if not sys.platform.startswith("linux"):
        return
    # Again until a look finds none, since a member can fork between being found and being killed.
    for _ in range(KILL_ROUNDS):
        members = [int(name) for name in os.listdir("/proc") if name.isdigit() and _session(int(name)) == leader]
        if not members:
            return
        for pid in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _session(pid: int) -> int | None:
    """The session of a process that has not ended, None for any other."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, _, _, session = file.read().rpartition(b") ")[2].split(maxsplit=4)[:4]
    except (OSError, ValueError):
        return None
    return None if state in (b"Z", b"X") else int(session)


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    """Close our ends of the child's pipes."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the child's process group; one that is gone is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "nt":
            process.terminate()
        else:
            # The group id equals the pid of its leader and stays taken while any member lives.
            os.killpg(process.pid, number)


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def describe_exit(code: int | None) -> str:
    """`exit code 3`, `killed by SIGKILL`, or that it is unknown."""
    if code is None:
        return "exit status unknown"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}"
