"""CODEX_HOME, the directory in which codex keeps its configuration, login, threads and databases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ._runtime.files import open_file
from .errors import HomeError

VARIABLE = "CODEX_HOME"
# What codex opens as it starts: with a FIFO it would wait forever.
_OPENED = ("config.toml", "auth.json")


def codex_home(environ: Mapping[str, str] | None = None) -> Path:
    """The home that a codex started with `environ` uses, absolute; by default the one of this process.

    `$CODEX_HOME`, or `.codex` in the user's home directory; an empty variable counts as unset, as it does for codex.
    """
    environ = os.environ if environ is None else environ
    named = environ.get(VARIABLE)
    if named:
        return Path(named).absolute()
    base = environ.get("HOME")
    try:
        return (Path(base) if base else Path.home()).absolute() / ".codex"
    except RuntimeError as error:
        raise HomeError(f"no home directory: {error}; set {VARIABLE} or HOME to a directory") from None


def ensure_home(environ: Mapping[str, str] | None = None) -> Path:
    """Make the home that `codex_home` names if it is missing, mode 0700, and check that codex can write to it.

    codex itself makes only `~/.codex`, and ends when a directory named by CODEX_HOME does not exist. Where config.toml
    or auth.json is a FIFO, it does not start, and does not end either.
    Raises HomeError.
    """
    home = codex_home(environ)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise HomeError(f"{VARIABLE} {home} is not a directory; name a directory, or remove what is there") from None
    except OSError as error:
        remedy = f"set {VARIABLE} to another directory"
        raise HomeError(f"{VARIABLE} {home} cannot be made: {error.strerror}; {remedy}") from None
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        raise HomeError(
            f"{VARIABLE} {home} cannot be written: codex keeps threads and databases there; make it writable, "
            f"or set {VARIABLE} to another directory"
        )
    for name in _OPENED:
        check_file(home / name)
    return home


def check_file(path: Path) -> None:
    """Raises HomeError for a file of a home that is there and cannot be read: a FIFO, a loop of links."""
    try:
        open_file(path).close()
    except FileNotFoundError:
        return
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> HomeError:
    """The error for a file of a home that cannot be read."""
    return HomeError(f"{path} cannot be read: {error.strerror}; it has to be a file that you can read")
