"""Scorers of plug-ins: each is a `python` scorer whose function an entry point names."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from ..plugins import discovery
from ..plugins.discovery import Plugin
from .python import Python
from .scorer import ScoreContext


class PluginScorer(Python):
    """A function of an installed distribution, called as `python` calls one; nothing of the dataset's goes before it.

    Its options are `arguments`, `timeout_s` and `threshold`.
    """

    plugin: ClassVar[Plugin]
    known: ClassVar = {name: option for name, option in Python.known.items() if name not in ("function", "path")}
    required: ClassVar[tuple[str, ...]] = ()
    main: ClassVar[str | None] = None

    @property
    def spec(self) -> dict[str, Any]:
        return {"type": self.type, "name": self.name, **self.options}

    @property
    def version(self) -> str:
        return f"{self.plugin.distribution} {self.plugin.value}"

    @property
    def private(self) -> list[Path]:
        return []

    @property
    def _function(self) -> str:
        return self.plugin.value

    @property
    def _path(self) -> str:
        return str(self.directory)

    def _request(self, context: ScoreContext | None) -> dict[str, Any]:
        return {**super()._request(context), "path": None}

    def check(self) -> list[str]:
        """Check that it is used, can be imported and takes these arguments."""
        if self.plugin.problem is not None:
            return [f"type: {self.plugin} is not used: {self.plugin.problem}"]
        problem = self._import_problem()
        if problem is None:
            return []
        return [f"type: {self.plugin} cannot be called: {problem}; correct its arguments, or upgrade the distribution"]


@cache
def kinds(built_in: tuple[str, ...]) -> dict[str, type[PluginScorer]]:
    """Return the scorers of plug-ins by the name of their type; what is installed is read once."""
    found = discovery.find(discovery.SCORERS, built_in)
    return {
        name: type("PluginScorer", (PluginScorer,), {"type": name, "plugin": plugin, "__doc__": PluginScorer.__doc__})
        for name, plugin in found.items()
    }
