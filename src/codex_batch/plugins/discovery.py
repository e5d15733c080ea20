"""Plug-ins of installed distributions: found by their entry points, loaded when they are named.

An entry point that cannot be used is kept with its problem, so that it is reported by name, and never in the way of a
run that does not name it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions
from typing import Any

from codex_app_server._runtime.text import one_line

PREFIX = "codex_pool."
GROUPS = ("codex_pool.scorers", "codex_pool.datasets", "codex_pool.exporters", "codex_pool.on_record")
SCORERS, DATASETS, EXPORTERS, ON_RECORD = GROUPS
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_SHOWN_CHARACTERS = 300
LIST = "codex-pool plugins lists what is installed"


class PluginError(ValueError):
    """A plug-in that cannot be used; the message names it and its distribution, and gives the remedy."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """An entry point of a distribution."""

    group: str
    name: str
    value: str
    """`module:object`."""
    distribution: str
    """Name and version."""
    problem: str | None = None
    """The reason why it is not used; None if it is."""

    def __str__(self) -> str:
        return f"the plug-in {self.name!r} of {self.group} in {self.distribution}"

    def load(self) -> Any:
        """Import the object. Raises PluginError, whatever the import raises."""
        if self.problem is not None:
            raise PluginError(f"{self} is not used: {self.problem}")
        try:
            found = EntryPoint(self.name, self.value, self.group).load()
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self} cannot be imported from {self.value}: {type(error).__name__}: "
                f"{one_line(str(error), _SHOWN_CHARACTERS)}; upgrade or remove that distribution"
            ) from error
        if not callable(found):
            raise PluginError(
                f"{self}: {self.value} is {type(found).__name__}; expected a function or a class; "
                "upgrade or remove that distribution"
            )
        return found


def find(group: str, built_in: Collection[str]) -> dict[str, Plugin]:
    """Return the plug-ins of a group by name, those with a problem too; without what `built_in` has names of."""
    found = (plugin for plugin in plugins({group: built_in}) if plugin.group == group)
    return {plugin.name: plugin for plugin in found if plugin.name not in built_in}


def plugins(built_in: Mapping[str, Collection[str]]) -> list[Plugin]:
    """Return all entry points of groups that begin as ours do, checked, in order of group and name.

    `built_in` has names that are taken, by group.
    """
    points = list(_installed())
    count = Counter((point.group, point.name) for point in points)
    checked = (_checked(point, built_in.get(point.group, ()), count[point.group, point.name]) for point in points)
    return sorted(checked, key=lambda plugin: (plugin.group, plugin.name, plugin.distribution))


def _installed() -> Iterator[EntryPoint]:
    """Iterate over the entry points of each distribution; of one that is installed twice the first on sys.path."""
    seen = set()
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name not in seen:
            seen.add(name)
            yield from (point for point in distribution.entry_points if point.group.startswith(PREFIX))


def _checked(point: EntryPoint, built_in: Collection[str], count: int) -> Plugin:
    problem = None
    if point.group not in GROUPS:
        problem = f"the group is not known; expected one of {', '.join(GROUPS)}: correct it, or upgrade codex-pool"
    elif _NAME.fullmatch(point.name) is None:
        problem = "the name is not a letter and up to 63 letters, digits, '_', '-' and '.'; give it another one"
    elif point.name in built_in:
        problem = "codex-pool has one of that name; give it another one"
    elif count > 1:
        problem = f"{count} distributions have one of that name; remove all but one of them"
    dist = point.dist
    distribution = "an unknown distribution" if dist is None else f"{dist.name} {dist.version}"
    return Plugin(point.group, point.name, point.value, distribution, problem)
