"""Specs of modules that have moved: importable by their former names for one release more."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Mapping
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType


def spec_of(name: str, moved: Mapping[str, str]) -> ModuleSpec | None:
    """The spec of a module by its former name, or of one within a package by its former name.

    `moved` maps former names to those of today. The module of today itself is imported, so that its classes are the
    same ones under either name. None for a name that has not moved.
    """
    above, rest = name, ""
    while above and above not in moved:
        above, _, last = above.rpartition(".")
        rest = f".{last}{rest}"
    if not above or (found := importlib.util.find_spec(moved[above] + rest)) is None:
        return None
    return ModuleSpec(name, _Alias(name, found.name), is_package=found.submodule_search_locations is not None)


class _Alias(Loader):
    """Loader that gives the module of today."""

    def __init__(self, name: str, today: str) -> None:
        self._name, self._today = name, today

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(
            f"the module {self._name} is now {self._today}; the former name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        module = importlib.import_module(self._today)
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has given the module the spec of the alias.
        module.__spec__ = self._own

    def get_code(self, name: str) -> CodeType | None:
        """Code of a module that is run as a program, for `python -m`."""
        loader = getattr(importlib.util.find_spec(self._today), "loader", None)
        code: CodeType | None = loader.get_code(self._today) if loader is not None else None
        return code
