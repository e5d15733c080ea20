"""Variants with an AGENTS.md or a codex binary of their own, on the real binary."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import codex_cli_bin
import pytest
from programs import LIMIT_S, Program, codex_pool, running

from codex_app_server.testing.loopback import Attempts, Hang, LoopbackModel, Rule, Script, Text, ToolCall
from codex_pool.runtime import processes

pytestmark = [pytest.mark.real, pytest.mark.git]


def binary(path: Path, trace: Path) -> Path:
    """A program that notes its process and becomes the real codex."""
    codex = shlex.quote(str(codex_cli_bin.bundled_codex_path()))
    path.write_text(f'#!/bin/sh\necho "$$ $*" >> {shlex.quote(str(trace))}\nexec {codex} "$@"\n')
    path.chmod(0o755)
    return path


def records(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return {(record["id"], record["variant"]): record for record in found}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "template").mkdir()
    (tmp_path / "template" / "AGENTS.md").write_text("Of the template.\n")
    (tmp_path / "template" / "AGENTS.override.md").write_text("Of the template as well.\n")
    samples: list[dict[str, Any]] = [
        {"id": "work", "prompt": "work", "workspace": {"template": str(tmp_path / "template")}},
        {"id": "none", "prompt": "none"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


@pytest.fixture
def script(model: LoopbackModel) -> None:
    model.script = Script(
        (
            Rule(ToolCall("cat AGENTS*; echo made > made", Text("{output}")), contains="work"),
            Rule(Text("terse"), instructions="Be terse."),
        ),
        Text("long"),
    )


@pytest.mark.usefixtures("script")
def test_each_variant_has_its_own_agents_md_and_binary(
    tmp_path: Path, home: Path, model: LoopbackModel, data: Path
) -> None:
    trace = tmp_path / "trace"
    binary(tmp_path / "codex-b", trace)
    (tmp_path / "terse.md").write_text("Be terse.\n")
    (tmp_path / "long.md").write_text("Be long.\n")
    variants = tmp_path / "variants.toml"
    variants.write_text(
        '[[variant]]\nname = "terse"\nagents_md = "terse.md"\n'
        '[[variant]]\nname = "long"\nagents_md = "long.md"\ncodex_bin = "./codex-b"\n'
        '[[variant]]\nname = "own"\n'
    )
    out = tmp_path / "out"
    options = ("--variants", str(variants), "--workers", "3", "--json", "-o", str(out))
    done = codex_pool("batch", str(data), *options, home=home)
    assert done.returncode == 0, done.stderr
    launch, *_ = events = [json.loads(line) for line in done.stdout.splitlines()]
    # Two of three variants have the run's own binary, and so two of three workers.
    assert launch["workers"] == 3 and not [event for event in events if event["event"] == "warning"]
    started = [line for line in trace.read_text().splitlines() if "app-server" in line]
    assert len(started) == 2, "one is asked for its configuration, the other one is the worker"
    workers = Counter((record["worker"], name == "long") for (_, name), record in records(out).items())
    assert sum(workers.values()) == 6

    found = records(out)
    for name in ("terse", "long"):
        work, none = found["work", name], found["none", name]
        assert work["agents_md"] == none["agents_md"] == "developer_instructions"
        # The agent sees the variant's alone, and changes nothing of it.
        assert work["final_response"].strip() == f"Be {name}." and none["final_response"] == name
        diff = (out / "artifacts").glob("*/diff.patch")
        assert all("AGENTS" not in each.read_text() and "+made" in each.read_text() for each in diff)
    assert found["work", "own"]["agents_md"] == "developer_instructions" and found["none", "own"]["agents_md"] is None
    assert "Of the template" in found["work", "own"]["final_response"]
    asked = Counter(
        next((text for text in ("Be terse.", "Be long.", "as well.") if text in request.instructions), "none")
        for request in model.requests
    )
    assert asked == {"Be terse.": 3, "Be long.": 3, "as well.": 2, "none": 1}
    assert len({record["fingerprint"] for record in found.values()}) == 6

    # The workspaces are made again, each with the AGENTS.md that it had, and the diffs apply.
    check = """command:test -e made && cat AGENTS.md && test "$(cat AGENTS.md)" = "Be terse." """
    scored = codex_pool("score", str(out), "--scorer", check.strip())
    assert scored.returncode in (0, 1), scored.stderr
    passed = {key: record["scores"]["command"]["passed"] for key, record in records(out).items() if key[0] == "work"}
    assert passed == {("work", "terse"): True, ("work", "long"): False, ("work", "own"): False}

    # Another text is another configuration, and it is said what changed.
    (tmp_path / "long.md").write_text("Be longer.\n")
    again = codex_pool("batch", str(data), *options, home=home)
    assert again.returncode == 2 and "agents md" in again.stderr, again.stderr


def supervisor_of(batch: Program, trace: Path) -> int:
    """The supervisor of the pool whose app-server is the last in the trace."""
    child = int(trace.read_text().splitlines()[-1].split()[0])
    for process in processes.descendants(batch.process.pid):
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        if b"codex_pool.supervisor" in command and child in {each.pid for each in processes.descendants(process.pid)}:
            return process.pid
    raise AssertionError("no supervisor")


def test_one_pool_is_lost_and_the_samples_of_the_other_binary_go_on(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    trace, out, data = tmp_path / "trace", tmp_path / "out", tmp_path / "data.jsonl"
    binary(tmp_path / "codex-b", trace)
    data.write_text("".join(json.dumps({"id": str(n), "prompt": f"{n}"}) + "\n" for n in range(2)))
    variants = tmp_path / "variants.toml"
    variants.write_text(
        '[[variant]]\nname = "a"\nmodel = "model-a"\n[[variant]]\nname = "b"\nmodel = "model-b"\n'
        'codex_bin = "./codex-b"\n'
    )
    model.script = Script((Rule(Attempts.of(Hang(), Text("b")), model="model-b"),), Text("a"))
    # Fewer workers than binaries: each has one.
    options = ("--variants", str(variants), "--workers", "1", "--retries", "1", "--json", "-o", str(out))
    with running("batch", str(data), *options, home=home) as batch:
        model.wait_for(lambda record: record.outcome == "hanging", LIMIT_S, count=2)
        model.wait_for(lambda record: record.model == "model-a" and record.outcome == "completed", LIMIT_S, count=2)
        os.kill(supervisor_of(batch, trace), signal.SIGKILL)
        assert batch.wait() == 0, batch.lines
    attempts = {key: record["attempts"] for key, record in records(out).items()}
    assert attempts == {("0", "a"): 1, ("0", "b"): 2, ("1", "a"): 1, ("1", "b"): 2}
    assert {record["final_response"] for (_, name), record in records(out).items() if name == "b"} == {"b"}
    events = [json.loads(line) for line in batch.lines["stdout"]]
    said = [event["message"] for event in events if event["event"] == "warning"]
    assert said[0].startswith("the pool of codex-b was lost: ") and said[1].startswith(
        "the pool of codex-b was replaced"
    )
    assert len(said) == 2 and events[0]["workers"] == 2
    assert batch.lines["stderr"][0].startswith("batch: 4 samples of ")
    assert "; 1 + 1 workers x " in batch.lines["stderr"][0]


def test_a_binary_that_cannot_start_or_be_used_is_named_and_nothing_is_run(
    tmp_path: Path, home: Path, data: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 7\n")
    broken.chmod(0o755)
    variants = tmp_path / "variants.toml"
    variants.write_text('[[variant]]\nname = "good"\n[[variant]]\nname = "bad"\ncodex_bin = "./broken"\n')
    out = tmp_path / "out"
    done = codex_pool("batch", str(data), "--variants", str(variants), "-o", str(out), home=home)
    assert done.returncode == 3 and f"codex_bin {broken} of variant bad: " in done.stderr, done.stderr
    assert not (out / "results.jsonl").exists() or not (out / "results.jsonl").read_text()
    # A daemon has a binary of its own.
    daemon = ("--connect", f"ipc://{tmp_path}/x", "-o", str(tmp_path / "other"))
    done = codex_pool("batch", str(data), "--variants", str(variants), *daemon)
    assert done.returncode == 2 and not (tmp_path / "other").exists()
    assert "codex_bin of variant bad: cannot go with --connect" in done.stderr
