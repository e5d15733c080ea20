"""Reads a job of Harbor, and tasks, with Harbor's own models: `check_harbor.py JOB [TASK...]`, by a python with them.

Prints as JSON what they hold, for a test to compare. Ends with an error for anything that they do not take.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from harbor.models.job.config import JobConfig  # type: ignore[import-not-found]
from harbor.models.job.lock import JobLock, TrialLock  # type: ignore[import-not-found]
from harbor.models.job.result import JobResult, JobStats  # type: ignore[import-not-found]
from harbor.models.task.task import Task  # type: ignore[import-not-found]
from harbor.models.trial.artifact_manifest import ArtifactManifest  # type: ignore[import-not-found]
from harbor.models.trial.config import TrialConfig  # type: ignore[import-not-found]
from harbor.models.trial.paths import TrialPaths  # type: ignore[import-not-found]
from harbor.models.trial.result import TrialResult  # type: ignore[import-not-found]
from harbor.publisher.packager import Packager  # type: ignore[import-not-found]

# What a model does not know it would ignore: these are the fields that it computes.
COMPUTED = {"reward_valid", "policy"}


def read(model: Any, path: Path) -> Any:
    """A file as a model has it; nothing in it may be unknown to the model."""
    text = path.read_text()
    found = model.model_validate_json(text)
    _same(json.loads(text), json.loads(found.model_dump_json()), str(path))
    return found


def _same(written: Any, found: Any, where: str) -> None:
    if isinstance(written, dict):
        for name, value in written.items():
            if name in found:
                _same(value, found[name], f"{where}: {name}")
            elif name not in COMPUTED and value not in (None, {}, []):
                raise AssertionError(f"{where}: {name} is not known to Harbor")
    elif isinstance(written, list):
        for one, other in zip(written, found, strict=True):
            _same(one, other, where)


def trial(directory: Path) -> tuple[Any, Any]:
    """The result and the lock of a trial, with what is beside them as its paths have it."""
    paths = TrialPaths(directory)
    config, result = read(TrialConfig, paths.config_path), read(TrialResult, paths.result_path)
    lock = read(TrialLock, paths.lock_path)
    assert config == result.config and config.trial_name == directory.name == result.trial_name
    for manifest in directory.rglob("artifacts/manifest.json"):
        ArtifactManifest.model_validate({"entries": json.loads(manifest.read_text())})
    if result.reward_valid and not result.step_results:
        assert paths.reward_json_path.exists() or paths.reward_text_path.exists()
    for step in result.step_results or []:
        assert paths.step_verifier_dir(step.step_name).is_dir()
    return result, lock


def job(directory: Path) -> dict[str, Any]:
    """The counts of a job and its trials, once they agree with each other."""
    read(JobConfig, directory / "config.json")
    lock, result = read(JobLock, directory / "lock.json"), read(JobResult, directory / "result.json")
    trials = [trial(path) for path in sorted(directory.iterdir()) if path.is_dir()]
    # Unordered: equal locks are equal in any order.
    assert lock == JobLock(
        n_concurrent_trials=lock.n_concurrent_trials, retry=lock.retry, trials=[each for _, each in trials]
    )
    results = [each for each, _ in trials]
    made = JobStats.from_trial_results(results, n_total_trials=result.n_total_trials)
    assert _plain(made) == _plain(result.stats), (_plain(made), _plain(result.stats))
    return {
        each.task_name: {
            "rewards": None if each.verifier_result is None else each.verifier_result.rewards,
            "valid": each.reward_valid,
            "exceptions": [exception.exception_type for exception in each.recorded_exceptions()],
            "steps": [
                [step.step_name, None if step.verifier_result is None else step.verifier_result.rewards]
                for step in each.step_results or []
            ],
        }
        for each in results
    }


def _plain(stats: Any) -> Any:
    found = json.loads(stats.model_dump_json())
    for each in found["evals"].values():
        for by_value in each["reward_stats"].values():
            for names in by_value.values():
                names.sort()
        for names in each["exception_stats"].values():
            names.sort()
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    tasks = {}
    for name in map(Path, sys.argv[2:]):
        assert Task.is_valid_dir(name), name
        tasks[name.name] = f"sha256:{Packager.compute_content_hash(name)[0]}"
    print(json.dumps({"trials": job(Path(sys.argv[1])), "tasks": tasks}))
