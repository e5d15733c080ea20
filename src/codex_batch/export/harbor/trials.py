"""The files of a trial: a directory for one epoch of a sample."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...harbor.report import REPORT, Report
from ...harbor.rewards import JSON, TEXT, NoReward
from ...store import RunStore, SampleRow, layout
from ..errors import ExportError
from .values import Job, Trial, exception_of, rewards_of, trial_config, trial_lock, trial_result

EVENTS, RESPONSE = "codex-events.jsonl", "final-response.txt"
MANIFEST = "artifacts/manifest.json"
_NAME_CHARACTERS = 32
# A trial has names that a run has, too: artifacts, config.json.
_PARTS = ("agent", "verifier", layout.ARTIFACTS, "steps")


def trial_of(store: RunStore, row: SampleRow, job: Job) -> Trial:
    """The trial of a finished sample."""
    assert row.record is not None
    harbor = row.spec.get("harbor") or {}
    task = harbor.get("task") or f"{job.dataset}/{row.id}"
    text = json.dumps([job.id, *row.key])
    name = layout.safe_name(row.id)[:_NAME_CHARACTERS].rstrip("_-")
    return Trial(
        row=row,
        record=row.record,
        job=job,
        name=f"{name}__{hashlib.sha256(text.encode()).hexdigest()[:7]}",
        task=task,
        digest=harbor.get("content") or f"sha256:{hashlib.sha256(row.digest.encode()).hexdigest()}",
        report=_report(store, row),
    )


def write_trial(store: RunStore, trial: Trial, job_directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the directory of a trial; return its result and its lock. Raises ExportError."""
    directory = job_directory / trial.name
    if directory.exists():
        raise ExportError(f"{directory.name}: two samples have this name; export one variant at a time")
    for part in _PARTS[:3]:
        (directory / part).mkdir(parents=True)
    _copy_artifacts(store, trial, directory)
    _write_agent(store, trial, directory / "agent")
    _write_rewards(trial, directory / "verifier")
    result, lock = trial_result(trial), trial_lock(trial)
    write_json(directory / layout.CONFIG, trial_config(trial))
    write_json(directory / "lock.json", lock)
    write_json(directory / "result.json", result)
    exception = exception_of(trial)
    if exception is not None:
        message = f"{exception['exception_type']}: {exception['exception_message']}\n"
        (directory / "exception.txt").write_bytes(_bytes(message))
    return result, lock


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a value in ASCII, so that no lone surrogate can be in the way."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="ascii")


def _report(store: RunStore, row: SampleRow) -> Report | None:
    try:
        return Report.from_json(store.artifact(row.n, REPORT))
    except (KeyError, OSError, NoReward):
        return None


def _copy_artifacts(store: RunStore, trial: Trial, directory: Path) -> None:
    """Copy what the verifier and the task have left, under the same names, and the diff."""
    assert trial.row.record is not None
    source, manifest = store.artifacts_of(trial.row.n), []
    for name in trial.row.record.artifacts:
        first = name.partition("/")[0]
        if not (source / name).is_file():
            continue
        if name == layout.DIFF:
            first, target = layout.ARTIFACTS, directory / layout.ARTIFACTS / name
            manifest.append({"source": name, "destination": f"{first}/{name}", "type": "file", "status": "ok"})
        elif first in _PARTS and "/" in name:
            target = directory / name
        else:
            continue
        if first != "steps" or trial.has_steps:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target)
    if not trial.has_steps:
        path = directory / MANIFEST
        kept = json.loads(path.read_bytes()) if path.exists() else []
        path.write_text(json.dumps([*kept, *manifest], indent=1), encoding="ascii")


def _write_agent(store: RunStore, trial: Trial, directory: Path) -> None:
    record = trial.record
    if record.final_response is not None:
        (directory / RESPONSE).write_bytes(_bytes(record.final_response))
    with (directory / EVENTS).open("wb") as file:
        for line in store.event_lines(trial.row.n, record.attempts):
            file.write(line if line.endswith(b"\n") else line + b"\n")


def _write_rewards(trial: Trial, directory: Path) -> None:
    """Write the scores as a verifier would have, where none has: for samples that are no tasks of Harbor."""
    rewards = rewards_of(trial)
    if rewards is not None and not trial.has_steps and not any((directory / name).exists() for name in (JSON, TEXT)):
        write_json(directory / JSON, rewards)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
