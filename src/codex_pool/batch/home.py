"""The CODEX_HOME of a run: one of its own, the user's, or any other."""

from __future__ import annotations

from pathlib import Path

from codex_app_server.errors import HomeError
from codex_app_server.home import codex_home
from codex_pool.homes import make_home, renew_config

RUN, USER = "run", "user"


def prepare(choice: str, own: Path) -> Path:
    """The home that `choice` names: `run` (the directory `own`, made from the user's), `user`, or a path.

    What is there from an earlier run is kept. Raises HomeError.
    """
    if choice == RUN:
        return make_home(own, codex_home(), follow=False)
    if choice == USER:
        return codex_home()
    path = Path(choice).expanduser().resolve()
    if not path.is_dir():
        raise HomeError(f"--home {choice}: {path} is not a directory; give run, user, or an existing CODEX_HOME")
    return path


def renew(choice: str, own: Path) -> bool:
    """Take over the user's config.toml as it is now, where the run's own cannot be used; whether that is another."""
    return choice == RUN and renew_config(own, codex_home())
