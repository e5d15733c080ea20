"""Fingerprints of samples: what the run's configuration and their own directory make of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from .effective import Effective, OfSample, fingerprint, of_sample
from .workspace import Project


class Fingerprints:
    """Call it with a sample's JSON. Each distinct answer is made once."""

    def __init__(self, effective: Effective) -> None:
        self._effective = effective
        self._made: dict[OfSample, str] = {}
        self._instructions: dict[tuple[str, bool], str | None] = {}

    def __call__(self, spec: Mapping[str, Any]) -> str:
        own = of_sample(spec, self._instructions_of(spec))
        found = self._made.get(own)
        if found is None:
            found = self._made[own] = fingerprint(self._effective, own)
        return found

    def _instructions_of(self, spec: Mapping[str, Any]) -> str | None:
        """A digest of the AGENTS.md that the agent gets of `cwd` or `template`; of a commit it is in the sample."""
        template = (spec.get("workspace") or {}).get("template")
        place = spec.get("cwd") or template
        if place is None:
            return None
        key = (place, template is not None)
        if key not in self._instructions:
            text = Project(place, own=template is not None).instructions()
            self._instructions[key] = None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._instructions[key]
