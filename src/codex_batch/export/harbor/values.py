"""Values of the files of a job and of its trials, as the models of Harbor 0.26 have them. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ...harbor.report import Phase, Report, StepReport
from ...rules.validity import SCORED
from ...store import RecordRow, SampleRow

AGENT, ORACLE = "codex", "oracle"
NO_VERSION = "unknown"
CANCELLED = "CancelledError"
_SPACE = uuid.UUID("a2c3f7a6-6f0e-4c0f-9a55-6b1c3d2f8e41")
_LOCAL = "podman"
# Limits in time; an agent that reaches one is graded by Harbor, too.
_TIME_LIMITS = ("timeout_s", "wall_s", "idle_s")
_NOT_VALID = {"should_retry": True, "should_grade": False, "has_valid_reward": False}


@dataclass(frozen=True, slots=True)
class Job:
    """The parts of a run that each of its trials names."""

    id: str
    name: str
    """Name of the directory."""
    directory: str
    """Directory that it stands in, absolute."""
    dataset: str
    model: str | None
    retries: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A sample and what is known of its task; `digest` is that of its contents."""

    row: SampleRow
    record: RecordRow
    job: Job
    name: str
    task: str
    digest: str
    report: Report | None

    @property
    def task_name(self) -> str:
        """Name of the task's folder."""
        return self.task.rstrip("/").rpartition("/")[2]

    @property
    def agent(self) -> str:
        """Name of the agent: codex, or the one that runs solutions."""
        return ORACLE if (self.row.spec.get("harbor") or {}).get("oracle") else AGENT

    @property
    def has_steps(self) -> bool:
        """True for a task with steps."""
        return self.report is not None and any(step.name for step in self.report.steps)


def id_of(*parts: str) -> str:
    """A UUID that is the same for the same parts."""
    return str(uuid.uuid5(_SPACE, "\0".join(parts)))


def iso(seconds: float | None) -> str | None:
    """A time as Harbor writes it."""
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def rewards_of(trial: Trial) -> dict[str, float] | None:
    """The rewards of a trial: its scores by name; None if it has none, or one that could not be made."""
    scores = trial.row.scores
    if trial.record.status not in SCORED or any(score.error is not None for score in scores):
        return None
    return {score.scorer: score.value for score in scores if score.value is not None} or None


def exception_of(trial: Trial) -> dict[str, Any] | None:
    """The reason why a trial has no reward, or was ended early; None if there is none."""
    record, report = trial.record, trial.report
    error = record.error or {}
    message = str(error.get("message") or record.limit or record.status)
    if record.status == "limit":
        kind = "AgentTimeoutError" if record.limit in _TIME_LIMITS else "SampleLimitError"
        return _exception(kind, message, record)
    if record.status == "interrupted":
        return _exception(CANCELLED, message, record)
    if record.status not in SCORED:
        kind = str(error.get("kind") or record.status)
        return {**_exception(f"Codex{kind[:1].upper()}{kind[1:]}Error", message, record), "policy_override": _NOT_VALID}
    if report is not None and any(step.rewards is None for step in report.steps):
        # That of the step has it.
        return None if trial.has_steps else _of_step(report.steps[0], record)
    problems = [score.error for score in trial.row.scores if score.error is not None]
    if problems:
        return {**_exception("ScorerError", str(problems[0]), record), "policy_override": _NOT_VALID}
    return None


def _of_step(step: StepReport, record: RecordRow) -> dict[str, Any] | None:
    if step.rewards is not None:
        return None
    return _exception(step.kind or "VerifierOutputParseError", step.problem or "no reward", record)


def _exception(kind: str, message: str, record: RecordRow) -> dict[str, Any]:
    return {
        "exception_type": kind,
        "exception_message": message,
        "exception_traceback": "",
        "occurred_at": iso(record.ended_at or record.started_at or 0.0),
    }


# Trials.


def trial_config(trial: Trial) -> dict[str, Any]:
    """config.json of a trial."""
    return {
        "schema_version": 1,
        "task": {"path": trial.task, "source": trial.job.dataset},
        "trial_name": trial.name,
        "trials_dir": f"{trial.job.directory}/{trial.job.name}",
        "agent": _agent(trial.agent, trial.job.model, trial.has_steps),
        "environment": {"type": _LOCAL},
        "job_id": trial.job.id,
    }


