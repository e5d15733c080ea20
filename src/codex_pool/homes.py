"""Homes of pools: a CODEX_HOME made of the user's, for a batch or a daemon that others may use.

    config.toml        the user's, without [projects], without databases shared by all, with absolute paths
    auth.json          a link to the user's, so that a login and a refreshed token are the same for both
    codex-pool/        what a pool keeps for itself:
      home.json        what the home was made of
      sqlite/N/        databases of slot N

codex writes the directories that it trusts into [projects] of the home it runs with, and runs what lies in a trusted
directory outside of any sandbox. In a home of its own a pool neither inherits such trust nor gives any to the user's.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import tomli
import tomli_w

from codex_app_server._runtime.files import open_file, read_file, resolved, write_atomic
from codex_app_server.errors import HomeError
from codex_app_server.home import check_file, ensure_home, unreadable
from codex_app_server.testing.loopback.home import MARK

from .protocol import endpoints

PRIVATE = "codex-pool"
_CONFIG, _LOGIN = "config.toml", "auth.json"
_LEFT_OUT = ("projects", "sqlite_home")
# What codex keeps of threads, beside databases that it makes again.
_OF_THREADS = ("sessions", "archived_sessions", "session_index.jsonl")
SHOWN = 5
# Values of these keys name files; a relative one begins at the directory of the config.toml.
_PATH_KEYS = frozenset(
    {
        "ca-certificate",
        "client-certificate",
        "client-private-key",
        "config_file",
        "experimental_compact_prompt_file",
        "experimental_instructions_file",
        "log_dir",
        "model_catalog_json",
        "model_instructions_file",
        "path",
    }
)


class _Made(msgspec.Struct):
    """Contents of home.json. `of`: digest of the config.toml that the home's own was made of."""

    of: str


def make_home(own: Path, user: Path, *, follow: bool) -> Path:
    """Make `own` a home of the pool, or bring one up to date, and answer it.

    With `follow` its config.toml is made again when the user's has changed; without, only when it cannot be read, or
    is a loopback model's, which may listen somewhere else by now. It trusts no directory afterwards. A login link that
    a log-out has removed stays so.
    Raises HomeError; a config.toml of the user that is no TOML is refused, and nothing is changed.
    """
    check_file(user / _LOGIN)
    source, current, made = _read(user / _CONFIG), _read(own / _CONFIG), _made(own / PRIVATE / "home.json")
    if is_loopback(own / _CONFIG) and not is_loopback(user / _CONFIG):
        raise HomeError(
            f"{own} was made with --demo, or from the home of a loopback model, and talks to no real one; "
            "use another directory, or --fresh"
        )
    of = "" if source is None else hashlib.sha256(source).hexdigest()
    if source is not None and (_is_unusable(current) or (follow and (made is None or made.of != of))):
        config: bytes | None = _derived(source, user)
    elif source is None and follow:
        config = None
    elif current is not None and (made is None or _trusts(current)):
        # Copied as it was, by a version that left nothing out; or a thread has had a directory trusted.
        config = _derived(current, own)
    else:
        config = current
    ensure_home({"CODEX_HOME": str(own)})
    try:
        (own / PRIVATE).mkdir(mode=0o700, exist_ok=True)
        if config is None:
            (own / _CONFIG).unlink(missing_ok=True)
        elif config != current:
            write_atomic(own / _CONFIG, config, mode=0o600)
        _link_login(own / _LOGIN, user / _LOGIN, is_new=made is None)
        write_atomic(own / PRIVATE / "home.json", msgspec.json.encode(_Made(of)), mode=0o600)
    except OSError as error:
        raise HomeError(f"{own} cannot be made a CODEX_HOME: {error}") from None
    return own


class ConfigCopy(NamedTuple):
    """The config.toml of the home `own`, which was made of that of the home `user`."""

    own: Path
    user: Path

    def named(self, message: str) -> str:
        """A message of codex about the copy, as one about the user's file; line and column are those of the copy.

        codex names the file with or without its links.
        """
        copied = self.own / _CONFIG
        for name in dict.fromkeys((str(copied), str(resolved(copied)))):
            place = re.compile(rf"{re.escape(name)}(:[0-9]+)*")
            if place.search(message):
                return place.sub(lambda at: f"{self.user / _CONFIG} (copied to {at[0]})", message)
        return message


def renew_config(own: Path, user: Path) -> bool:
    """Make config.toml again of the user's as it is now; whether that changed anything. Raises HomeError."""
    source = _read(user / _CONFIG)
    if source is None:
        return False
    config = _derived(source, user)
    if _read(own / _CONFIG) == config:
        return False
    write_atomic(own / _CONFIG, config, mode=0o600)
    return True


