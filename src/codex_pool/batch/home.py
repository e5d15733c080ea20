"""The CODEX_HOME of a run: one of its own, the user's, or any other."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from codex_app_server.testing.loopback.home import MARK

RUN, USER = "run", "user"


class HomeError(ValueError):
    """A home that cannot be used; the message says why and what to do."""


def user_home() -> Path:
    """The user's own CODEX_HOME."""
    return Path(os.environ.get("CODEX_HOME") or Path.home() / ".codex")


def prepare(choice: str, own: Path) -> Path:
    """The home that `choice` names: `run` (the directory `own`, made from the user's), `user`, or a path.

    A home of its own has a copy of the user's config.toml and a link to the user's auth.json: secrets are not copied
    into run directories, and a refreshed login is everybody's. What is there from an earlier run is kept, unless it and
    the user's are of a loopback model: that may listen somewhere else by now. Raises HomeError.
    """
    if choice == USER:
        return user_home()
    if choice != RUN:
        path = Path(choice).expanduser().resolve()
        if not path.is_dir():
            raise HomeError(f"--home {choice}: {path} is not a directory; give run, user, or an existing CODEX_HOME")
        return path
    user = user_home()
    if _is_loopback(own / "config.toml") and not _is_loopback(user / "config.toml"):
        raise HomeError(
            f"{own} was made with --demo, or from the home of a loopback model, and talks to no real one; "
            "use another directory, or --fresh"
        )
    try:
        _make(own, user)
    except OSError as error:
        raise HomeError(f"{own} cannot be made a CODEX_HOME: {error}") from None
    return own


def _make(own: Path, user: Path) -> None:
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = own / "config.toml"
    if (not config.exists() or _is_loopback(config)) and (user / "config.toml").is_file():
        partial = own / "config.toml.partial"
        shutil.copyfile(user / "config.toml", partial)
        partial.chmod(0o600)
        partial.replace(config)
    login, link = user / "auth.json", own / "auth.json"
    if link.is_symlink() and not link.exists():
        link.unlink()
    if login.is_file() and not (link.exists() or link.is_symlink()):
        link.symlink_to(login.resolve())


def _is_loopback(config: Path) -> bool:
    try:
        return config.read_text(encoding="utf-8", errors="replace").startswith(MARK)
    except OSError:
        return False