def trial_lock(trial: Trial) -> dict[str, Any]:
    """lock.json of a trial."""
    return {
        "schema_version": 2,
        "task": {
            "name": trial.task_name,
            "type": "local",
            "digest": trial.digest,
            "source": trial.job.dataset,
            "path": trial.task,
        },
        "agent": _agent(trial.agent, trial.job.model, trial.has_steps),
        "environment": {"type": _LOCAL},
        "verifier": {"environment_mode": None if trial.has_steps else "shared"},
    }


def trial_result(trial: Trial) -> dict[str, Any]:
    """result.json of a trial."""
    record, report = trial.record, trial.report
    rewards, exception = rewards_of(trial), exception_of(trial)
    model = record.model or trial.job.model
    alone = None if report is None or trial.has_steps or not report.steps else report.steps[0]
    agent_time = {"started_at": iso(record.started_at), "finished_at": iso(record.ended_at)}
    steps = [_step(step, record) for step in report.steps] if report is not None and trial.has_steps else None
    return {
        "schema_version": 1,
        "id": id_of(trial.job.id, str(trial.row.n)),
        "task_name": trial.task_name,
        "trial_name": trial.name,
        "trial_uri": f"file://{trial.job.directory}/{trial.job.name}/{trial.name}",
        "task_id": {"path": trial.task},
        "source": trial.job.dataset,
        "task_checksum": trial.digest.removeprefix("sha256:"),
        "config": trial_config(trial),
        "agent_info": {
            "name": trial.agent,
            "version": record.codex_version or NO_VERSION,
            "model_info": None if model is None else {"name": model, "provider": record.provider},
        },
        "agent_result": _agent_result(trial),
        "verifier_result": None if rewards is None else {"rewards": rewards},
        "verifier_environment_mode": None if trial.has_steps else "shared",
        "exception_info": exception,
        "started_at": iso(record.started_at),
        "finished_at": iso(record.ended_at),
        "agent_execution": agent_time if alone is None else _phase(alone.agent),
        "verifier": None if alone is None else _phase(alone.verifier),
        "step_results": steps,
        "reward_valid": rewards is not None,
    }


def _agent(name: str, model: str | None, has_steps: bool) -> dict[str, Any]:
    # Steps are turns of one thread.
    return {"name": name, "model_name": model, "resume_trajectory": has_steps and name == AGENT}


def _agent_result(trial: Trial) -> dict[str, Any]:
    record = trial.record
    usage = record.usage or {}
    return {
        "n_input_tokens": usage.get("input_tokens"),
        "n_cache_tokens": usage.get("cached_input_tokens"),
        "n_output_tokens": usage.get("output_tokens"),
        "cost_usd": record.cost,
        "metadata": {
            "codex_pool": {
                "id": trial.row.id,
                "epoch": trial.row.epoch,
                "variant": trial.row.variant or None,
                "status": record.status,
                "limit": record.limit,
                "attempts": record.attempts,
                "turns": record.turns,
                "tool_calls": record.tool_calls,
                "thread_id": record.thread_id,
                "effort": record.effort,
                "fingerprint": record.fingerprint,
                "ended": None if trial.report is None else trial.report.ended,
            }
        },
    }


def _step(step: StepReport, record: RecordRow) -> dict[str, Any]:
    return {
        "step_name": step.name,
        "verifier_result": None if step.rewards is None else {"rewards": dict(step.rewards)},
        "exception_info": _of_step(step, record),
        "agent_execution": _phase(step.agent),
        "verifier": _phase(step.verifier),
    }


def _phase(phase: Phase | None) -> dict[str, Any] | None:
    return None if phase is None else {"started_at": iso(phase.started_at), "finished_at": iso(phase.ended_at)}


# The job.


def job_config(job: Job, agents: Mapping[str, Any], epochs: int, at_once: int, path: str | None) -> dict[str, Any]:
    """config.json of a job; `agents` by name, `path` is that of the dataset, if it has one."""
    return {
        "schema_version": 1,
        "job_name": job.name,
        "jobs_dir": job.directory,
        "n_attempts": max(1, epochs),
        "n_concurrent_trials": at_once,
        "quiet": True,
        "retry": {"max_retries": job.retries},
        "environment": {"type": _LOCAL},
        "agents": [_agent(name, job.model, has_steps) for name, has_steps in agents.items()],
        "datasets": [] if path is None else [{"path": path}],
    }


def job_lock_head(job: Job, created_at: float, at_once: int) -> dict[str, Any]:
    """lock.json of a job, without its trials."""
    return {
        "schema_version": 3,
        "created_at": iso(created_at),
        "harbor": {},
        "n_concurrent_trials": at_once,
        "retry": {"max_retries": job.retries},
    }
