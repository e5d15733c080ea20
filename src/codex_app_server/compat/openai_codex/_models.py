"""The wire types by their published names, loaded when first used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ._names import left_out_error

# Strings in a class of their own.
_ALIASES = frozenset({"AbsolutePathBuf", "AgentPath", "LegacyAppPathString", "PathUri", "ThreadId"})


def lazy_models(
    module: str, only: frozenset[str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module of wire types: of `only` these, else of all."""
    from codex_app_server.generated.models import MODULES

    def get(name: str) -> Any:
        if name.startswith("_") or (only is not None and name not in only):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = _find(module, name)
        setattr(sys.modules[module], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[module]), *(MODULES if only is None else only)})

    return get, names


def _find(module: str, name: str) -> Any:
    from codex_app_server.generated import models

    from . import _shapes

    if name in ("ReasoningEffort", "ThreadSource"):
        return getattr(_shapes, name)
    if name in _ALIASES:
        return _shapes.Text
    if name not in models.MODULES:
        raise left_out_error(
            module.rpartition("openai_codex.")[2],
            name,
            "codex_app_server.generated.models has the types of the protocol, requests and notifications "
            "by the type of their params",
        )
    value = getattr(models, name)
    # An enumeration that is a RootModel there is made by `model_validate`, too.
    if not isinstance(value, type) or name == "ReasoningSummary":
        return _shapes.union(name)
    return value
