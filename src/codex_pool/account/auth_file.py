"""An auth.json on the disk: read, replaced at once, and locked against the holders of other pools.

The lock is a file beside the real auth.json - the links to it may lie in many homes - with `flock`; it is never
removed. It holds the lineage of the login: digests of the refresh tokens that the file has held.

codex reads the file at any time and without a lock, and takes one that is empty, or not whole, for no login. So new
content is written to a file beside it, and renamed. Room for it is taken before the issuer is asked: a refresh token
whose replacement could not be stored is not used.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .auth_content import Login, digest, parse_login, with_tokens
from .file_replacement import NO_RENAME, Replacement, is_named, partial_path
from .holder import Lineage
from .write_shield import SIZE_LIMIT_BYTES, Shield

# The holder of another pool may be waiting for the issuer.
LOCK_LIMIT_S = 40.0
LOCK_RETRY_S = 0.02
# codex 0.163 empties the file before it writes it: what is not JSON is read again, so often.
READS = 10
READ_AGAIN_S = 0.02
LOCK_SUFFIX = ".codex-pool"


class LockTimeoutError(Exception):
    """The holder of another pool has kept the lock for too long."""


class UnreadableError(Exception):
    """The file is there, and it cannot be found out who is logged in."""


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
        """Content of the file, b"" if there is none, and the login in it. Raises UnreadableError."""
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
    def replacement(self) -> Iterator[Replacement]:
        """Room for the next content of the file, taken before the issuer is asked. Raises OSError if new content could
        not be stored."""
        path = self.real_path
        owner = os.stat(path)
        try:
            replacement = Replacement(path, owner)
        except OSError as error:
            # A directory that is read-only, or another user's; the file may be writable all the same.
            if error.errno not in NO_RENAME or not os.access(path, os.W_OK):
                raise
            replacement = Replacement(path, owner, in_place=True)
        with contextlib.closing(replacement):
            yield replacement

    def write(self, content: bytes, tokens: dict[str, str], now: float) -> None:
        """Replace the file, whose content was `content`, by one with these tokens. It is on the disk afterwards, with
        mode 0600 and the owner that it had. Raises OSError, ValueError, ChangedError, UnreadableError."""
        try:
            text = with_tokens(content, tokens, now)
        except (TypeError, KeyError) as error:
            raise ValueError(f"{self.real_path} is not an auth.json with tokens: {error!r}") from None
        with self.replacement() as replacement:
            replacement.write(text)
            replacement.put(lambda: self.read()[0] == content)

    def put_login(self, content: bytes, lineage: Lineage) -> None:
        """Replace a file that holds a login of this lineage by one with another login; `content` is that of the file.
        Raises OSError, ValueError, ChangedError, UnreadableError."""
        if not isinstance(json.loads(content), dict):
            raise ValueError("a login that was written to it is no JSON object")

        def is_of_lineage() -> bool:
            _, login = self.read()
            return login is not None and lineage.has_held(login, login.refresh_token)

        with self.replacement() as replacement:
            replacement.write(content)
            replacement.put(is_of_lineage)

    def recover(self, asked: str) -> Login | None:
        """Put the tokens in place that a holder has left which was killed while it wrote them; the login with them.

        `asked`: digest of the refresh token that it had asked the issuer with. Raises OSError, UnreadableError.
        """
        path = self.real_path
        partial = partial_path(path)
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
                if self.real_path == path and is_named(lock, fd):
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


def _take(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
