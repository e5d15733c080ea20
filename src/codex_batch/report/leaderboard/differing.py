"""Settings of results in words: those that all have, and those that differ. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codex_app_server._runtime.text import one_line

from ...configuration.effective import flattened
from .results import RunResult

SHOWN_CHARACTERS = 40
SAME_SHOWN = 8
# First in every line, in this order.
_FIRST = ("model", "effort", "provider", "codex", "AGENTS.md", "sandbox", "approval policy")
_NAMES = {"codex_version": "codex", "sources": "instructions of the home", "sandbox.type": "sandbox"}
# Values that say nothing to people: only whether they differ.
_SWITCHES = {"guarded": (True, "unguarded"), "trusting": (False, "trusts workspaces")}
"""Switches by their default, named for what is said where they have another value."""
_OPAQUE = frozenset({"AGENTS.md", "instructions of the home"})
_ABSENT: tuple[Any, ...] = (None, [], {}, "")


@dataclass(frozen=True, slots=True)
class Differing:
    """Settings that results have in common, and a line for each result of what is its own, in the order of the results.

    `unknown` are the places of results whose configuration is not known.
    """

    same: str
    lines: Sequence[str]
    unknown: Sequence[int]


def settings_of(result: RunResult) -> dict[str, Any]:
    """Return the settings of a result by name, those that are set."""
    return settings(result.effective, result.answered, result.variant_settings)


def settings(effective: Any, answered: Mapping[str, Mapping[str, int]], variant: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are set, by name: those of the effective configuration, else what records say.

    `answered` counts records by their values, `variant` is a variant as its run has stored it. AGENTS.md is its digest.
    """
    flat = _flattened(effective)
    found = {_NAMES.get(name, name.replace("_", " ")): value for name, value in flat.items() if name not in _SWITCHES}
    found |= {said: True for name, (default, said) in _SWITCHES.items() if flat.get(name, default) is not default}
    for name in ("model", "effort", "codex_version"):
        shown = _NAMES.get(name, name)
        if found.get(shown) in _ABSENT and answered.get(name):
            found[shown] = " and ".join(answered[name])
    agents_md = variant.get("agents_md")
    digest = hashlib.sha256(agents_md.encode()).hexdigest()[:16] if isinstance(agents_md, str) else None
    found |= {"AGENTS.md": digest, "codex binary": variant.get("codex_bin")}
    return {name: value for name, value in found.items() if value not in _ABSENT}


def model_and_effort(found: Mapping[str, Any]) -> str:
    """Return the model and effort of settings on one line, as far as they are known."""
    return " · ".join(str(found[name]) for name in ("model", "effort") if found.get(name))


def _flattened(effective: Any) -> Mapping[str, Any]:
    if not isinstance(effective, Mapping):
        return {}
    try:
        return flattened(effective)
    except ValueError:
        # Of a codex-pool that wrote it another way.
        return {}


def differing(results: Sequence[RunResult], baseline: int | None = None) -> Differing:
    """Describe what differs among results: against the result at the place `baseline`, or each by its own values."""
    found = [settings_of(result) for result in results]
    names = _ordered(dict.fromkeys(name for one in found for name in one))
    apart = [name for name in names if len({_text(one.get(name)) for one in found}) > 1]
    same = [_named(name, found[0][name]) for name in names if name not in apart and name not in _OPAQUE]
    if baseline is None:
        lines = [", ".join(filter(None, (_own(name, one) for name in apart))) for one in found]
    else:
        base = found[baseline]
        lines = [line(base, one) if place != baseline else "baseline" for place, one in enumerate(found)]
    unknown = [place for place, result in enumerate(results) if not isinstance(result.effective, Mapping)]
    more = [f"and {len(same) - SAME_SHOWN} more settings"] if len(same) > SAME_SHOWN else []
    return Differing(", ".join([*same[:SAME_SHOWN], *more]), lines, unknown)


def line(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Describe what differs between two `settings`: "model a → b, effort low → high, AGENTS.md changed"."""
    names = _ordered(dict.fromkeys((*before, *after)))
    parts = [
        _change(name, before.get(name), after.get(name))
        for name in names
        if _text(before.get(name)) != _text(after.get(name))
    ]
    return ", ".join(parts) or "the same settings"


def _change(name: str, before: Any, after: Any) -> str:
    if before in _ABSENT:
        return f"{name} added" if name in _OPAQUE else f"{_named(name, after)} (was not set)"
    if after in _ABSENT:
        return f"{name} removed" if name in _OPAQUE else f"{name} not set (was {_shown(before)})"
    return f"{name} changed" if name in _OPAQUE else f"{name} {_shown(before)} → {_shown(after)}"


def _own(name: str, found: Mapping[str, Any]) -> str | None:
    if name not in found:
        return f"no {name}" if name in _OPAQUE else None
    return f"own {name}" if name in _OPAQUE else _named(name, found[name])


def _named(name: str, value: Any) -> str:
    return name if value is True else f"{name} {_shown(value)}"


def _ordered(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


def _text(value: Any) -> str:
    return "" if value in _ABSENT else json.dumps(value, sort_keys=True)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return one_line(text, SHOWN_CHARACTERS, "…")
