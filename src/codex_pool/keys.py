"""CURVE keys on disk: the server's pair, the allow-list of its clients, and the file that a client is handed.

    keys/                 0700    $XDG_CONFIG_HOME/codex-pool/keys unless told otherwise
      server.json         0600    the pair of the server, made on first need
      clients/            0700    the allow-list: one file per name, with its principal, public key and what it may do
        NAME.json         0600
      revoked/            0700    entries that were on the allow-list, for `renew`
        PRINCIPAL.json    0600
    NAME.key              0600    handed over to the client: its own pair, and the server's public key

A principal is who stands behind a key. Its id is random, made with its first key; whoever gets a key under the same
name later is another principal, unless the key is renewed. An entry that was written without an id gets one when it is
first read; who changes the list holds a lock on clients/, so that all readers find the same.

Files are written whole or not at all. One that others could read or change is refused, with the remedy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from codex_app_server import _fork
from codex_pool import key_files
from codex_pool.broker.identity import MAX_MESSAGE_BYTES, Identity, known_pattern
from codex_pool.key_files import KeysError as KeysError

ENVIRONMENT = "CODEX_POOL_KEYS"
# Who changes the list holds its lock for as long as it takes to write two files.
LOCK_LIMIT_S = 1.0
LOCK_RETRY_S = 0.02

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PRINCIPAL = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(r"[!-~]{40}")


class KeyPair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A CURVE pair, as ZeroMQ prints them (Z85)."""

    public_key: str
    secret_key: str


class ClientKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a client needs to come in: the file that it is handed."""

    name: str
    public_key: str
    secret_key: str
    server_public_key: str


class AllowedClient(Identity, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An entry of the allow-list: an identity, and its public key.

    In Unix seconds: `since` is when its principal was made, `key_since` its present key, `revoked_at` when that was
    revoked; 0 is not known, or not.
    """

    public_key: str
    since: int = 0
    key_since: int = 0
    revoked_at: int = 0

    @property
    def identity(self) -> Identity:
        """Part of it that the broker knows."""
        return Identity(**{field: getattr(self, field) for field in Identity.__struct_fields__})


class KeyList(NamedTuple):
    """Entries that are allowed, those that were revoked, and what was wrong with files that were left out."""

    allowed: tuple[AllowedClient, ...]
    revoked: tuple[AllowedClient, ...]
    problems: tuple[str, ...]


class AllowList(NamedTuple):
    """The identities by their public keys, and what was wrong with files that were left out."""

    clients: Mapping[str, Identity]
    problems: tuple[str, ...]


def default_directory() -> Path:
    """`$CODEX_POOL_KEYS`, else `codex-pool/keys` in the user's directory for configuration."""
    given = os.environ.get(ENVIRONMENT)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "codex-pool" / "keys"


