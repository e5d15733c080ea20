"""An auth.json on the disk: read, replaced at once, and locked against the holders of other pools.

The lock is a file beside the real auth.json - the links to it may lie in many homes - with `flock`; it is never
removed. It holds the lineage of the login: digests of the refresh tokens that the file has held.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from codex_pool.account.holder import Lineage
from codex_pool.account.login import Login, parse_login, with_tokens

SIZE_LIMIT_BYTES = 1024 * 1024
# The holder of another pool may be waiting for the issuer.
LOCK_LIMIT_S = 40.0
LOCK_RETRY_S = 0.02
# codex 0.163 empties the file before it writes it: what is not JSON is read again, so often.
READS = 10
READ_AGAIN_S = 0.02
WRITE_LOOK_S = 0.001


class LockTimeoutError(Exception):
    """The holder of another pool has kept the lock for too long."""


class AuthFile:
    """The auth.json at `path`, which may be a link, and need not exist."""

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def real_path(self) -> Path:
        """The file itself. Asked for each time: a link may be put in its place later."""
        return Path(os.path.realpath(self._path))

    def stamp(self) -> tuple[int, ...] | None:
        """Changes when the file does; None if there is none."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)

    def read(self) -> tuple[bytes, Login | None]:
        """Its content, b"" if there is none, and the login in it."""
        for attempt in range(READS):
            if attempt:
                time.sleep(READ_AGAIN_S)
            try:
                with open(self._path, "rb") as file:
                    content = file.read(SIZE_LIMIT_BYTES + 1)
            except OSError:
                return b"", None
            try:
                json.loads(content)
            except (ValueError, RecursionError):
                continue
            return content, parse_login(content)
        return b"", None

    def write(self, content: bytes, tokens: dict[str, str], now: float) -> None:
        """Replace the file, whose content was `content`, by one with these tokens. It is on the disk afterwards, with
        mode 0600 and the owner that it had. Raises OSError, ValueError."""
        path = self.real_path
        try:
            text = with_tokens(content, tokens, now)
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path} is not an auth.json with tokens: {error!r}") from None
        _replace(path, text)

    @contextlib.contextmanager
    def shield(self) -> Iterator[Shield]:
        """Keep the file whole while an app-server writes the tokens of its answer to it."""
        path = self.real_path
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            fd = -1
        try:
            # To close the descriptor ends the lease.
            yield Shield(path, fd, self.stamp)
        finally:
            if fd >= 0:
                os.close(fd)

    @contextlib.contextmanager
    def lock(self) -> Iterator[LockedFile]:
        """Hold the lock. Without a directory to write in there is none to hold. Raises LockTimeoutError."""
        path = self.real_path
        try:
            fd = os.open(path.with_name(path.name + ".codex-pool"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            yield LockedFile(None)
            return
        try:
            deadline = time.monotonic() + LOCK_LIMIT_S
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        what = f"the holder of another pool has kept the lock on {path} for {LOCK_LIMIT_S:g} s"
                        raise LockTimeoutError(what) from None
                time.sleep(LOCK_RETRY_S)
            yield LockedFile(fd)
        finally:
            os.close(fd)


class LockedFile:
    """The lineage in the lock file, while the lock is held."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def lineage(self) -> Lineage:
        """The lineage; an empty one if there is none, or it cannot be read."""
        if self._fd is None:
            return Lineage()
        try:
            record = json.loads(os.pread(self._fd, SIZE_LIMIT_BYTES, 0))
            return Lineage(str(record["account"]), tuple(str(token) for token in record["seen"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return Lineage()

    def keep(self, lineage: Lineage) -> Lineage:
        """Write it down, if it has changed. A disk that is full costs what is known of older tokens, nothing else."""
        if self._fd is not None and lineage != self.lineage():
            text = json.dumps({"account": lineage.account, "seen": lineage.seen}).encode()
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, os.pwrite(self._fd, text, 0))
        return lineage


class Shield:
    """The file while an app-server writes to it.

    codex 0.163 empties auth.json and then writes it, without a lock. An app-server that reads it in between takes
    itself for logged out, and its turn fails. So a lease is taken on the file: the kernel lets an app-server that opens
    it for writing wait until the holder has put a copy in its place, and what is written then goes to a file that has
    no name any more. Where there are no leases, as on network file systems, app-servers only write one after the other.
    """

    def __init__(self, path: Path, fd: int, stamp: Callable[[], tuple[int, ...] | None]) -> None:
        self._path, self._fd, self._stamp = path, fd, stamp
        self._before = stamp()
        self._leased = False
        set_lease = getattr(fcntl, "F_SETLEASE", None)
        if fd >= 0 and set_lease is not None:
            with contextlib.suppress(OSError):
                # The kernel's signal for the end of a lease; this one does nothing, and `wait` looks by itself.
                fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
                fcntl.fcntl(fd, set_lease, fcntl.F_RDLCK)
                self._leased = True

    def wait(self, limit_s: float) -> bool:
        """Wait until an app-server writes to the file; False if none did within `limit_s`."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if not self._leased:
                if self._stamp() != self._before:
                    return True
            elif fcntl.fcntl(self._fd, fcntl.F_GETLEASE) == fcntl.F_UNLCK:
                with contextlib.suppress(OSError):
                    _replace(self._path, os.pread(self._fd, SIZE_LIMIT_BYTES, 0))
                fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
                return True
            time.sleep(WRITE_LOOK_S)
        return False


def _replace(path: Path, text: bytes) -> None:
    """Put a file with this content in the place of `path`; its owner is kept, its mode is 0600. Raises OSError."""
    owner = os.stat(path)
    fd, partial = tempfile.mkstemp(prefix=".auth.json.", dir=path.parent)
    try:
        with open(fd, "wb") as file:
            if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(fd, owner.st_uid, owner.st_gid)
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
