"""A second proof that an endpoint is held, beside its lock file: an abstract Unix socket with a name made of the path.

It lies in no directory, so it lasts as long as its process even where lock, socket and directory are removed (Linux;
elsewhere there is none). A name is that of a path in one mount namespace: the same path in two containers is two
endpoints. It proves nothing else: who connects is let go, and a socket that another user has bound is passed over.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from pathlib import Path

BACKLOG = 64
_PEER = struct.Struct("3i")


class NameTakenError(Exception):
    """A living process of this user holds the name. `pid` is 0 where it is not known."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} holds the name of the endpoint")
        self.pid = pid


def hold(path: Path) -> socket.socket | None:
    """Hold the name of the endpoint at `path` until the socket is closed; None where there are no such names.

    Raises NameTakenError.
    """
    name = _name_of(path)
    if name is None:
        return None
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held.bind(name)
        held.listen(BACKLOG)
        held.setblocking(False)
    except OSError as error:
        held.close()
        if error.errno == errno.EADDRINUSE and (pid := holder(path)) is not None:
            raise NameTakenError(pid) from None
        return None
    return held


def holder(path: Path) -> int | None:
    """The pid of the process of this user that holds the name, 0 if it is not known which; None if there is none."""
    name = _name_of(path)
    if name is None:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # One that does not accept must not hold us up.
        probe.setblocking(False)
        try:
            probe.connect(name)
        except BlockingIOError:
            return 0
        except OSError:
            return None
        pid, uid = peer_of(probe)
    return pid if uid == os.getuid() else None


def let_go(held: socket.socket) -> None:
    """Take those who have connected out of the queue, so that others can connect."""
    while True:
        try:
            held.accept()[0].close()
        except OSError:
            return


def peer_of(connected: socket.socket) -> tuple[int, int]:
    """(pid, user id) of the process that listens at the other end; (0, own user id) where the platform reports none."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return 0, os.getuid()
    pid, uid, _ = _PEER.unpack(connected.getsockopt(socket.SOL_SOCKET, option, _PEER.size))
    return pid, uid


def _name_of(path: Path) -> bytes | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        namespace = os.readlink("/proc/self/ns/mnt")
        root = os.stat("/")
    except OSError:
        return None
    # Loaded by need: it brings OpenSSL.
    import hashlib

    text = f"{namespace} {root.st_dev} {root.st_ino} ".encode() + os.fsencode(os.path.realpath(path))
    return b"\0codex-pool/" + hashlib.sha256(text).hexdigest().encode()
