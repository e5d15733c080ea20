"""Variables whose value is `${NAME}` or `${NAME:-DEFAULT}`: taken from the environment of the run. Pure.

They are looked up when they are used: a value that may be a secret is in no sample, and in no run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_REFERENCE = re.compile(r"\$\{([^}:]+)(?::-(.*))?\}", re.DOTALL)


class UnsetVariable(ValueError):
    """A variable that has neither a value nor a default; the message names it."""


def values_of(variables: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables with their values of an environment. Raises UnsetVariable."""
    return {name: _value(name, text, environment) for name, text in variables.items()}


def _value(name: str, text: str, environment: Mapping[str, str]) -> str:
    reference = _REFERENCE.fullmatch(text)
    if reference is None:
        return text
    value = environment.get(reference[1], reference[2])
    if value is None:
        raise UnsetVariable(f"{name} is {text}, and the environment has no {reference[1]}; set it, or give a default")
    return value