def check_name(name: str) -> str:
    """The name of an identity. Raises KeysError."""
    if not _NAME.fullmatch(name):
        raise KeysError(
            f"{name!r} cannot be the name of a key: expected 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return name


def check_limits(identity: Identity) -> None:
    """Raises KeysError for limits that cannot be meant."""
    for pattern in identity.methods:
        if not known_pattern(pattern):
            raise KeysError(f"method {pattern!r} names nothing; expected one such as fs/readFile, or all of them: fs/*")
    for root in identity.cwd_roots:
        if not root.startswith("/") or ".." in root.split("/") or "\0" in root:
            raise KeysError(f"directory {root!r} is not an absolute path without '..'")
    for name in ("max_message_bytes", "max_sessions", "max_threads", "max_turns"):
        value = getattr(identity, name)
        most = MAX_MESSAGE_BYTES if name == "max_message_bytes" else 1_000_000
        if not 1 <= value <= most:
            raise KeysError(f"{name} is {value}; expected 1 to {most}")


class KeyStore:
    """The keys of a pool that listens on TCP. Nothing is read or made before it is needed."""

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory = Path(directory) if directory is not None else default_directory()
        self._clients = self.directory / "clients"
        self._revoked = self.directory / "revoked"

    def server(self) -> KeyPair:
        """The server's pair, made if there is none. Raises KeysError."""
        self._make_directories()
        path = self.directory / "server.json"
        if not path.exists():
            # Who comes second finds the pair of the first.
            with contextlib.suppress(FileExistsError):
                key_files.write_new(path, new_pair())
        return _check_pair(key_files.read(path, KeyPair), path)

    def make_directory(self) -> Path:
        """The directory of the keys, made if there is none. Raises KeysError."""
        self._make_directories()
        return self.directory

    def new(self, identity: Identity, file: Path) -> ClientKey:
        """A key for a new principal: written to `file`, which is not there yet, and allowed. Raises KeysError.

        The id of the principal is made here; it inherits nothing of others that had its name.
        """
        check_name(identity.name)
        check_limits(identity)
        server, pair, now = self.server(), new_pair(), int(time.time())
        fields = {**msgspec.structs.asdict(identity), "principal": new_principal()}
        entry = AllowedClient(public_key=pair.public_key, since=now, key_since=now, **fields)
        key = _client_key(identity.name, pair, server)
        with self._locked(), _handed_over(file, key):
            try:
                key_files.write_new(self._path(identity.name), entry)
            except FileExistsError:
                raise KeysError(
                    f"there is a key for {identity.name} already; revoke it first (codex-pool keys revoke "
                    f"{identity.name}), give another name, or renew it (codex-pool keys renew {identity.name})"
                ) from None
        return key

    def renew(self, name: str, file: Path, *, principal: str | None = None) -> ClientKey:
        """Another key for the same principal, with what it may do, also where its key was revoked. Raises KeysError.

        The key before it ends. `principal` says which, where several that were revoked had this name. `file` is not
        there yet, or holds the key that ends.
        """
        check_name(name)
        server = self.server()
        with self._locked():
            entry = self._to_renew(name, principal)
            pair, now = new_pair(), int(time.time())
            entry = msgspec.structs.replace(entry, public_key=pair.public_key, key_since=now, revoked_at=0)
            key = _client_key(name, pair, server)
            with _handed_over(file, key, instead_of=name):
                key_files.replace(self._path(name), entry)
            self._revoked_path(entry.principal).unlink(missing_ok=True)
        return key

    def revoke(self, name: str) -> None:
        """Take a key off the allow-list; its entry is kept for `renew`. Raises KeysError if it is not on it."""
        self._check_directories()
        path = self._path(check_name(name))
        if not path.exists():
            names = ", ".join(sorted(self._names())) or "none"
            raise KeysError(f"there is no key for {name}; there are: {names}")
        with self._locked():
            try:
                entry = self._give_principal(name)
            except KeysError:
                # What cannot be read allowed nobody; there is nothing to renew.
                entry = None
            if entry is not None:
                self._make_directories(self._revoked)
                gone = msgspec.structs.replace(entry, revoked_at=int(time.time()))
                key_files.replace(self._revoked_path(entry.principal), gone)
            path.unlink(missing_ok=True)

    def allowed(self) -> AllowList:
        """The allow-list as it is now. A file that cannot be used lets nobody in, and keeps nobody else out.

        Raises OSError when the system has nothing left to read files with, or another process holds the lock of the
        list for more than LOCK_LIMIT_S.
        """
        entries, problems = self._entries()
        return AllowList({entry.public_key: entry.identity for entry in entries}, tuple(problems))

    def known(self) -> KeyList:
        """All entries, those that were revoked included. Raises OSError as `allowed` does."""
        allowed, problems = self._entries()
        revoked = self._revoked_entries(problems)
        present = {entry.principal for entry in allowed}
        return KeyList(
            tuple(allowed), tuple(entry for entry in revoked if entry.principal not in present), tuple(problems)
        )

    def _entries(self) -> tuple[list[AllowedClient], list[str]]:
        try:
            self._check_directories()
        except KeysError as error:
            return [], [str(error)]
        entries: list[AllowedClient] = []
        problems: list[str] = []
        # A file that was copied would give two names one place in the tables.
        taken: dict[str, str] = {}
        for name in sorted(self._names()):
            try:
                entry = self._entry(name)
                if not entry.principal:
                    with self._locked():
                        entry = self._give_principal(name)
            except FileNotFoundError:
                continue
            except KeysError as error:
                problems.append(str(error))
                continue
            twin = taken.get(entry.public_key) or taken.get(entry.principal)
            if twin is not None:
                what = "public key" if entry.public_key in taken else "principal"
                problems.append(f"{self._path(name)} has the {what} of {twin} too")
                continue
            taken[entry.public_key] = taken[entry.principal] = name
            entries.append(entry)
        return entries, problems

    def _revoked_entries(self, problems: list[str]) -> list[AllowedClient]:
        entries: list[AllowedClient] = []
        for principal in sorted(key_files.names_in(self._revoked)):
            path = self._revoked_path(principal)
            with contextlib.suppress(FileNotFoundError):
                try:
                    entry = key_files.read(path, AllowedClient)
                    self._check_entry(entry, path)
                    if entry.principal != principal or not principal:
                        raise KeysError(f"{path} is of principal {entry.principal!r}; expected that of the file's name")
                    entries.append(entry)
                except KeysError as error:
                    problems.append(str(error))
        return sorted(entries, key=lambda entry: entry.revoked_at)

    def _to_renew(self, name: str, principal: str | None) -> AllowedClient:
        """The entry that is meant: that on the list, else the one that was revoked."""
        with contextlib.suppress(FileNotFoundError):
            entry = self._give_principal(name)
            if principal not in (None, entry.principal):
                raise KeysError(
                    f"{name} is principal {entry.principal}, not {principal}; revoke it first (codex-pool keys revoke "
                    f"{name})"
                )
            return entry
        named = [entry for entry in self._revoked_entries([]) if entry.name == name]
        found = [entry for entry in named if principal in (None, entry.principal)]
        if len(found) == 1:
            return found[0]
        if found:
            known = ", ".join(entry.principal for entry in found)
            raise KeysError(f"{len(found)} principals had the name {name}: {known}; say which with --principal")
        known = ", ".join(sorted({*self._names(), *(entry.name for entry in self._revoked_entries([]))})) or "none"
        raise KeysError(f"there is no key for {name} to renew, and none was revoked; there are: {known}")

    def _give_principal(self, name: str) -> AllowedClient:
        """The entry, with an id if it was written without. The lock is held. Raises FileNotFoundError, KeysError."""
        entry = self._entry(name)
        if entry.principal:
            return entry
        path = self._path(name)
        since = int(path.stat().st_mtime)
        entry = msgspec.structs.replace(entry, principal=new_principal(), since=since, key_since=since)
        try:
            key_files.replace(path, entry)
        except OSError as error:
            if error.errno in key_files.OUT_OF_MEANS:
                raise
            raise KeysError(
                f"{path} has no id of its principal, and cannot be written to give it one: {error.strerror}; make the "
                "directory writable and run: codex-pool keys list"
            ) from None
        return entry

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes the list. Raises OSError when somebody does for more than LOCK_LIMIT_S."""
        with _fork.Held(lambda: os.open(self._clients, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            until = time.monotonic() + LOCK_LIMIT_S
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        why = f"another process has held the lock of {self._clients} for {LOCK_LIMIT_S:.0f} s"
                        raise TimeoutError(errno.ETIMEDOUT, f"{why}; end it and try again") from None
                    time.sleep(LOCK_RETRY_S)
            yield

    def signature(self) -> object:
        """Something that changes when the allow-list does; looks at each file, and reads none. Raises OSError."""
        seen: list[tuple[Any, ...]] = []
        try:
            seen.append((stat.S_IMODE(self.directory.stat().st_mode), stat.S_IMODE(self._clients.stat().st_mode)))
            for entry in os.scandir(self._clients):
                status = entry.stat(follow_symlinks=False)
                seen.append((entry.name, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size))
        except FileNotFoundError:
            seen.append(())
        return sorted(seen, key=repr)

    def _entry(self, name: str) -> AllowedClient:
        path = self._path(name)
        entry = key_files.read(path, AllowedClient)
        if entry.name != name:
            raise KeysError(f"{path} is of {entry.name!r}; its name is to be that of the file")
        self._check_entry(entry, path)
        return entry

    def _check_entry(self, entry: AllowedClient, path: Path) -> None:
        check_name(entry.name)
        check_limits(entry)
        if not _KEY.fullmatch(entry.public_key):
            raise KeysError(
                f"{path}: public_key is not a CURVE key of 40 characters; revoke {entry.name} and make a new one"
            )
        if entry.principal and not _PRINCIPAL.fullmatch(entry.principal):
            raise KeysError(f"{path}: principal {entry.principal!r} is not 32 hexadecimal digits; revoke {entry.name}")

    def _path(self, name: str) -> Path:
        return self._clients / f"{name}.json"

    def _revoked_path(self, principal: str) -> Path:
        return self._revoked / f"{principal}.json"

    def _names(self) -> list[str]:
        return key_files.names_in(self._clients)

    def _make_directories(self, *more: Path) -> None:
        for path in (self.directory, self._clients, *more):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=key_files.DIRECTORY_MODE, parents=True)
        self._check_directories()

    def _check_directories(self) -> None:
        for path in (self.directory, self._clients, self._revoked):
            with contextlib.suppress(FileNotFoundError):
                key_files.check_owner(path, path.lstat(), key_files.DIRECTORY_MODE)


def read_client_key(path: str | os.PathLike[str]) -> ClientKey:
    """The file that a client was handed. Raises KeysError."""
    path = Path(path)
    try:
        key = key_files.read(path, ClientKey)
    except FileNotFoundError:
        raise KeysError(
            f"there is no key file {path}; the pool's owner makes one with: codex-pool keys new NAME"
        ) from None
    _check_pair(KeyPair(key.public_key, key.secret_key), path)
    if not _KEY.fullmatch(key.server_public_key):
        raise KeysError(f"{path}: server_public_key is not a CURVE key of 40 characters; ask for a new key file")
    return key


def new_principal() -> str:
    """The id of a new principal: 128 random bits."""
    return secrets.token_hex(16)


def new_pair() -> KeyPair:
    """A new CURVE pair."""
    import zmq

    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def _check_pair(pair: KeyPair, path: Path) -> KeyPair:
    for name in ("public_key", "secret_key"):
        if not _KEY.fullmatch(getattr(pair, name)):
            raise KeysError(f"{path}: {name} is not a CURVE key of 40 characters; remove the file and make a new key")
    return pair


def _client_key(name: str, pair: KeyPair, server: KeyPair) -> ClientKey:
    return ClientKey(
        name=name, public_key=pair.public_key, secret_key=pair.secret_key, server_public_key=server.public_key
    )


@contextlib.contextmanager
def _handed_over(file: Path, key: ClientKey, *, instead_of: str | None = None) -> Iterator[None]:
    """The file of a client, there once the block has succeeded. Raises KeysError before that if it cannot be.

    One that is there already is replaced only if it holds a key that was `instead_of` this one, under that name.
    """
    replaces = False
    if instead_of is not None:
        with contextlib.suppress(FileNotFoundError, KeysError):
            before = key_files.read(file, ClientKey)
            replaces = (before.name, before.server_public_key) == (instead_of, key.server_public_key)
    try:
        temporary = key_files.write_temporary(file, key)
    except OSError as error:
        raise KeysError(f"{file} cannot be written: {error.strerror}; give another file with --output") from None
    try:
        if not replaces:
            # Not rename: that would replace what is there.
            os.link(temporary, file)
        try:
            yield
        except BaseException:
            if not replaces:
                file.unlink()
            raise
        if replaces:
            os.replace(temporary, file)
    except FileExistsError:
        raise KeysError(f"{file} is there already; give another file with --output") from None
    finally:
        temporary.unlink(missing_ok=True)
