"""The files of a job: one configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codex_app_server._runtime.files import PARTIAL, resolved

from ...store import RunStore, layout
from ..table import finished
from .stats import Stats
from .trials import trial_of, write_json, write_trial
from .values import Job, id_of, iso, job_config, job_lock_head


def write_harbor(store: RunStore, directory: Path, variant: str | None = None) -> None:
    """Write the finished samples of a run, or of one variant, as a job. Raises ExportError."""
    info = store.info()
    config = info["config"]
    job = _job(store, config, resolved(directory), variant, info["created_at"])
    stats, locks, agents = Stats(), [], dict[str, bool]()
    epochs = 0
    for row in finished(store, variant):
        trial = trial_of(store, row, job)
        result, lock = write_trial(store, trial, directory)
        stats.add(result)
        locks.append(lock)
        agents[trial.agent] = agents.get(trial.agent, False) or trial.has_steps
        epochs = max(epochs, row.epoch)
    at_once = _at_once(config)
    path = (config.get("dataset") or {}).get("path")
    write_json(directory / layout.CONFIG, job_config(job, agents, epochs, at_once, path))
    write_json(directory / "lock.json", {**job_lock_head(job, info["created_at"], at_once), "trials": locks})
    counts = store.counts(variant)
    total = max(stats.trials, counts.get("total", stats.trials))
    write_json(
        directory / "result.json",
        {
            "schema_version": 1,
            "id": job.id,
            "started_at": iso(info["created_at"]),
            "updated_at": iso(info["ended_at"] or info["created_at"]),
            "finished_at": iso(info["ended_at"]),
            "n_total_trials": total,
            "stats": stats.value(total),
        },
    )


def _job(store: RunStore, config: Mapping[str, Any], directory: Path, variant: str | None, created_at: float) -> Job:
    dataset = str((config.get("dataset") or {}).get("name") or store.path.name)
    effective = config.get("effective") or {}
    if variant is not None:
        found = next((each for each in store.variants() if each["name"] == variant), {})
        effective = found.get("effective") or {}
    return Job(
        id=id_of(str(store.path), str(created_at), variant or ""),
        # It is renamed when it is whole.
        name=directory.name.removesuffix(PARTIAL),
        directory=str(directory.parent),
        dataset=dataset.rstrip("/").rpartition("/")[2] or dataset,
        model=effective.get("model"),
        retries=int(config.get("retries") or 0),
    )


def _at_once(config: Mapping[str, Any]) -> int:
    workers, turns = config.get("workers"), config.get("turns_per_worker")
    return max(1, int(workers or 1) * int(turns or 1))