def daemon_home(endpoint: str) -> Path:
    """The own home of the daemon at an ipc:// endpoint: `$XDG_STATE_HOME/codex-pool/NAME`, by default ~/.local/state.

    It outlives the endpoint's directory, which is usually gone after a restart of the machine.
    """
    return daemon_home_at(endpoint, endpoints.default_endpoint())


def daemon_home_at(endpoint: str, default: str) -> Path:
    """The same, where `default` is the default endpoint; nothing is made."""
    base = os.environ.get("XDG_STATE_HOME")
    state = Path(base) if base and os.path.isabs(base) else Path.home() / ".local" / "state"
    path = endpoints.ipc_path(endpoint)
    is_default = path == endpoints.ipc_path(default)
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return state / "codex-pool" / (path.stem if is_default else f"{path.stem}-{digest}")


def demo_home_of(endpoint: str) -> Path:
    """The home of a daemon with --demo at an ipc:// endpoint, beside the own home of one without."""
    home = daemon_home(endpoint)
    return home.with_name(f"{home.name}.demo")


def left_behind(own: Path, user: Path) -> str | None:
    """A notice for the first start of a daemon on a home of its own, None if there is nothing to report.

    It names the threads that stay in the user's home, and how to take them along.
    """
    threads = threads_in(user)
    if (own / PRIVATE / "home.json").exists() or not threads:
        return None
    several = len(threads) > 1
    count, are = (f"{len(threads):,} threads stay", "are") if several else ("1 thread stays", "is")
    shown = ", ".join(threads[:SHOWN]) + (", ..." if len(threads) > SHOWN else "")
    taken = [name for name in _OF_THREADS if (user / name).exists()]
    sources = " ".join(shlex.quote(str(user / name)) for name in taken)
    return (
        f"this daemon lets keys in, so it has a home of its own, {own}; {count} in {user} and {are} not seen here: "
        f"{shown}\n"
        f"  to take them along, stop the daemon, then   cp -a {sources} {shlex.quote(str(own))}/\n"
        "  to go on with your own home                 codex-pool serve --home user ..."
    )


def is_loopback(config: Path) -> bool:
    """True when this config.toml was written for a loopback model."""
    try:
        with open_file(config) as file:
            return file.read(len(MARK)) == MARK.encode()
    except OSError:
        return False


def threads_in(home: Path) -> list[str]:
    """File names of the threads stored in a home, the newest first; archived ones are left out."""
    found = sorted((home / "sessions").rglob("rollout-*.jsonl"), key=lambda path: path.name, reverse=True)
    return [path.stem.removeprefix("rollout-") for path in found]


def _is_unusable(config: bytes | None) -> bool:
    if config is None or config.startswith(MARK.encode()):
        return True
    try:
        _parse(config)
    except ValueError:
        return True
    return False


def _trusts(config: bytes) -> bool:
    try:
        return "projects" in _parse(config)
    except ValueError:
        return False


def _read(config: Path) -> bytes | None:
    try:
        return read_file(config)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(config, error) from None


def _derived(source: bytes, directory: Path) -> bytes:
    """The text of a config.toml without what is the user's alone. `directory`: where its relative paths begin."""
    try:
        config = _parse(source)
    except ValueError as error:
        raise HomeError(f"{directory / _CONFIG} is no TOML: {error}; correct it and try again") from None
    for key in _LEFT_OUT:
        config.pop(key, None)
    for table, key, value in _paths(config):
        # A command line is no path, and what is not there was meant for some other place.
        if not os.path.isabs(value) and not value.startswith("~") and (directory / value).exists():
            table[key] = str((directory / value).absolute())
    text = tomli_w.dumps(config)
    return ((MARK if source.startswith(MARK.encode()) else "") + text).encode()


def _parse(source: bytes) -> dict[str, Any]:
    config: dict[str, Any] = tomli.loads(source.decode("utf-8-sig"))
    return config


def _paths(value: Any) -> Iterator[tuple[dict[str, Any], str, str]]:
    if isinstance(value, dict):
        for key, part in list(value.items()):
            if isinstance(part, str) and key in _PATH_KEYS:
                yield value, key, part
            else:
                yield from _paths(part)
    elif isinstance(value, list):
        for part in value:
            yield from _paths(part)


def _made(path: Path) -> _Made | None:
    try:
        return msgspec.json.decode(read_file(path), type=_Made)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError:
        return _Made("")


def _link_login(own: Path, user: Path, *, is_new: bool) -> None:
    if own.is_symlink() and Path(os.readlink(own)) != resolved(user):
        # Of another user's home, or of one that was moved.
        own.unlink()
        is_new = True
    if is_new and not (own.exists() or own.is_symlink()):
        # Also to one that is not there yet: a login is then the user's as well.
        own.symlink_to(resolved(user))
