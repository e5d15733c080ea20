"""Runs as trajectories, chats and predictions: made of recorded session files, or of what there is without them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rollout_files import THREADS, lines, write_home
from runs import make_older, make_run

from codex_batch.dataset import Sample
from codex_batch.export import ExportError, export, export_to
from codex_batch.run.rollout_archive import RolloutArchive
from codex_batch.scoring import Score
from codex_batch.store import RecordRow, Rollout, RunDirectory, open_run
from codex_batch.store.schema import MIGRATIONS

pytestmark = pytest.mark.quick


def run_of(path: Path, names: Sequence[str], *, without: Sequence[str] = (), **of_record: Any) -> Path:
    """A run with a sample of each recorded file, named as it is, and samples without a file."""
    samples = [(Sample(name, ("say",), target="x", tags=("t",)), "said") for name in (*names, *without)]
    scores = {name: [Score(scorer="exact", value=1.0, passed=True)] for name in names}
    if names:
        # One that is not scored by all.
        scores[names[-1]].append(Score(scorer="judge", value=0.0, error="no model"))
    notification = {"method": "item/completed", "params": {"item": {"type": "agentMessage", "text": "by events"}}}
    events = {name: [notification] for name in without[:1]}
    run = make_run(path, samples, scores=scores, events=events, **of_record)
    home = path.parent / f"{path.name}-home"
    paths = write_home(home, *THREADS)
    directory = RunDirectory(run)
    for name in names:
        row = directory.store.sample(name)
        start = directory.start_attempt(row.n, "key", THREADS[name]).result(5)
        assert row.record is not None
        record = RecordRow("completed", start.attempt, final_response="said", model=row.record.model)
        rollouts = RolloutArchive().read(THREADS[name], paths[name])
        directory.finish(start, record, {"status": "completed"}, rollouts=rollouts).result(5)
        directory.replace_scores(row.n, scores[name])
    directory.close()
    return run


def written(run: Path, format: str, variant: str | None = None) -> list[dict[str, Any]]:
    file = io.BytesIO()
    with open_run(run) as store:
        export_to(store, file, format, variant)
    return [json.loads(line) for line in file.getvalue().splitlines()]


def test_rollouts_are_stored_with_their_attempt_and_read_back(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", ["sub-agents", "image"])
    with open_run(run) as store:
        own, child = store.rollouts(store.sample("sub-agents").n, 2)
        assert list(store.rollout_lines(own)) == lines("sub-agents")
        assert list(store.rollout_lines(child)) == lines("child")
        assert (child.relation, child.parent_id) == ("sub-agent", THREADS["sub-agents"])
        assert store.rollouts(store.sample("image").n, 1) == []


def test_a_run_goes_on_behind_the_rollouts_that_it_has_and_fresh_removes_them(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", ["image"])
    directory = RunDirectory(run)
    n = directory.store.sample("image").n
    start = directory.start_attempt(n, "key", "t").result(5)
    kept = RolloutArchive().read("t", write_home(tmp_path / "h", "commands")["commands"])
    missing = Rollout("u", "sub-agent", "t", note="no file")
    directory.end_attempt(start, {"status": "lost"}, rollouts=[*kept, missing]).result(5)
    directory.close()
    with open_run(run) as store:
        assert list(store.rollout_lines(store.rollouts(n, 2)[0])) == lines("image")
        first, second = store.rollouts(n, 3)
        assert list(store.rollout_lines(first)) == lines("commands")
        assert (second.note, list(store.rollout_lines(second))) == ("no file", [])
    RunDirectory(run, fresh=True).close()
    assert not (run / "rollouts").exists()


def test_a_run_of_an_earlier_version_has_no_rollouts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", [(Sample("a", ("say",)), "said")])
    before = next(number for number, sql in enumerate(MIGRATIONS) if "TABLE rollouts" in sql)
    make_older(run, before)
    with open_run(run) as store:
        assert store.rollouts(store.sample("a").n, 1) == []
    assert [each["extra"]["codex_pool"]["made_of"] for each in written(run, "atif")] == ["record"]
    RunDirectory(run).close()
    with open_run(run) as store:
        assert store.rollouts(store.sample("a").n, 1) == []


def test_a_trajectory_has_steps_calls_and_what_they_used(tmp_path: Path) -> None:
    (found,) = written(run_of(tmp_path / "r", ["commands"]), "atif")
    assert (found["schema_version"], found["trajectory_id"]) == ("ATIF-v1.7", THREADS["commands"])
    assert found["agent"]["name"] == "codex" and found["agent"]["version"] == "0.163.0"
    assert [step["step_id"] for step in found["steps"]] == list(range(1, len(found["steps"]) + 1))
    sources = [step["source"] for step in found["steps"]]
    assert sources == ["system", "system", "system", "user", "agent", "agent", "agent", "user", "agent", "agent"]
    step = found["steps"][4]
    (call,), (result,) = step["tool_calls"], step["observation"]["results"]
    assert call["function_name"] == "exec_command" and call["arguments"]["cmd"] == "echo hi; exit 3"
    assert result["source_call_id"] == call["tool_call_id"] and "exited with code 3" in result["content"]
    assert step["metrics"] == {"prompt_tokens": 5, "completion_tokens": 4, "cached_tokens": 0}
    assert found["steps"][6]["reasoning_content"] == "The user wants an answer. In detail."
    total = sum(step["metrics"]["prompt_tokens"] for step in found["steps"] if "metrics" in step)
    assert found["final_metrics"]["total_prompt_tokens"] == total > 0
    own = found["extra"]["codex_pool"]
    assert (own["made_of"], own["sample"], own["status"]) == ("rollout", "commands", "completed")
    assert own["scores"] == {"exact": {"value": 1.0, "passed": True}}


def test_the_newer_version_is_written_on_request(tmp_path: Path) -> None:
    (found,) = written(run_of(tmp_path / "r", ["sub-agents"]), "atif-1.8")
    assert found["schema_version"] == found["subagent_trajectories"][0]["schema_version"] == "ATIF-v1.8"


def test_a_sub_agent_stands_in_its_parent_and_the_call_that_started_it_refers_to_it(tmp_path: Path) -> None:
    (found,) = written(run_of(tmp_path / "r", ["sub-agents"]), "atif")
    (child,) = found["subagent_trajectories"]
    assert child["trajectory_id"] == THREADS["child"] and child["steps"][-1]["message"] == "child done"
    refs = [
        (result["source_call_id"], each["trajectory_id"])
        for step in found["steps"]
        for result in step.get("observation", {}).get("results", [])
        for each in result.get("subagent_trajectory_ref", [])
    ]
    (call,) = [call for step in found["steps"] for call in step.get("tool_calls", [])]
    assert refs == [(call["tool_call_id"], THREADS["child"])]
    assert call["function_name"] == "multi_agent_v1.spawn_agent"


def test_images_of_known_types_are_images_and_a_compaction_is_a_step(tmp_path: Path) -> None:
    image, compaction = written(run_of(tmp_path / "r", ["image", "compaction"]), "atif")
    (content,) = [r["content"] for s in image["steps"] for r in s.get("observation", {}).get("results", [])]
    assert content[0]["type"] == "image" and content[0]["source"]["media_type"] == "image/png"
    kinds = [step.get("extra", {}).get("kind") for step in compaction["steps"]]
    assert kinds.count("compaction") == 2
    assert compaction["steps"][kinds.index("compaction")]["message"] == "summary of it all"


def test_the_trajectory_of_a_failed_attempt_has_its_steps_and_why_it_failed(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", ["sub-agents", "image"])
    directory = RunDirectory(run)
    problem = {"kind": "lost", "message": "the worker died"}
    for name in ("sub-agents", "image"):
        row = directory.store.sample(name)
        start = directory.start_attempt(row.n, "key", THREADS[name]).result(5)
        rollouts = RolloutArchive().read(THREADS[name], write_home(tmp_path / f"home-{name}", name)[name])
        record = RecordRow("lost", start.attempt, error=problem, thread_id=THREADS[name])
        directory.finish(start, record, {"status": "lost", "error": problem}, rollouts=rollouts).result(5)
    directory.close()
    for name, found in zip(("sub-agents", "image"), written(run, "atif"), strict=True):
        own = found["extra"]["codex_pool"]
        assert (own["sample"], own["status"], own["error"]) == (name, "lost", problem), own
        assert own["scores"] == {} and found["trajectory_id"] == THREADS[name]
        assert [step["source"] for step in found["steps"]].count("agent") >= 1


def test_what_has_no_session_file_is_made_of_less_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = run_of(tmp_path / "r", ["image"], without=["b", "c"])
    with caplog.at_level(logging.WARNING):
        image, b, c = written(run, "atif")
    assert [each["extra"]["codex_pool"]["made_of"] for each in (image, b, c)] == ["rollout", "events", "record"]
    assert [step["message"] for step in b["steps"]] == ["by events"]
    assert [step["message"] for step in c["steps"]] == ["say", "said"]
    (record,) = caplog.records
    assert record.getMessage().startswith("no session file of codex is kept of: b, c; ")


def test_costs_are_in_dollars_or_beside(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", [(Sample("a", ("say",)), "said")], cost=0.5)
    (found,) = written(run, "atif")
    assert found["final_metrics"] == {"total_steps": 2, "extra": {"cost": 0.5}}
    directory = RunDirectory(run)
    directory.launch({"currency": "USD"})
    directory.outcome("finished", {})
    directory.close()
    (found,) = written(run, "atif")
    assert found["final_metrics"] == {"total_steps": 2, "total_cost_usd": 0.5}


def check_chat(messages: Sequence[Mapping[str, Any]]) -> None:
    """What the API for fine-tuning asks of the order and the form of messages."""
    waiting: list[str] = []
    assert messages[-1]["role"] == "assistant"
    for message in messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] == waiting.pop(0) and isinstance(message["content"], str)
            continue
        assert not waiting
        assert message["role"] in ("system", "user", "assistant")
        for call in message.get("tool_calls", []):
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
            assert call["function"]["name"].replace("_", "").replace("-", "").isalnum()
            waiting.append(call["id"])
        assert message["content"] is not None or waiting


def test_chats_have_messages_with_tool_calls(tmp_path: Path) -> None:
    found = written(run_of(tmp_path / "r", ["commands", "no-such-tool", "image"]), "chat")
    for chat in found:
        check_chat(chat["messages"])
    messages = found[0]["messages"]
    roles = [message["role"] for message in messages]
    assert roles[:4] == ["system", "system", "user", "user"]
    assert roles[4:] == [
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    patch = messages[-3]["tool_calls"][0]["function"]
    assert json.loads(patch["arguments"])["input"].startswith("*** Begin Patch")
    assert [each["metadata"]["passed"] for each in found] == [True, True, None]
    assert found[0]["metadata"] == {
        "sample": "commands",
        "epoch": 1,
        "variant": None,
        "status": "completed",
        "passed": True,
        "model": None,
        "thread_id": THREADS["commands"],
        "context": 1,
    }


def test_each_context_and_each_sub_agent_is_a_chat_of_its_own(tmp_path: Path) -> None:
    found = written(run_of(tmp_path / "r", ["compaction", "sub-agents", "fork"]), "chat")
    for chat in found:
        check_chat(chat["messages"])
    assert [(each["metadata"]["sample"], each["metadata"]["context"]) for each in found] == [
        ("compaction", 1),
        ("compaction", 2),
        ("sub-agents", 1),
        ("sub-agents", 1),
        ("fork", 1),
    ]
    first, second = ([message["content"] for message in each["messages"]] for each in found[:2])
    assert "summary of it all" not in first
    assert second[-3].endswith("summary of it all") and second[-2] == "after"
    said = [message["content"] for message in found[-1]["messages"]]
    assert "one" in said and "three" in said and "two" not in said


def test_chats_leave_out_what_is_not_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = run_of(tmp_path / "r", ["image"], without=["b"])
    directory = RunDirectory(run)
    n = directory.store.sample("b").n
    start = directory.start_attempt(n, "key", "t").result(5)
    (kept,) = RolloutArchive().read("t", write_home(tmp_path / "h", "commands")["commands"])
    missing = Rollout("u", "sub-agent", "t", note="no file")
    record = RecordRow("completed", start.attempt)
    directory.finish(start, record, {"status": "completed"}, rollouts=[kept, missing]).result(5)
    directory.close()
    with caplog.at_level(logging.WARNING):
        assert [each["metadata"]["sample"] for each in written(run, "chat")] == ["image"]
    assert "session files are not kept as a whole: b; " in caplog.text
    # A trajectory of it says what is missing.
    assert written(run, "atif")[1]["notes"] == "thread u: no file"


def test_a_call_without_an_output_is_answered_as_codex_answers_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", [(Sample("a", ("say",)), "said")])
    home = tmp_path / "home"
    path = write_home(home, "no-such-tool")["no-such-tool"]
    rest = [line for line in lines("no-such-tool") if b"function_call_output" not in line]
    path.write_bytes(b"".join(line + b"\n" for line in rest))
    directory = RunDirectory(run)
    start = directory.start_attempt(directory.store.sample("a").n, "key", "t").result(5)
    rollouts = RolloutArchive().read(THREADS["no-such-tool"], path)
    directory.finish(start, RecordRow("completed", 2), {"status": "completed"}, rollouts=rollouts).result(5)
    directory.close()
    (found,) = written(run, "chat")
    check_chat(found["messages"])
    assert [message["content"] for message in found["messages"] if message["role"] == "tool"] == ["aborted"]


def test_predictions_have_the_diff_of_each_instance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = [
        (Sample("a__a-1", ("p",)), "x"),
        (Sample("a__a-1", ("p",), epoch=2), "x"),
        (Sample("b__b-2", ("p",)), "x"),
    ]
    run = make_run(tmp_path / "r", samples, model="m")
    directory = run / "artifacts" / "a__a-1"
    directory.mkdir(parents=True)
    (directory / "diff.patch").write_text("diff --git a/x b/x\n")
    with caplog.at_level(logging.WARNING):
        assert written(run, "swebench") == [
            {"instance_id": "a__a-1", "model_name_or_path": "m", "model_patch": "diff --git a/x b/x\n"},
            {"instance_id": "b__b-2", "model_name_or_path": "m", "model_patch": ""},
        ]
    assert "left out, as an instance has one prediction: a__a-1#2; " in caplog.text
    assert "no diff is kept, of: b__b-2; " in caplog.text


def test_predictions_are_of_one_variant(tmp_path: Path) -> None:
    samples = [(Sample("a", ("p",), variant="low"), "x"), (Sample("a", ("p",), variant="high"), "x")]
    run = make_run(tmp_path / "r", samples, model="m")
    with open_run(run) as store:
        with pytest.raises(ExportError, match="name one of high, low with --variant"):
            export_to(store, io.BytesIO(), "swebench")
        files = export(store, tmp_path / "p.jsonl", "swebench")
    assert [path.name for path in files] == ["p-high.jsonl", "p-low.jsonl"]
    assert json.loads(files[0].read_text())["model_name_or_path"] == "m@high"
