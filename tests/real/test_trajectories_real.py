"""Session files of real turns, archived with their attempts, and what is exported of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from programs import codex_pool
from test_batch_real import dataset

from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, Text, ToolCall
from codex_batch.export import export_to
from codex_batch.store import open_run

pytestmark = pytest.mark.real

SECRET = "tok-of-a-tool-01"
CHILD = "please work as a child"
SCRIPT = Script(
    (
        Rule(Text("child done"), contains=CHILD),
        Rule(
            # Its answer takes its time: what a sub-agent does after the end of the turn is not kept.
            ToolCall(
                json.dumps({"message": CHILD}),
                tool="multi_agent_v1.spawn_agent",
                then=Text("delegated", deltas=9, pace_ms=300),
            ),
            contains="delegate this",
        ),
        Rule(ToolCall(["echo made > new.txt; cat new.txt", "exit 3"], then=Text("ran: {output}")), contains="run"),
        # From work/look/workspace.
        Rule(ToolCall("ls ../../../rollouts", then=Text("{output}")), contains="look at the others"),
        Rule(ToolCall(f"echo {SECRET}", then=Text("{output}")), contains="say the secret"),
    )
)
SAMPLES: list[dict[str, Any]] = [
    {"id": "commands", "prompts": ["run commands", "thank you"], "workspace": {"files": {"a.txt": "a\n"}}},
    {"id": "agents", "prompt": "delegate this"},
    {"id": "secret", "prompt": "say the secret"},
    {"id": "look", "prompt": "look at the others", "workspace": {"files": {"a.txt": "a\n"}}},
    *({"id": f"s{number}", "prompt": f"sample {number}"} for number in range(6)),
]


def exported(run: Path, format: str) -> list[dict[str, Any]]:
    file = io.BytesIO()
    with open_run(run) as store:
        export_to(store, file, format)
    return [json.loads(line) for line in file.getvalue().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    data, out = dataset(directory / "d.jsonl", *SAMPLES), directory / "out"
    script = directory / "agent.json"
    script.write_bytes(SCRIPT.to_json())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_API_TOKEN", SECRET)
        done = codex_pool("batch", str(data), "--demo-script", str(script), "--workers", "1", "-o", str(out))
    assert done.returncode == 0, done.stderr
    return out


def test_each_attempt_has_the_whole_of_its_session_file(run: Path) -> None:
    found = exported(run, "atif")
    with open_run(run) as store:
        for row, trajectory in zip(store.samples(), found, strict=True):
            assert row.record is not None
            assert trajectory["extra"]["codex_pool"]["made_of"] == "rollout"
            # What codex writes last, tokens after the answer.
            last = [step for step in trajectory["steps"] if step["source"] == "agent"][-1]
            assert last["message"] == row.record.final_response
            assert last["metrics"]["prompt_tokens"] > 0


def test_commands_have_their_raw_arguments_and_outputs(run: Path) -> None:
    (trajectory,) = (each for each in exported(run, "atif") if each["extra"]["codex_pool"]["sample"] == "commands")
    calls = [call for step in trajectory["steps"] for call in step.get("tool_calls", [])]
    assert [call["arguments"]["cmd"] for call in calls] == ["echo made > new.txt; cat new.txt", "exit 3"]
    results = [each for step in trajectory["steps"] for each in step.get("observation", {}).get("results", [])]
    assert "made" in results[0]["content"] and "exited with code 3" in results[1]["content"]
    assert [step["message"] for step in trajectory["steps"] if step["source"] == "user"] == SAMPLES[0]["prompts"]


def test_sub_agents_are_in_the_trajectory_and_in_the_chats(run: Path) -> None:
    (trajectory,) = (each for each in exported(run, "atif") if each["extra"]["codex_pool"]["sample"] == "agents")
    (child,) = trajectory["subagent_trajectories"]
    assert child["steps"][-1]["message"] == "child done"
    chats = [each for each in exported(run, "chat") if each["metadata"]["sample"] == "agents"]
    assert [chat["messages"][-1]["content"] for chat in chats] == ["delegated", "child done"]


def test_secrets_are_not_in_what_is_kept(run: Path) -> None:
    with open_run(run) as store:
        row = store.sample("secret")
        text = b"\n".join(store.rollout_lines(store.rollouts(row.n, 1)[0]))
    assert SECRET.encode() not in text and b"[redacted SOME_API_TOKEN]" in text


def test_an_agent_does_not_see_the_session_files_of_others(run: Path) -> None:
    with open_run(run) as store:
        record = store.sample("look").record
    assert record is not None and record.final_response is not None
    # The sandbox hides the directory, or does not open it.
    assert "ls: cannot " in record.final_response and ".gz" not in record.final_response
    assert list((run / "rollouts").glob("*.gz"))


@pytest.mark.slow
def test_a_run_without_rollouts_has_none_and_the_export_says_so(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    data, out = dataset(tmp_path / "d.jsonl", {"id": "a", "prompt": "[[text fine]]"}), tmp_path / "out"
    done = codex_pool("batch", str(data), "--home", str(home), "--workers", "1", "--no-rollouts", "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert not (out / "rollouts").exists()
    done = codex_pool("runs", "export", str(out), "--format", "atif")
    (trajectory,) = map(json.loads, done.stdout.splitlines())
    assert [step["message"] for step in trajectory["steps"]] == ["[[text fine]]", "fine"]
    assert done.stderr.startswith("no session file of codex is kept of: a; ")
    done = codex_pool("runs", "export", str(out), "--format", "chat")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("left out, because their session files are not kept as a whole: a; ")
