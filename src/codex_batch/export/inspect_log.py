"""A run as a log of Inspect AI: an .eval file, a zip of JSON, one member a sample, written one after the other.

A log is of one configuration there: of a run with variants each has a log of its own. What Inspect has no word for is
in a sample's `store`, under `codex_pool`. A score by a scorer that failed is left out,
and named there.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import IO, Any

from ..scoring import metric_rows as scoring_summary
from ..scoring import metrics
from ..store import RecordRow, RunStore, SampleRow, layout
from .messages import messages, user
from .table import finished

VERSION = 2
# Models are API/NAME there; which service codex asked is its configuration's business.
API = "codex"
NO_MODEL = "default"
_TIME = (1980, 1, 1, 0, 0, 0)
_LIMITS = {"wall_s": "working", "tokens": "token", "turns": "turn"}
_SHORT = 1_024


def write_inspect(store: RunStore, file: IO[bytes], variant: str | None = None) -> None:
    """Write a log; in a run with variants, name the one that it is of."""
    info = store.info()
    spec = _eval_spec(store, info, variant)
    plan = {"name": "codex", "steps": [{"solver": "codex", "params": {}}], "config": {}}
    usage: dict[str, Counter[str]] = {}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive, tempfile.TemporaryFile() as kept:
        _member(archive, "_journal/start.json", {"version": VERSION, "eval": spec, "plan": plan})
        count = completed = 0
        for row in finished(store, variant):
            sample = _sample(store, row)
            for model, used in sample["model_usage"].items():
                usage.setdefault(model, Counter()).update({k: v for k, v in used.items() if v is not None})
            _member(archive, f"samples/{row.id}_epoch_{row.epoch}.json", sample)
            summary = json.dumps(_summary(sample)).encode()
            kept.write(b"," * bool(count) + summary)
            count += 1
            completed += sample["error"] is None
        kept.seek(0)
        # Summaries stand in one member, which may not be written beside another.
        with archive.open(zipfile.ZipInfo("summaries.json", _TIME), "w", force_zip64=True) as member:
            member.write(b"[")
            while part := kept.read(1 << 20):
                member.write(part)
            member.write(b"]")
        header = {
            "version": VERSION,
            "status": {"finished": "success", "interrupted": "cancelled"}.get(info["state"], "started"),
            "eval": spec,
            "plan": plan,
            "results": _results(store, count, completed, variant),
            "stats": {
                "started_at": _iso(info["created_at"]) or "",
                "completed_at": _iso(info["ended_at"]) or "",
                "model_usage": {model: dict(used) for model, used in usage.items()},
            },
        }
        _member(archive, "header.json", header)


def _member(archive: zipfile.ZipFile, name: str, value: Any) -> None:
    # In ASCII, so that no lone surrogate can be in the way.
    member = zipfile.ZipInfo(name, _TIME)
    member.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(member, json.dumps(value))


def _eval_spec(store: RunStore, info: Mapping[str, Any], variant: str | None) -> dict[str, Any]:
    config = info["config"]
    dataset = config.get("dataset") or {}
    name, git = str(dataset.get("name") or store.path.name), dataset.get("git")
    effective = config.get("effective") or {}
    of_variant: dict[str, Any] = {}
    if variant is not None:
        found = next((each for each in store.variants() if each["name"] == variant), {})
        effective = found.get("effective") or {}
        of_variant = {"variant": variant}
    models = Counter(_model(row) for row in finished(store, variant))
    answered = store.answered(variant)
    versions = {name: str(version) for name, version in config.get("versions", {}).items() if version}
    if answered["codex_version"]:
        versions["codex"] = next(iter(answered["codex_version"]))
    epochs = max((row.epoch for row in finished(store, variant)), default=1)
    own = store.path.name if variant is None else f"{store.path.name}-{variant}"
    return {
        "run_id": store.path.name,
        "task_id": own,
        "eval_id": own,
        "created": _iso(info["created_at"]) or "1970-01-01T00:00:00+00:00",
        "task": store.path.name,
        "dataset": {"name": name, "location": name, "samples": len({row.id for row in finished(store, variant)})},
        "revision": git and {"type": "git", "origin": "", "commit": git["commit"], "dirty": git.get("changed")},
        "model": max(models, key=lambda model: models[model], default=f"{API}/{effective.get('model') or NO_MODEL}"),
        "config": {"epochs": epochs},
        "packages": versions,
        "metadata": {
            "codex_pool": {
                "directory": str(store.path),
                "models": dict(models),
                "answered": answered,
                "effective": effective,
                **of_variant,
            }
        },
    }


def _model(row: SampleRow) -> str:
    """Name the model that answered, or, without a thread, the one that was asked for."""
    answered = None if row.record is None else row.record.model
    return f"{API}/{answered or row.spec.get('model') or NO_MODEL}"


def _sample(store: RunStore, row: SampleRow) -> dict[str, Any]:
    record, spec = row.record, row.spec
    assert record is not None
    prompts = list(spec.get("prompts") or ())
    model = _model(row)
    usage = _usage(record)
    said = list(messages(store.events(row.n, record.attempts)))
    if not said:
        said = [user(prompt) for prompt in prompts]
        if record.final_response is not None:
            said.append({"role": "assistant", "content": record.final_response})
    error = record.error or {}
    wrong = record.status not in ("completed", "limit")
    final = {"role": "assistant", "content": record.final_response or ""}
    seconds = None if record.duration_ms is None else record.duration_ms / 1000
    return {
        "id": row.id,
        "epoch": row.epoch,
        "input": prompts[0] if len(prompts) == 1 else [user(prompt) for prompt in prompts],
        "target": _target(spec.get("target")),
        "messages": said,
        "output": {
            "model": model,
            "choices": [{"message": final, "stop_reason": "stop"}] if record.final_response is not None else [],
            "completion": record.final_response or "",
            "usage": usage,
            "time": seconds,
        },
        "scores": {
            score.scorer: {
                "value": score.value,
                "answer": score.answer,
                "explanation": score.explanation,
                "metadata": {**(score.metadata or {}), "passed": score.passed},
            }
            for score in row.scores
            if score.error is None
        },
        "metadata": {**(spec.get("metadata") or {}), **({"tags": list(row.tags)} if row.tags else {})},
        "store": {"codex_pool": _own(store, row, record)},
        "events": [],
        "model_usage": {} if usage is None else {model: usage},
        "started_at": _iso(record.started_at),
        "completed_at": _iso(record.ended_at),
        "total_time": _total_time(record) if record.started_at else seconds,
        "working_time": seconds,
        "uuid": f"{store.path.name}-{row.n}",
        "error": _error(record.status, error) if wrong else None,
        "error_retries": None,
        "attachments": {},
        "limit": _limit(record, spec),
    }


def _own(store: RunStore, row: SampleRow, record: RecordRow) -> dict[str, Any]:
    diff = None
    with contextlib.suppress(KeyError):
        diff = store.artifact(row.n, layout.DIFF).decode("utf-8", "replace")
    return {
        **({"variant": row.variant} if row.variant else {}),
        "status": record.status,
        "limit": record.limit,
        "attempts": record.attempts,
        "thread_id": record.thread_id,
        "turn_id": record.turn_id,
        "worker": record.worker,
        "queued_ms": record.queued_ms,
        "tool_calls": record.tool_calls,
        "cost": record.cost,
        "agents_md": record.agents_md,
        "model": record.model,
        "effort": record.effort,
        "provider": record.provider,
        "codex_version": record.codex_version,
        "rerouted_from": record.rerouted_from,
        **({"container": record.container} if record.container else {}),
        "fingerprint": record.fingerprint,
        "launch": record.launch,
        "diff": diff,
        "not_scored": {score.scorer: score.error for score in row.scores if score.error is not None},
    }


def _usage(record: RecordRow) -> dict[str, Any] | None:
    usage = record.usage
    if usage is None:
        return None
    cached = usage.get("cached_input_tokens", 0)
    return {
        # Cached tokens are counted apart there.
        "input_tokens": max(0, usage.get("input_tokens", 0) - cached),
        "output_tokens": usage.get("output_tokens", 0),
        "total_tokens": usage.get("total_tokens", 0),
        "input_tokens_cache_read": cached,
        "reasoning_tokens": usage.get("reasoning_output_tokens", 0),
        "total_cost": record.cost,
    }


def _limit(record: RecordRow, spec: Mapping[str, Any]) -> dict[str, Any] | None:
    if record.limit is None:
        return None
    value = (spec.get("limits") or {}).get(record.limit)
    reason = (record.error or {}).get("message") or record.limit
    return {"type": _LIMITS.get(record.limit, "custom"), "limit": float(value or 0), "reason": reason}


def _error(status: str, error: Mapping[str, str]) -> dict[str, str]:
    message = f"{status}: {error.get('message', '')}".rstrip(": ")
    return {"message": message, "traceback": message, "traceback_ansi": message}


def _summary(sample: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {name: value for name, value in sample["metadata"].items() if len(json.dumps(value)) <= _SHORT}
    error, limit = sample["error"], sample["limit"]
    names = ("id", "epoch", "model_usage", "started_at", "completed_at", "total_time", "working_time", "uuid")
    text = sample["input"] if isinstance(sample["input"], str) else "\n".join(m["content"] for m in sample["input"])
    return {
        **{name: sample[name] for name in names},
        "input": text[:_SHORT],
        "target": sample["target"],
        "metadata": metadata,
        "scores": {
            name: {**score, "explanation": (score["explanation"] or "")[:_SHORT] or None}
            for name, score in sample["scores"].items()
        },
        "error": None if error is None else error["message"],
        "limit": None if limit is None else limit["type"],
        "completed": True,
        "message_count": len(sample["messages"]),
    }


def _results(store: RunStore, count: int, completed: int, variant: str | None) -> dict[str, Any]:
    found = metrics.summarise(scoring_summary.rows_of(finished(store, variant)))
    scores = []
    for scorer, of_scorer in found.scorers.items():
        values = {"accuracy": of_scorer.accuracy, "mean": of_scorer.mean, "stderr": of_scorer.stderr}
        scores.append(
            {
                "name": scorer,
                "scorer": scorer,
                "scored_samples": of_scorer.scores,
                "unscored_samples": of_scorer.not_scored,
                "metrics": {
                    name: {"name": name, "value": value} for name, value in values.items() if value is not None
                },
            }
        )
    return {"total_samples": count, "completed_samples": completed, "scores": scores}


def _target(target: Any) -> str | list[str]:
    if isinstance(target, list):
        return [str(item) for item in target]
    return "" if target is None else str(target)


def _total_time(record: RecordRow) -> float | None:
    if record.started_at is None or record.ended_at is None:
        return None
    return max(0.0, record.ended_at - record.started_at)


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")
