"""RunHome: the CODEX_HOME of a run's own pools, made when the first of them needs it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from codex_pool.demo import demo_home

from ..configuration.settings import Settings
from ..store import RunDirectory, layout
from . import home
from .launch import NotStartedError


class RunHome:
    """See the module's docstring. `say` shows a message."""

    def __init__(self, settings: Settings, directory: RunDirectory, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._directory = directory
        self._say = say
        self._path: Path | None = None

    def open(self, stack: contextlib.AsyncExitStack) -> Path:
        """Return the home, which with --demo lasts as long as `stack`.

        Raises NotStartedError, InvalidInputError, HomeError.
        """
        if self._path is None:
            self._path = self._make(stack)
        return self._path

    def _make(self, stack: contextlib.AsyncExitStack) -> Path:
        settings, path = self._settings, self._directory.file(layout.HOME)
        if settings.demo:
            try:
                return stack.enter_context(demo_home(path, str(settings.demo_script or "demo")))
            except RuntimeError as error:
                raise NotStartedError(str(error)) from None
        path = home.prepare(settings.home, path)
        if settings.home == home.USER:
            trusted = ", and workspaces that codex trusts are trusted in your home"
            self._say(f"--home user: threads are stored among yours{trusted if settings.trust_workspaces else ''}")
        return path
