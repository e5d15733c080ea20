"""Counts of a job over its trials, as Harbor has them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .values import CANCELLED

_TOKENS = ("n_input_tokens", "n_cache_tokens", "n_output_tokens")


class Stats:
    """Adds up the results of trials. Trials without a valid reward are in no statistics of rewards."""

    def __init__(self) -> None:
        self.trials = 0
        self._errors = self._cancelled = 0
        self._sums: dict[str, Any] = dict.fromkeys((*_TOKENS, "cost_usd"))
        self._evals: dict[str, dict[str, Any]] = {}

    def add(self, result: Mapping[str, Any]) -> None:
        """Count a result.json."""
        self.trials += 1
        found = self._eval(result)
        verified = result["verifier_result"]
        if result["reward_valid"]:
            found["n_trials"] += 1
            for key, value in verified["rewards"].items():
                found["reward_stats"].setdefault(key, {}).setdefault(value, []).append(result["trial_name"])
        exceptions = [result["exception_info"], *(step["exception_info"] for step in result["step_results"] or ())]
        kinds = sorted({each["exception_type"] for each in exceptions if each is not None})
        for kind in kinds:
            found["exception_stats"].setdefault(kind, []).append(result["trial_name"])
        if kinds:
            found["n_errors"] += 1
            self._errors += 1
            self._cancelled += CANCELLED in kinds
        for name in self._sums:
            value = result["agent_result"][name]
            if value is not None:
                self._sums[name] = (self._sums[name] or 0) + value

    def value(self, n_total: int) -> dict[str, Any]:
        """The counts of the trials so far, of `n_total` that the job has."""
        return {
            "n_completed_trials": self.trials,
            "n_errored_trials": self._errors,
            "n_running_trials": 0,
            "n_pending_trials": max(0, n_total - self.trials),
            "n_cancelled_trials": self._cancelled,
            "n_retries": 0,
            "evals": self._evals,
            **self._sums,
        }

    def _eval(self, result: Mapping[str, Any]) -> dict[str, Any]:
        agent = result["agent_info"]
        model = (agent["model_info"] or {}).get("name")
        key = "__".join(part for part in (agent["name"], model, result["source"]) if part)
        empty = {
            "n_trials": 0,
            "n_errors": 0,
            "metrics": [],
            "pass_at_k": {},
            "reward_stats": {},
            "exception_stats": {},
        }
        return self._evals.setdefault(key, empty)
