"""Keys on disk: the server's CURVE pair, the allow-list of its clients, and the file that a client is handed.

    keys/                 0700    $XDG_CONFIG_HOME/codex-pool/keys by default
      server.json         0600    the pair of the server, made on first need
      clients/            0700    the allow-list: one file per name, with its principal, public key and what it may do
        NAME.json         0600
      revoked/            0700    entries that were on the allow-list, for `renew`
        PRINCIPAL.json    0600
    NAME.key              0600    handed over to the client: its own pair, its token, and the server's public key

A principal is the person or program behind a key. Its id is random, made with its first key; a key that is made under
the same name later is of another principal, unless the key is renewed. An entry that was written without an id gets one
when it is first read. The list is changed under a lock on clients/, so that all readers find the same.

Files are written whole or not at all. One that others could read or change is refused, with the remedy.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from . import key_files, tokens
from .client_keys import ClientKey as ClientKey
from .client_keys import KeyPair, check_pair, client_key, handed_over
from .client_keys import new_pair as new_pair
from .client_keys import read_client_key as read_client_key
from .client_keys import read_token as read_token
from .key_entries import AllowedClient as AllowedClient
from .key_entries import changed, check_entry, check_limits, expiry_of, former_keys, new_principal
from .key_entries import check_name as check_name
from .key_entries import uid_of as uid_of
from .key_files import KeysError as KeysError
from .list_lock import LOCK_LIMIT_S as LOCK_LIMIT_S
from .list_lock import locked
from .principal import Identity

ENVIRONMENT = "CODEX_POOL_KEYS"


class KeyList(NamedTuple):
    """Entries that are allowed, those that were revoked, and what was wrong with files that were left out."""

    allowed: tuple[AllowedClient, ...]
    revoked: tuple[AllowedClient, ...]
    problems: tuple[str, ...]


class AllowList(NamedTuple):
    """The identities by their public keys, and what was wrong with files that were left out.

    `tokens` and `users` lead from the SHA-256 of a token, and from a user id, to the public key. `until`: Unix time at
    which the next of these keys expires.
    """

    clients: Mapping[str, Identity]
    problems: tuple[str, ...]
    tokens: Mapping[str, str]
    users: Mapping[int, str]
    until: float = math.inf


def default_directory() -> Path:
    """`$CODEX_POOL_KEYS`, else `codex-pool/keys` in the user's directory for configuration."""
    given = os.environ.get(ENVIRONMENT)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "codex-pool" / "keys"


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
        return check_pair(key_files.read(path, KeyPair), path)

    def make_directory(self) -> Path:
        """The directory of the keys, made if there is none. Raises KeysError."""
        self._make_directories()
        return self.directory

    def new(self, identity: Identity, file: Path, *, unix_uid: int = -1, expires: str = "never") -> ClientKey:
        """A key for a new principal: written to `file`, which is not there yet, and allowed. Raises KeysError.

        The id of the principal is made here; it inherits nothing of others that had its name. `unix_uid`: the user of
        this machine who connects as this principal over a Unix socket; -1 is none. `expires`: as of `expiry_of`.
        """
        check_name(identity.name)
        check_limits(identity)
        now = int(time.time())
        expires_at = expiry_of(expires, now)
        server, pair = self.server(), new_pair()
        key = client_key(identity.name, pair, server)
        fields = {**msgspec.structs.asdict(identity), "principal": new_principal()}
        entry = AllowedClient(
            public_key=pair.public_key,
            token_sha256=tokens.digest_of(key.token),
            unix_uid=unix_uid,
            since=now,
            key_since=now,
            expires_at=expires_at,
            **fields,
        )
        with self._locked(), handed_over(file, key):
            self._check_user(unix_uid)
            try:
                key_files.write_new(self._path(identity.name), entry)
            except FileExistsError:
                raise KeysError(
                    f"there is a key for {identity.name} already; revoke it first (codex-pool keys revoke "
                    f"{identity.name}), give another name, or renew it (codex-pool keys renew {identity.name})"
                ) from None
        return key

    def renew(
        self,
        name: str,
        file: Path,
        *,
        principal: str | None = None,
        expires: str | None = None,
        grace_s: int = 0,
        limits: Mapping[str, Any] | None = None,
    ) -> ClientKey:
        """Another key for the same principal, with what it may do, also where its key was revoked. Raises KeysError.

        The key before it ends, with its token, after `grace_s` seconds, or when it expires before; so do those before
        it that have not ended yet, and with 0 all at once. `principal` names which, where several that were revoked had
        this name. `file` is not there yet, or holds the key that ends. `expires`, as of `expiry_of`, must be given for
        a key that expires. `limits`: fields of Identity to change.
        """
        check_name(name)
        expires_at = 0 if expires is None else expiry_of(expires, time.time())
        server = self.server()
        with self._locked():
            entry = changed(self._to_renew(name, principal), limits or {})
            if grace_s and entry.revoked_at:
                raise KeysError(f"the key of {name} was revoked; make another with: codex-pool keys renew {name}")
            if entry.expires_at and expires is None:
                raise KeysError(
                    f"the key of {name} expires; say when the new one does, such as --expires 30d, or --expires never"
                )
            pair, now = new_pair(), int(time.time())
            key = client_key(name, pair, server)
            digest = tokens.digest_of(key.token)
            entry = msgspec.structs.replace(
                entry,
                public_key=pair.public_key,
                token_sha256=digest,
                key_since=now,
                expires_at=expires_at,
                revoked_at=0,
                former=former_keys(entry, now, grace_s),
            )
            with handed_over(file, key, instead_of=name):
                key_files.replace(self._path(name), entry)
            self._revoked_path(entry.principal).unlink(missing_ok=True)
        return key

    def change(self, name: str, limits: Mapping[str, Any]) -> AllowedClient:
        """Change what the key of a principal on the list allows: fields of Identity. Raises KeysError."""
        path = self._path(check_name(name))
        self._check_directories()
        with self._locked():
            try:
                entry = changed(self._give_principal(name), limits)
            except FileNotFoundError:
                names = ", ".join(sorted(self._names())) or "none"
                raise KeysError(f"there is no key for {name}; there are: {names}") from None
            key_files.replace(path, entry)
        return entry

    def revoke(self, name: str) -> None:
        """Take a key off the allow-list, with former ones; its entry is kept for `renew`. Raises KeysError."""
        self._check_directories()
        path = self._path(check_name(name))
        if not path.exists():
            names = ", ".join(sorted(self._names())) or "none"
            raise KeysError(f"there is no key for {name}; there are: {names}")
        with self._locked():
            try:
                entry = self._give_principal(name)
            except KeysError:
                # A file that cannot be read admitted no client; there is nothing to renew.
                entry = None
            if entry is not None:
                self._make_directories(self._revoked)
                gone = msgspec.structs.replace(entry, revoked_at=int(time.time()), former=())
                key_files.replace(self._revoked_path(entry.principal), gone)
            path.unlink(missing_ok=True)

    def allowed(self) -> AllowList:
        """Return the current allow-list, without keys that have expired.

        A file that cannot be used admits no client, and excludes no other one. Raises OSError when the system has
        nothing left to read files with, or another process holds the lock of the list for more than LOCK_LIMIT_S.
        """
        entries, problems = self._entries()
        now = self.now()
        entries = [entry for entry in entries if not entry.expires_at or entry.expires_at > now]
        former = [(entry, key) for entry in entries for key in entry.former if key.until > now]
        clients = {key.public_key: entry.identity for entry, key in former}
        digests = {key.token_sha256: key.public_key for _, key in former if key.token_sha256}
        ends = [entry.expires_at for entry in entries if entry.expires_at] + [key.until for _, key in former]
        return AllowList(
            clients | {entry.public_key: entry.identity for entry in entries},
            tuple(problems),
            digests | {entry.token_sha256: entry.public_key for entry in entries if entry.token_sha256},
            {entry.unix_uid: entry.public_key for entry in reversed(entries) if entry.unix_uid >= 0},
            min(ends, default=math.inf),
        )

    @staticmethod
    def now() -> float:
        """The Unix time, by which keys expire."""
        return time.time()

    def known(self) -> KeyList:
        """Return all entries, including revoked ones. Raises OSError as `allowed` does."""
        allowed, problems = self._entries()
        revoked = self._revoked_entries(problems)
        present = {entry.principal for entry in allowed}
        return KeyList(
            tuple(allowed), tuple(entry for entry in revoked if entry.principal not in present), tuple(problems)
        )

    def _check_user(self, uid: int) -> None:
        """Raises KeysError for a user that has a key already, or needs none. The lock is held."""
        if uid < 0:
            return
        if uid == os.getuid():
            raise KeysError(f"user {uid} is the pool's owner, who needs no key over a Unix socket")
        for other in sorted(self._names()):
            with contextlib.suppress(KeysError, FileNotFoundError):
                if self._entry(other).unix_uid == uid:
                    break
        else:
            return
        raise KeysError(f"user {uid} connects as {other} already; revoke that first (codex-pool keys revoke {other})")

    def _entries(self) -> tuple[list[AllowedClient], list[str]]:
        try:
            self._check_directories()
        except KeysError as error:
            return [], [str(error)]
        entries: list[AllowedClient] = []
        problems: list[str] = []
        # A file that was copied would give two names one entry in the tables.
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
            keys = [entry.public_key, *(key.public_key for key in entry.former)]
            twin = next((taken[each] for each in (*keys, entry.principal) if each in taken), None)
            if twin is not None:
                what = "principal" if taken.get(entry.principal) == twin else "public key"
                problems.append(f"{self._path(name)} has the {what} of {twin} too")
                continue
            taken |= dict.fromkeys((*keys, entry.principal), name)
            entries.append(entry)
        return entries, problems

    def _revoked_entries(self, problems: list[str]) -> list[AllowedClient]:
        entries: list[AllowedClient] = []
        for principal in sorted(key_files.names_in(self._revoked)):
            path = self._revoked_path(principal)
            with contextlib.suppress(FileNotFoundError):
                try:
                    entry = key_files.read(path, AllowedClient)
                    check_entry(entry, path)
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

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of the list. Raises OSError when another process holds it for more than LOCK_LIMIT_S."""
        return locked(self._clients)

    def signature(self) -> object:
        """Return a value that changes when the allow-list does; examines each file, and reads none. Raises OSError."""
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
        check_entry(entry, path)
        return entry

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
