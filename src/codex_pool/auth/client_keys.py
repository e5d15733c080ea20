"""Key pairs, and the file that a client is handed: its own pair, and the server's public key."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from . import key_files
from .key_files import KeysError
from .tokens import new_token

_KEY = re.compile(r"[!-~]{40}")


class KeyPair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A CURVE pair, as ZeroMQ prints them (Z85)."""

    public_key: str
    secret_key: str


class ClientKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Contents of a client's key file: all that it needs to connect.

    `token` is for WebSocket; a file that was written before there were tokens has none.
    """

    name: str
    public_key: str
    secret_key: str
    server_public_key: str
    token: str = ""


def read_client_key(path: str | os.PathLike[str]) -> ClientKey:
    """The file that a client was handed. Raises KeysError."""
    path = Path(path)
    try:
        key = key_files.read(path, ClientKey)
    except FileNotFoundError:
        raise KeysError(
            f"there is no key file {path}; the pool's owner makes one with: codex-pool keys new NAME"
        ) from None
    check_pair(KeyPair(key.public_key, key.secret_key), path)
    if not is_key(key.server_public_key):
        raise KeysError(f"{path}: server_public_key is not a CURVE key of 40 characters; ask for a new key file")
    return key


def read_token(path: str | os.PathLike[str]) -> str:
    """The bearer token in the file that a client was handed. Raises KeysError."""
    key = read_client_key(path)
    if not key.token:
        raise KeysError(
            f"{path} has no token, because it was made before there were tokens; the pool's owner makes one with: "
            f"codex-pool keys renew {key.name}"
        )
    return key.token


def new_pair() -> KeyPair:
    """A new CURVE pair."""
    import zmq

    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def is_key(text: str) -> bool:
    """True for a CURVE key in Z85: 40 printable characters."""
    return _KEY.fullmatch(text) is not None


def check_pair(pair: KeyPair, path: Path) -> KeyPair:
    """Return the pair that a file has. Raises KeysError for one that is none."""
    for name in ("public_key", "secret_key"):
        if not is_key(getattr(pair, name)):
            raise KeysError(f"{path}: {name} is not a CURVE key of 40 characters; remove the file and make a new key")
    return pair


def client_key(name: str, pair: KeyPair, server: KeyPair) -> ClientKey:
    """Make what a client is handed."""
    return ClientKey(
        name=name,
        public_key=pair.public_key,
        secret_key=pair.secret_key,
        server_public_key=server.public_key,
        token=new_token(),
    )


@contextlib.contextmanager
def handed_over(file: Path, key: ClientKey, *, instead_of: str | None = None) -> Iterator[None]:
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
