"""Fingerprints of samples: what the run's configuration and their own directory make of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..workspace import Project
from .effective import Effective, OfSample, fingerprint, of_sample


class Fingerprints:
    """Call it with a sample's JSON; None of one whose variant is not run now. Each distinct answer is made once.

    `effective` is the configuration of each variant, or that of a run without variants; `sandbox` the one that the run
    was asked for.
    """

    def __init__(self, effective: Effective | Mapping[str, Effective], sandbox: str | None = None) -> None:
        self._effective: Mapping[str, Effective] = {"": effective} if isinstance(effective, Effective) else effective
        self._sandbox = sandbox
        self._made: dict[tuple[str, OfSample], str] = {}
        self._instructions: dict[tuple[str, bool], str | None] = {}

    def __call__(self, spec: Mapping[str, Any]) -> str | None:
        variant = spec.get("variant", "")
        effective = self._effective.get(variant)
        if effective is None:
            return None
        own = of_sample(spec, self._instructions_of(spec), sandbox=self._sandbox)
        found = self._made.get((variant, own))
        if found is None:
            found = self._made[variant, own] = fingerprint(effective, own)
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
