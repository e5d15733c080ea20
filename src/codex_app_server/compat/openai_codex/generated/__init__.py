"""The wire types, under the path that the published SDK generates them to. `v2_all` is loaded when first used."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "v2_all":
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
