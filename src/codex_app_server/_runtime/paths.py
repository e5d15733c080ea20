"""Paths that the app-server is to speak of: its messages are JSON, which has no bytes that are not UTF-8."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError


def shown(path: str | os.PathLike[str]) -> str:
    """A path as it can be printed anywhere: bytes that are not UTF-8 as escapes."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def check_utf8(what: str, path: str | os.PathLike[str]) -> None:
    """Raises InvalidInputError for a path whose bytes are not UTF-8."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeError:
        raise InvalidInputError(
            f"{what} {os.fspath(path)!r} is not UTF-8, and the app-server cannot speak of it; use a path that is"
        ) from None


def check_environment(environ: Mapping[str, str], cwd: str | os.PathLike[str] | None) -> None:
    """Raises InvalidInputError when an app-server could not tell its clients where it works, or where its home is.

    Codex 0.163.0 starts there all the same; then a turn never ends, or no thread can be started.
    """
    home = environ.get("CODEX_HOME") or os.path.join(environ.get("HOME", ""), ".codex")
    check_utf8("CODEX_HOME", home)
    try:
        check_utf8("cwd", os.getcwd() if cwd is None else cwd)
    except FileNotFoundError:
        return


def lone_surrogate(value: Any) -> str | None:
    """The first string in plain JSON values that UTF-8 cannot carry."""
    if isinstance(value, str | Path):
        text = os.fspath(value)
        return None if text.isascii() or _is_utf8(text) else text
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = [*value, *value.values()]
    elif isinstance(value, list | tuple):
        parts = value
    return next((found for part in parts if (found := lone_surrogate(part)) is not None), None)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
