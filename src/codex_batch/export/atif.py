"""A run as trajectories in ATIF, the Agent Trajectory Interchange Format: one a line, with those of its sub-agents.

They are made of the session files of codex. A sample without one has what its notifications show; `extra` says so.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping, Sequence
from typing import IO, Any

from ..store import RecordRow, RunStore, SampleRow
from ..store.export import encode
from .conversation import Call, Conversation, Part, Step, text_of
from .messages import messages
from .recorded import Missing, Recorded, recorded
from .table import finished

AGENT = "codex"
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")


def write_atif(
    store: RunStore, file: IO[bytes], variant: str | None = None, *, schema_version: str = "ATIF-v1.7"
) -> None:
    """Write a trajectory for each finished sample. The samples without a session file are named in the log."""
    missing = Missing(
        "no session file of codex is kept of", "their trajectories are made of notifications, which have less"
    )
    is_usd = store.info()["config"].get("currency") == "USD"
    for row in finished(store, variant):
        found = recorded(store, row)
        if found.own is None:
            missing.add(row)
        file.write(encode(trajectory(store, row, found, schema_version=schema_version, is_usd=is_usd)))
    missing.report()


def write_atif_1_8(store: RunStore, file: IO[bytes], variant: str | None = None) -> None:
    """Write the same as ATIF 1.8."""
    write_atif(store, file, variant, schema_version="ATIF-v1.8")


def trajectory(
    store: RunStore, row: SampleRow, found: Recorded, *, schema_version: str, is_usd: bool = True
) -> dict[str, Any]:
    """Return the trajectory of a sample that has a record."""
    record = row.record
    assert record is not None
    if found.own is not None and found.own.steps:
        made = _of_thread(str(found.own_id), found.own, found.sub_agents, schema_version)
        made_of = "rollout"
    else:
        made, made_of = _of_events(store, row, schema_version)
    agent = made["agent"]
    agent["model_name"] = record.model or agent.get("model_name")
    made["agent"] = {name: value for name, value in agent.items() if value is not None}
    metrics = made.setdefault("final_metrics", {"total_steps": len(made["steps"])})
    if record.cost is not None:
        metrics |= {"total_cost_usd": record.cost} if is_usd else {"extra": {"cost": record.cost}}
    if found.notes:
        made["notes"] = "; ".join([*filter(None, [made.get("notes")]), *found.notes])
    made["extra"] = {**made.get("extra", {}), "codex_pool": _own(store, row, record, made_of)}
    return made


def _own(store: RunStore, row: SampleRow, record: RecordRow, made_of: str) -> dict[str, Any]:
    return {
        "made_of": made_of,
        "run": store.path.name,
        "sample": row.id,
        "epoch": row.epoch,
        **({"variant": row.variant} if row.variant else {}),
        "status": record.status,
        "attempt": record.attempts,
        "error": record.error,
        "scores": {
            score.scorer: {"value": score.value, "passed": score.passed} for score in row.scores if score.error is None
        },
        "tags": list(row.tags),
        "metadata": row.spec.get("metadata"),
    }


def _of_thread(
    thread_id: str, thread: Conversation, others: Mapping[str, Conversation], schema_version: str
) -> dict[str, Any]:
    """The trajectory of a thread, with those of its sub-agents in it."""
    children = {name: other for name, other in others.items() if other.parent_id == thread_id and other.steps}
    steps = _steps(thread, children)
    meta, used = thread.meta, [step.usage for step in thread.steps if step.usage is not None and not step.is_copied]
    sums = {name: sum(usage.get(key) or 0 for usage in used) for name, key in _TOKENS.items()}
    context = {name: meta[name] for name in ("model_provider", "originator", "agent_nickname") if meta.get(name)}
    models = [step.model for step in thread.steps if step.model is not None]
    made: dict[str, Any] = {
        "schema_version": schema_version,
        "session_id": meta.get("session_id") or thread_id,
        "trajectory_id": thread_id,
        "agent": {
            "name": AGENT,
            "version": str(meta.get("cli_version") or "unknown"),
            "model_name": models[-1] if models else None,
            "extra": context,
        },
        "steps": steps,
        "final_metrics": {
            **({f"total_{name}": value for name, value in sums.items()} if used else {}),
            "total_steps": len(steps),
        },
    }
    made["agent"] = {name: value for name, value in made["agent"].items() if value is not None}
    if thread.cut_bytes:
        made["notes"] = f"{thread.cut_bytes:,} bytes of the session file were left out, and steps with them"
    if children:
        rest = {name: other for name, other in others.items() if name not in children}
        made["subagent_trajectories"] = [
            _of_thread(name, child, rest, schema_version) for name, child in children.items()
        ]
    return made


_TOKENS = {
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "cached_tokens": "cached_input_tokens",
}
_MORE_TOKENS = ("reasoning_output_tokens", "cache_write_input_tokens")


def _steps(thread: Conversation, children: Mapping[str, Conversation]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if thread.instructions is not None:
        found.append({"source": "system", "message": thread.instructions, "extra": {"kind": "base_instructions"}})
    unreferenced = dict(children)
    for number, window in enumerate(thread.windows):
        if number:
            about = {"kind": "compaction", "replaced_by_messages": len(window.initial)}
            found.append({"source": "system", "message": window.message or "", "extra": about})
        found += [_step(step, unreferenced) for step in window.steps]
    return [{"step_id": number, **step} for number, step in enumerate(found, 1)]


def _step(step: Step, unreferenced: dict[str, Conversation]) -> dict[str, Any]:
    made: dict[str, Any]
    if step.role != "assistant":
        source = "system" if step.is_of_codex else "user"
        made = {"source": source, "message": _content(step.parts), "extra": {"role": step.role}}
    else:
        made = {
            "source": "agent",
            "message": _content(step.parts),
            "model_name": step.model,
            "reasoning_effort": step.effort,
            "reasoning_content": "\n\n".join(step.reasoning) or None,
            "tool_calls": [_call(call) for call in step.calls] or None,
            "observation": _observation(step.calls, unreferenced),
            "metrics": None if step.usage is None else _metrics(step.usage),
            "llm_call_count": None if step.usage is None else 1,
            "extra": {"kind": "compaction"} if step.is_compaction else None,
        }
    made |= {"timestamp": step.timestamp, "is_copied_context": step.is_copied or None}
    return {name: value for name, value in made.items() if value is not None}


def _call(call: Call) -> dict[str, Any]:
    name = call.name if call.namespace is None else f"{call.namespace}.{call.name}"
    return {"tool_call_id": call.id, "function_name": name, "arguments": call.arguments}


def _observation(calls: Sequence[Call], unreferenced: dict[str, Conversation]) -> dict[str, Any] | None:
    results = []
    for call in calls:
        if call.output is None:
            continue
        result: dict[str, Any] = {"source_call_id": call.id, "content": _content(call.output)}
        text = text_of(call.output)
        # The first output that names a sub-agent is that of the call that has started it.
        started = [name for name in unreferenced if name in text]
        if started:
            result["subagent_trajectory_ref"] = [
                {"trajectory_id": name, "session_id": unreferenced.pop(name).meta.get("session_id")} for name in started
            ]
        results.append(result)
    return {"results": results} if results else None


def _metrics(usage: Mapping[str, Any]) -> dict[str, Any]:
    more = {name: usage[name] for name in _MORE_TOKENS if usage.get(name)}
    return {
        **{name: usage.get(key) for name, key in _TOKENS.items()},
        **({"extra": more} if more else {}),
    }


def _content(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    """A text, or a list of parts if there are images."""
    if all(part.image is None for part in parts):
        return text_of(parts)
    return [_part(part) for part in parts]


def _part(part: Part) -> dict[str, Any]:
    if part.image is None:
        return {"type": "text", "text": part.text}
    is_data = part.image.startswith("data:")
    kind = part.image[5:].partition(";")[0] if is_data else mimetypes.guess_type(part.image)[0]
    if kind not in _IMAGES:
        return {"type": "text", "text": f"[image {kind or part.image}]"}
    return {"type": "image", "source": {"media_type": kind, "path": part.image}}


def _of_events(store: RunStore, row: SampleRow, schema_version: str) -> tuple[dict[str, Any], str]:
    """The trajectory that notifications show, or the record alone; which of them it is."""
    record = row.record
    assert record is not None
    said, made_of = list(messages(store.events(row.n, record.attempts))), "events"
    if not said:
        said, made_of = [{"role": "user", "content": prompt} for prompt in row.spec.get("prompts") or ()], "record"
        if record.final_response is not None:
            said.append({"role": "assistant", "content": record.final_response})
    steps: list[dict[str, Any]] = []
    for message in said:
        if message["role"] == "tool":
            result = {"source_call_id": message["tool_call_id"], "content": message["content"]}
            steps[-1]["observation"] = {"results": [result]}
        else:
            steps.append({"step_id": len(steps) + 1, **_of_message(message)})
    agent = {"name": AGENT, "version": record.codex_version or "unknown"}
    return {
        "schema_version": schema_version,
        "session_id": record.thread_id or f"{store.path.name}-{row.n}",
        "trajectory_id": record.thread_id or f"{store.path.name}-{row.n}",
        "agent": agent,
        "steps": steps,
        "notes": "made without the session file of codex: base instructions, raw arguments and sub-agents are missing",
    }, made_of


def _of_message(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if message["role"] == "user":
        return {"source": "user", "message": content}
    made: dict[str, Any] = {"source": "agent", "message": content if isinstance(content, str) else ""}
    if not isinstance(content, str):
        made["reasoning_content"] = "\n\n".join(part["reasoning"] for part in content)
    if message.get("tool_calls"):
        made["tool_calls"] = [
            {"tool_call_id": call["id"], "function_name": call["function"], "arguments": call["arguments"]}
            for call in message["tool_calls"]
        ]
    return made
