"""An auth.json on the disk: read, replaced at once, and locked against the holders of other pools.

The lock is a file beside the real auth.json - the links to it may lie in many homes - with `flock`; it is never
removed. It holds the lineage of the login: digests of the refresh tokens that the file has held.

codex reads the file at any time and without a lock, and takes one that is empty, or not whole, for no login. So new
content is written to a file beside it, and renamed. Room for it is taken before the issuer is asked: a refresh token
whose successor could not be stored is not used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from codex_pool.account.holder import Lineage
from codex_pool.account.login import Login, digest, parse_login, with_tokens

SIZE_LIMIT_BYTES = 1024 * 1024
# The holder of another pool may be waiting for the issuer.
LOCK_LIMIT_S = 40.0
LOCK_RETRY_S = 0.02
# codex 0.163 empties the file before it writes it: what is not JSON is read again, so often.
READS = 10
READ_AGAIN_S = 0.02
WRITE_LOOK_S = 0.001
# How long what an app-server writes to the file is waited for, from when it has opened it.
WRITTEN_LIMIT_S = 2.0
LOCK_SUFFIX = ".codex-pool"
PARTIAL_SUFFIX = ".codex-pool.next"
# By how much a file with new tokens may be larger.
ROOM_BYTES = 16 * 1024
# The file can be written to, but not be replaced.
_NO_RENAME = (errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS)


class LockTimeoutError(Exception):
    """The holder of another pool has kept the lock for too long."""


class UnreadableError(Exception):
    """The file is there, and it cannot be found out who is logged in."""


class ChangedError(Exception):
    """The file is not what it was, and is left as it is."""


class AuthFile:
    """The auth.json at `path`, which may be a link, and need not exist."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._unlocked = LockedFile(None)

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
        """Its content, b"" if there is none, and the login in it. Raises UnreadableError."""
        problem = ""
        for attempt in range(READS):
            if attempt:
                time.sleep(READ_AGAIN_S)
            try:
                with open(self._path, "rb") as file:
                    content = file.read(SIZE_LIMIT_BYTES + 1)
                json.loads(content)
            except (FileNotFoundError, NotADirectoryError):
                return b"", None
            except OSError as error:
                raise UnreadableError(f"{self._path} cannot be read: {error.strerror}") from None
            except (ValueError, RecursionError) as error:
                problem = f"{self._path} holds {len(content)} bytes that are not JSON ({type(error).__name__})"
                continue
            return content, parse_login(content)
        raise UnreadableError(problem)

    @contextlib.contextmanager
    def successor(self) -> Iterator[Successor]:
        """Room for the next content of the file, taken before the issuer is asked. Raises OSError if new content could
        not be stored."""
        path = self.real_path
        owner = os.stat(path)
        try:
            successor = Successor(path, owner)
        except OSError as error:
            # A directory that is read-only, or somebody else's; the file may be writable all the same.
            if error.errno not in _NO_RENAME or not os.access(path, os.W_OK):
                raise
            successor = Successor(path, owner, in_place=True)
        with contextlib.closing(successor):
            yield successor

    def write(self, content: bytes, tokens: dict[str, str], now: float) -> None:
        """Replace the file, whose content was `content`, by one with these tokens. It is on the disk afterwards, with
        mode 0600 and the owner that it had. Raises OSError, ValueError, ChangedError, UnreadableError."""
        try:
            text = with_tokens(content, tokens, now)
        except (TypeError, KeyError) as error:
            raise ValueError(f"{self.real_path} is not an auth.json with tokens: {error!r}") from None
        with self.successor() as successor:
            successor.write(text)
            successor.put(lambda: self.read()[0] == content)

    def put_login(self, content: bytes, lineage: Lineage) -> None:
        """Replace a file that holds a login of this lineage by one with another login; `content` is that of the file.
        Raises OSError, ValueError, ChangedError, UnreadableError."""
        if not isinstance(json.loads(content), dict):
            raise ValueError("a login that was written to it is no JSON object")

        def is_of_lineage() -> bool:
            _, login = self.read()
            return login is not None and lineage.has_held(login, login.refresh_token)

        with self.successor() as successor:
            successor.write(content)
            successor.put(is_of_lineage)

    def recover(self, asked: str) -> Login | None:
        """Put the tokens in place that a holder has left which was killed while it wrote them; the login with them.

        `asked`: digest of the refresh token that it had asked the issuer with. Raises OSError, UnreadableError.
        """
        path = self.real_path
        partial = _partial(path)
        try:
            fd = os.open(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            text = os.pread(fd, SIZE_LIMIT_BYTES, 0).rstrip(b" \0")
            found, (_, login) = parse_login(text), self.read()
            if found is None or login is None or digest(login.refresh_token) != asked or found.account != login.account:
                partial.unlink()
                return None
            os.ftruncate(fd, len(text))
            os.fsync(fd)
            os.replace(partial, path)
            return found
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def shield(self) -> Iterator[Shield]:
        """Keep the file whole while an app-server writes the tokens of its answer to it."""
        with contextlib.ExitStack() as stack:
            shield = Shield(self.stamp)
            # Without room for a copy there is no shield.
            with contextlib.suppress(OSError):
                shield.raise_over(self.real_path, stack)
            yield shield

    @contextlib.contextmanager
    def lock(self) -> Iterator[LockedFile]:
        """Hold the lock. Without a directory to write in there is none to hold. Raises LockTimeoutError."""
        deadline = time.monotonic() + LOCK_LIMIT_S
        while True:
            path = self.real_path
            lock = path.with_name(path.name + LOCK_SUFFIX)
            try:
                fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:
                yield self._unlocked
                return
            try:
                while not _take(fd):
                    if time.monotonic() > deadline:
                        what = f"the holder of another pool has kept the lock on {path} for {LOCK_LIMIT_S:g} s"
                        raise LockTimeoutError(what)
                    time.sleep(LOCK_RETRY_S)
                # Meanwhile the lock may have been removed, or a link put in the place of the file.
                if self.real_path == path and _names(lock, fd):
                    yield LockedFile(fd)
                    return
            finally:
                os.close(fd)


class LockedFile:
    """The record in the lock file, while the lock is held: the lineage, and what the issuer is being asked with.

    Without a file (`fd` is None) it is in memory.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._lineage = Lineage()

    def lineage(self) -> Lineage:
        """The lineage; an empty one if there is none, or it cannot be read."""
        if self._fd is None:
            return self._lineage
        try:
            record = self._record()
            return Lineage(str(record["account"]), tuple(str(token) for token in record["seen"]))
        except (TypeError, KeyError):
            return Lineage()

    @property
    def asked(self) -> str:
        """Digest of the refresh token that the issuer was asked with last; "" if none is known."""
        return str(self._record().get("asked") or "")

    def keep(self, lineage: Lineage, asked: str | None = None) -> Lineage:
        """Write it down, if it has changed. A disk that is full costs what is known of older tokens, nothing else."""
        asked = self.asked if asked is None else asked
        if self._fd is None:
            self._lineage = lineage
        elif lineage != self.lineage() or asked != self.asked:
            record = {"account": lineage.account, "seen": lineage.seen, "asked": asked}
            text = json.dumps(record).encode()
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, os.pwrite(self._fd, text, 0))
        return lineage

    def _record(self) -> dict[str, Any]:
        try:
            record = json.loads(os.pread(self._fd, SIZE_LIMIT_BYTES, 0)) if self._fd is not None else {}
        except (OSError, ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}


class Successor:
    """The next content of the file at `path`, in a file beside it, which has one name: a holder that is killed leaves
    at most one, and the next holder looks at it.

    `in_place`: the file cannot be replaced, as one that is mounted by itself, and is written over instead, with one
    write and without being emptied before. Raises OSError.
    """

    def __init__(self, path: Path, owner: os.stat_result, *, in_place: bool = False) -> None:
        self._path, self._owner, self._in_place = path, owner, in_place
        self._partial = _partial(path)
        self._text = b""
        if in_place:
            self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):
            self._partial.unlink()
        self._fd = os.open(self._partial, flags, 0o600)
        try:
            if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(self._fd, owner.st_uid, owner.st_gid)
            os.pwrite(self._fd, b" " * (owner.st_size + ROOM_BYTES), 0)
            os.fsync(self._fd)
        except BaseException:
            self.close()
            raise

    def write(self, text: bytes) -> None:
        """Have this content beside the file: from then on it outlives the death of this process. Raises OSError."""
        if not self._in_place:
            written = os.pwrite(self._fd, text, 0)
            if written != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._partial))
            os.ftruncate(self._fd, written)
        self._text = text

    def put(self, is_unchanged: Callable[[], bool], *, or_overwrite: bool = True) -> None:
        """Put it in the place of the file, on the disk. Raises OSError, and ChangedError if the file is not as it was:
        the owner has logged out, or in again. `or_overwrite`: a file that cannot be replaced is written over."""
        if not self._text:
            raise OSError(errno.EIO, "the new content could not be written", str(self._partial))
        if not self._in_place:
            os.fsync(self._fd)
        if not is_unchanged():
            raise ChangedError(f"{self._path} has been changed meanwhile")
        if not self._in_place:
            try:
                os.replace(self._partial, self._path)
            except OSError as error:
                if error.errno not in _NO_RENAME or not or_overwrite:
                    raise
                self.close()
                self._fd, self._in_place = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC), True
        if self._in_place:
            # Blanks after JSON are no part of it; and a file that is shorter for a moment is none.
            size = os.fstat(self._fd).st_size
            os.pwrite(self._fd, self._text.ljust(size), 0)
            os.fsync(self._fd)
            os.ftruncate(self._fd, len(self._text))
            return
        with contextlib.suppress(OSError):
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def close(self) -> None:
        """Remove what was not put in place."""
        if self._fd >= 0 and not self._in_place:
            with contextlib.suppress(OSError):
                if _names(self._partial, self._fd):
                    self._partial.unlink()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class Shield:
    """The file while an app-server writes to it.

    codex 0.163 empties auth.json and then writes it, without a lock. An app-server that reads it in between takes
    itself for logged out, and its turn fails. So a lease is taken on the file: the kernel lets an app-server that opens
    it for writing wait until the holder has put a copy in its place, and what is written then goes to a file that has
    no name any more. `written` is that: it may be a new login. Where there are no leases, as on network file systems,
    app-servers only write one after the other.
    """

    def __init__(self, stamp: Callable[[], tuple[int, ...] | None]) -> None:
        self._stamp = stamp
        self._before = stamp()
        self._fd = -1
        self._copy: Successor | None = None
        self.written = b""

    def raise_over(self, path: Path, stack: contextlib.ExitStack) -> None:
        """Take the lease, and make the copy. `stack` gives both back. Raises OSError."""
        set_lease = getattr(fcntl, "F_SETLEASE", None)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # To close the descriptor ends the lease.
        stack.callback(os.close, fd)
        if set_lease is None:
            return
        self._path = path
        # The kernel's signal for the end of a lease; this one does nothing, and `wait` looks by itself.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, set_lease, fcntl.F_RDLCK)
        copy = stack.enter_context(contextlib.closing(Successor(path, os.fstat(fd))))
        copy.write(os.pread(fd, SIZE_LIMIT_BYTES, 0))
        self._fd, self._copy = fd, copy

    def wait(self, limit_s: float) -> bool:
        """Wait until an app-server writes to the file; False if none did within `limit_s`."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if self._copy is None:
                if self._stamp() != self._before:
                    return True
            elif fcntl.fcntl(self._fd, fcntl.F_GETLEASE) == fcntl.F_UNLCK:
                # It is not put in the place of a file that has been removed or replaced.
                with contextlib.suppress(OSError, ChangedError):
                    self._copy.put(lambda: _names(self._path, self._fd), or_overwrite=False)
                fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
                self._read_written(time.monotonic() + WRITTEN_LIMIT_S)
                return True
            time.sleep(WRITE_LOOK_S)
        return False

    def _read_written(self, deadline: float) -> None:
        """There can be a lease again once the writer has closed the file, and not before."""
        while not _names(self._path, self._fd) and time.monotonic() < deadline:
            try:
                fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            except OSError:
                time.sleep(WRITE_LOOK_S)
                continue
            self.written = os.pread(self._fd, SIZE_LIMIT_BYTES, 0)
            return


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL_SUFFIX)


def _take(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _names(path: Path, fd: int) -> bool:
    """True if the open file has this name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False
