"""CURVE keys on disk: the server's pair, the allow-list of its clients, and the file that a client is handed.

    keys/                 0700    $XDG_CONFIG_HOME/codex-pool/keys unless told otherwise
      server.json         0600    the pair of the server, made on first need
      clients/            0700    the allow-list: one file per identity, its public key and what it may do
        NAME.json         0600
    NAME.key              0600    handed over to the client: its own pair, and the server's public key

Files are written whole or not at all. One that others could read or change is refused, with the remedy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from codex_pool.broker.identity import MAX_MESSAGE_BYTES, Identity, known_pattern
from codex_pool.endpoints import EndpointError

ENVIRONMENT = "CODEX_POOL_KEYS"
MAX_FILE_BYTES = 1024 * 1024
MAX_CLIENTS = 10_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[!-~]{40}")
_OUT_OF_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_FILE_MODE, _DIRECTORY_MODE = 0o600, 0o700

T = TypeVar("T")


class KeysError(EndpointError):
    """Keys that cannot be used; the message says why and what to do."""


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
    """An entry of the allow-list: an identity, and its public key."""

    public_key: str


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

    def server(self) -> KeyPair:
        """The server's pair, made if there is none. Raises KeysError."""
        self._make_directories()
        path = self.directory / "server.json"
        if not path.exists():
            # Who comes second finds the pair of the first.
            with contextlib.suppress(FileExistsError):
                _write_new(path, new_pair())
        return _check_pair(_read(path, KeyPair), path)

    def make_directory(self) -> Path:
        """The directory of the keys, made if there is none. Raises KeysError."""
        self._make_directories()
        return self.directory

    def new(self, identity: Identity, file: Path) -> ClientKey:
        """A key for a new identity: written to `file`, which is not there yet, and allowed. Raises KeysError."""
        check_name(identity.name)
        check_limits(identity)
        server, pair = self.server(), new_pair()
        entry = AllowedClient(public_key=pair.public_key, **msgspec.structs.asdict(identity))
        key = ClientKey(
            name=identity.name,
            public_key=pair.public_key,
            secret_key=pair.secret_key,
            server_public_key=server.public_key,
        )
        try:
            _write_new(file, key)
        except FileExistsError:
            raise KeysError(f"{file} is there already; give another file with --output") from None
        except OSError as error:
            raise KeysError(f"{file} cannot be written: {error.strerror}; give another file with --output") from None
        try:
            _write_new(self._path(identity.name), entry)
        except FileExistsError:
            file.unlink()
            raise KeysError(
                f"there is a key for {identity.name} already; revoke it first (codex-pool keys revoke "
                f"{identity.name}), or give another name"
            ) from None
        except BaseException:
            file.unlink()
            raise
        return key

    def revoke(self, name: str) -> None:
        """Take an identity off the allow-list. Raises KeysError if it is not on it."""
        self._check_directories()
        try:
            self._path(check_name(name)).unlink()
        except FileNotFoundError:
            names = ", ".join(sorted(self._names())) or "none"
            raise KeysError(f"there is no key for {name}; there are: {names}") from None

    def allowed(self) -> AllowList:
        """The allow-list as it is now. A file that cannot be used lets nobody in, and keeps nobody else out.

        Raises OSError when the system has nothing left to read files with.
        """
        try:
            self._check_directories()
        except KeysError as error:
            return AllowList({}, (str(error),))
        clients: dict[str, Identity] = {}
        problems: list[str] = []
        for name in sorted(self._names()):
            try:
                entry = self._entry(name)
            except FileNotFoundError:
                continue
            except KeysError as error:
                problems.append(str(error))
                continue
            if entry.public_key in clients:
                problems.append(f"{self._path(name)} has the public key of {clients[entry.public_key].name} too")
                continue
            clients[entry.public_key] = Identity(
                **{field: getattr(entry, field) for field in Identity.__struct_fields__}
            )
        return AllowList(clients, tuple(problems))

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
        entry = _read(path, AllowedClient)
        if entry.name != name:
            raise KeysError(f"{path} is of {entry.name!r}; its name is to be that of the file")
        check_name(name)
        check_limits(entry)
        if not _KEY.fullmatch(entry.public_key):
            raise KeysError(f"{path}: public_key is not a CURVE key of 40 characters; revoke {name} and make a new one")
        return entry

    def _path(self, name: str) -> Path:
        return self._clients / f"{name}.json"

    def _names(self) -> list[str]:
        try:
            found = os.listdir(self._clients)
        except FileNotFoundError:
            return []
        return [name.removesuffix(".json") for name in found if name.endswith(".json")][:MAX_CLIENTS]

    def _make_directories(self) -> None:
        for path in (self.directory, self._clients):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=_DIRECTORY_MODE, parents=True)
        self._check_directories()

    def _check_directories(self) -> None:
        for path in (self.directory, self._clients):
            with contextlib.suppress(FileNotFoundError):
                _check_owner(path, path.lstat(), _DIRECTORY_MODE)


def read_client_key(path: str | os.PathLike[str]) -> ClientKey:
    """The file that a client was handed. Raises KeysError."""
    path = Path(path)
    try:
        key = _read(path, ClientKey)
    except FileNotFoundError:
        raise KeysError(
            f"there is no key file {path}; the pool's owner makes one with: codex-pool keys new NAME"
        ) from None
    _check_pair(KeyPair(key.public_key, key.secret_key), path)
    if not _KEY.fullmatch(key.server_public_key):
        raise KeysError(f"{path}: server_public_key is not a CURVE key of 40 characters; ask for a new key file")
    return key


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


def _check_owner(path: Path, status: os.stat_result, mode: int) -> None:
    """It is this user's, what it should be, and nobody else's to read."""
    directory = mode == _DIRECTORY_MODE
    expected = "directory" if directory else "file"
    if not (stat.S_ISDIR(status.st_mode) if directory else stat.S_ISREG(status.st_mode)):
        raise KeysError(f"{path} is not a {expected}; remove it, or name another place with --keys")
    if status.st_uid != os.getuid():
        raise KeysError(f"{path} belongs to user {status.st_uid}, not to {os.getuid()}; name another with --keys")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise KeysError(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, so that others may use it; expected {mode:04o}: "
            f"chmod {mode:o} {path}, and make new keys if others have read them"
        )


def _read(path: Path, type: type[T]) -> T:
    """Raises FileNotFoundError, KeysError for what is wrong with the file, and OSError when the system is short."""
    try:
        # A symbolic link, or something that blocks when it is opened, is no key file.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _OUT_OF_MEANS:
            raise
        raise KeysError(f"{path} cannot be opened: {error.strerror}; expected a file of this user") from None
    with open(fd, "rb") as file:
        _check_owner(path, os.fstat(fd), _FILE_MODE)
        content = file.read(MAX_FILE_BYTES)
    try:
        return msgspec.json.decode(content, type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise KeysError(f"{path} is not a key file: {error}; make a new key") from None


def _write_new(path: Path, value: msgspec.Struct) -> None:
    """Write a file that is not there yet, whole or not at all. Raises FileExistsError."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
    try:
        with open(fd, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
            file.flush()
            os.fsync(fd)
        # Not rename: that would replace what is there.
        os.link(temporary, path)
    finally:
        temporary.unlink()
