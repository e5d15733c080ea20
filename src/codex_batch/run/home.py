"""The CODEX_HOME of a run: one of its own, the user's, or any other."""

from __future__ import annotations

from pathlib import Path

from codex_app_server._runtime.files import resolved
from codex_app_server.errors import InvalidInputError
from codex_app_server.home import codex_home
from codex_pool.homes import ConfigCopy, daemon_home, make_home, renew_config
from codex_pool.protocol.endpoints import is_tcp

from ..redaction.scrub import restore_home

RUN, USER = "run", "user"
# The file of a login in a CODEX_HOME.
LOGIN = "auth.json"


def prepare(choice: str, own: Path) -> Path:
    """The home that `choice` names: `run` (the directory `own`, made from the user's), `user`, or a path.

    What is there from an earlier run is kept. Raises InvalidInputError, HomeError.
    """
    if choice == RUN:
        restore_home(own, codex_home())
        return make_home(own, codex_home(), follow=False)
    if choice == USER:
        return codex_home()
    path = resolved(Path(choice).expanduser())
    if not path.is_dir():
        raise InvalidInputError(
            f"--home {choice}: {path} is not a directory; give run, user, or an existing CODEX_HOME"
        )
    return path


def known(choice: str, endpoint: str | None) -> list[Path]:
    """The homes, without links, that a run on `endpoint`, or on a pool of its own, may use, beside one of its own."""
    homes = [codex_home()]
    if endpoint is not None and not is_tcp(endpoint):
        homes.append(daemon_home(endpoint))
    if endpoint is None and choice not in (RUN, USER):
        homes.append(Path(choice).expanduser())
    return [resolved(path) for path in homes]


def copy(choice: str, own: Path) -> ConfigCopy | None:
    """The config.toml that was made of the user's, None where it is the user's own."""
    return ConfigCopy(own, codex_home()) if choice == RUN else None


def renew(choice: str, own: Path) -> bool:
    """Take over the user's config.toml as it is now, where the run's own cannot be used; return True if it differs."""
    return choice == RUN and renew_config(own, codex_home())
