"""User namespaces, of which codex's sandbox is made, denied to a command and to all below it, and granted meanwhile.

A seccomp filter of the command's own has the test decide about each of them. That takes no privilege, so that it is
the same for root, for a plain user and in a container. Linux 5.5 or newer, on x86_64 or aarch64.

    python namespaces.py SOCKET COMMAND...

installs the filter, hands what it reports over SOCKET, and becomes COMMAND.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIMIT_S = 20.0
_CLONE_NEWUSER = 0x10000000
_CLONE3 = 435
# Of the machine: clone, unshare, seccomp.
_CALLS = {"x86_64": (56, 272, 317), "aarch64": (220, 97, 277)}
_PR_SET_NO_NEW_PRIVS, _SET_MODE_FILTER, _NEW_LISTENER = 38, 1, 8
_ALLOW, _ASK, _NO_SUCH_CALL = 0x7FFF0000, 0x7FC00000, 0x00050000 | errno.ENOSYS
# struct seccomp_notif: an id, a process, and what it called. struct seccomp_notif_resp: id, value, error, flags.
_RECEIVE, _ASKED_BYTES = 0xC0502100, 80
_SEND, _ANSWER, _CONTINUE = 0xC0182101, struct.Struct("=QqiI"), 1


class UserNamespaces:
    """Decisions about what is asked for below the command: denied, until `grant`. `denied` counts."""

    def __init__(self, path: Path) -> None:
        self.denied = 0
        self._granted = threading.Event()
        self._path = path
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._woken, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._decide)
        self._thread.start()

    def below(self, *command: str) -> list[str]:
        """The command to start, once."""
        return [sys.executable, __file__, str(self._path), *command]

    def grant(self) -> None:
        self._granted.set()

    def close(self) -> None:
        os.close(self._wake)
        self._thread.join(_LIMIT_S)
        self._server.close()
        os.close(self._woken)

    def _decide(self) -> None:
        if self._woken in select.select([self._server, self._woken], [], [])[0]:
            return
        connection, _ = self._server.accept()
        with connection:
            connection.settimeout(_LIMIT_S)
            _, (reports,), _, _ = socket.recv_fds(connection, 1, 1)
        poll = select.poll()
        poll.register(reports, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        try:
            while True:
                ready = dict(poll.poll())
                if self._woken in ready or ready.get(reports, 0) & select.POLLHUP:
                    return
                self._answer(reports)
        finally:
            os.close(reports)

    def _answer(self, reports: int) -> None:
        asked = bytearray(_ASKED_BYTES)
        # Who asked may be gone by then.
        with contextlib.suppress(FileNotFoundError):
            fcntl.ioctl(reports, _RECEIVE, asked)
            (identity,) = struct.unpack_from("=Q", asked)
            granted = self._granted.is_set()
            self.denied += not granted
            answer = (identity, 0, 0, _CONTINUE) if granted else (identity, 0, -errno.EPERM, 0)
            fcntl.ioctl(reports, _SEND, _ANSWER.pack(*answer))


@contextmanager
def user_namespaces(path: Path) -> Iterator[UserNamespaces]:
    """Denied below one command, from its start. `path` is a socket's."""
    print("user namespaces are denied by a seccomp filter")
    spaces = UserNamespaces(path)
    try:
        yield spaces
    finally:
        spaces.close()


def _main(path: str, command: list[str]) -> None:
    clone, unshare, seccomp = _CALLS[platform.machine()]
    load, jump_if, ask, answer = 0x20, 0x15, 0x45, 0x06
    # (instruction, on true skip, on false skip, operand): the call's number, then its first argument, the flags.
    program = [
        (load, 0, 0, 0),
        (jump_if, 4, 0, clone),
        (jump_if, 3, 0, unshare),
        # Its flags lie in memory, which no filter sees; without it a C library takes clone.
        (jump_if, 1, 0, _CLONE3),
        (answer, 0, 0, _ALLOW),
        (answer, 0, 0, _NO_SUCH_CALL),
        (load, 0, 0, 16),
        (ask, 0, 1, _CLONE_NEWUSER),
        (answer, 0, 0, _ASK),
        (answer, 0, 0, _ALLOW),
    ]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in program))
    described = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    reports = libc.syscall(seccomp, _SET_MODE_FILTER, _NEW_LISTENER, described)
    if reports < 0:
        sys.exit(
            f"seccomp: {os.strerror(ctypes.get_errno())}; expected Linux 5.5 or newer, and a container that permits it"
        )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [b"."], [reports])
    os.close(reports)
    os.execvp(command[0], command)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
