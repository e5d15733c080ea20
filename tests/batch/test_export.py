"""A run as files of others, read back by what those files are for."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from runs import make_run

from codex_batch.dataset import Sample
from codex_batch.export import ExportError, export, export_to
from codex_batch.export.messages import messages
from codex_batch.scoring import Score
from codex_batch.store import open_run

HOSTILE = '</script> "quoted", ünï\nnew line \ud800'
SAMPLES = [
    (Sample("a", ("first", "second"), target=["x", "y"], tags=("t", "u"), metadata={"k": [1]}, model="m"), "yes, x"),
    (Sample("b/c", (HOSTILE,), target=3, limits={"tokens": 5}), HOSTILE),
    (Sample("d", ("p",)), None),
]
SCORES = {
    "a": [
        Score(scorer="exact", value=1.0, passed=True, answer="x", explanation="fits"),
        Score(scorer="judge", value=0.0, error="no model"),
    ],
    "b/c": [Score(scorer="exact", value=0.0, passed=False), Score(scorer="size", value=2.5)],
}
USAGE = {
    "input_tokens": 10,
    "cached_input_tokens": 4,
    "output_tokens": 5,
    "reasoning_output_tokens": 2,
    "total_tokens": 15,
}


def item(**fields: Any) -> dict[str, Any]:
    return {"method": "item/completed", "params": {"item": fields}}


EVENTS = [
    {"method": "turn/started", "params": {"turn": {"id": "t"}}},
    item(type="userMessage", id="u", content=[{"type": "text", "text": "first"}, {"type": "image", "url": "x"}]),
    item(type="reasoning", id="r", summary=["thinking"], content=[]),
    item(type="reasoning", id="r2", summary=[], content=[]),
    item(
        type="commandExecution", id="c", command="ls", cwd="/w", aggregatedOutput="a\n", exitCode=0, status="completed"
    ),
    item(type="fileChange", id="f", changes=[{"path": "a", "kind": "add", "diff": "+x"}], status="completed"),
    item(type="mcpToolCall", id="m", server="s", tool="t", arguments={"q": 1}, result={"content": []}),
    item(type="agentMessage", id="g", text="yes, x"),
    item(type="somethingNew", id="n"),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(
        tmp_path / "run",
        SAMPLES,
        scores=SCORES,
        events={"a": EVENTS},
        usage=USAGE,
        cost=0.25,
        duration_ms=1500,
        started_at=1_700_000_000.0,
        ended_at=1_700_000_002.0,
    )


def exported(run: Path, name: str) -> Path:
    path = run.parent / name
    with open_run(run) as store:
        export(store, path)
    return path


def test_json_lines_are_those_of_the_run(run: Path) -> None:
    assert exported(run, "x.jsonl").read_bytes() == (run / "results.jsonl").read_bytes()


def test_a_table_has_columns_for_each_scorer(run: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(exported(run, "x.csv").read_text(encoding="utf-8"), newline="")))
    assert [row["id"] for row in rows] == ["a", "b/c", "d"]
    first, second, third = rows
    assert (first["score.exact"], first["passed.exact"], first["score.judge"], first["score.size"]) == (
        "1.0",
        "True",
        "",
        "",
    )
    assert (first["total_tokens"], first["cost"], first["tags"], first["prompts"]) == (
        "15",
        "0.25",
        "t,u",
        '["first", "second"]',
    )
    assert second["final_response"].startswith('</script> "quoted", ünï\nnew line')
    assert (third["status"], third["error_kind"], third["error_message"]) == ("failed", "other", "no")


@pytest.mark.parquet
def test_parquet_has_types(run: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(exported(run, "x.parquet"))
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["epoch"], types["cost"], types["id"]) == ("int64", "double", "string")
    assert (types["score.exact"], types["passed.exact"]) == ("double", "bool")
    assert table.column("passed.exact").to_pylist() == [True, False, None]
    assert table.column("id").to_pylist() == ["a", "b/c", "d"]
    with exported(run, "x.csv").open(newline="") as file:
        assert next(csv.reader(file)) == table.column_names


def test_a_transcript_holds_what_was_said_and_done() -> None:
    found = list(messages(EVENTS))
    assert [(message["role"], bool(message.get("tool_calls"))) for message in found] == [
        ("user", False),
        ("assistant", False),
        ("assistant", True),
        ("tool", False),
        ("assistant", True),
        ("tool", False),
        ("assistant", True),
        ("tool", False),
        ("assistant", False),
    ]
    assert found[0]["content"] == "first\n[image]"
    assert found[3]["content"] == "a\n\n[exit code 0]" and found[3]["tool_call_id"] == "c"
    assert found[6]["tool_calls"][0]["function"] == "s.t"


# Read by Inspect's own reader, in a process of its own: it is no part of ours.
READ = """
import json, sys
from inspect_ai.log import read_eval_log, read_eval_log_sample, read_eval_log_sample_summaries
log = read_eval_log(sys.argv[1])
one = read_eval_log_sample(sys.argv[1], "b/c", 1)
header = read_eval_log(sys.argv[1], header_only=True)
a, b, d = log.samples
print(json.dumps({
    "status": log.status,
    "task": log.eval.task,
    "dataset": [log.eval.dataset.name, log.eval.dataset.samples],
    "revision": [log.eval.revision.commit, log.eval.revision.dirty],
    "model": log.eval.model,
    "metrics": {s.name: {m.name: m.value for m in s.metrics.values()} for s in header.results.scores},
    "unscored": {s.name: s.unscored_samples for s in header.results.scores},
    "usage": {m: u.model_dump(exclude_none=True) for m, u in log.stats.model_usage.items()},
    "ids": [[s.id, s.epoch] for s in log.samples],
    "scores": {n: [s.value, s.answer, s.explanation] for n, s in a.scores.items()},
    "input": [m.text for m in a.input],
    "roles": [m.role for m in a.messages],
    "call": a.messages[2].tool_calls[0].arguments,
    "completion": a.output.completion,
    "target": [a.target, b.target, d.target],
    "metadata": a.metadata,
    "own": a.store["codex_pool"]["not_scored"],
    "times": [a.total_time, a.working_time, a.started_at],
    "error": d.error.message,
    "limit": [b.limit.type, b.limit.limit] if b.limit else None,
    "one": one.input,
    "summaries": [[s.id, s.completed, s.error] for s in read_eval_log_sample_summaries(sys.argv[1])],
}))
"""


@pytest.mark.generate
def test_inspect_reads_its_log(run: Path) -> None:
    path = exported(run, "x.eval")
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    usage = {
        "input_tokens": 6,
        "output_tokens": 5,
        "total_tokens": 15,
        "input_tokens_cache_read": 4,
        "reasoning_tokens": 2,
        "total_cost": 0.25,
    }
    assert read == {
        "status": "success",
        "task": "run",
        "dataset": ["d.jsonl", 3],
        "revision": ["4f2a91c", True],
        "model": "codex/default",
        "metrics": {
            "exact": {"accuracy": 0.5, "mean": 0.5, "stderr": 0.5},
            "judge": {},
            "size": {"mean": 2.5},
        },
        "unscored": {"exact": 0, "judge": 1, "size": 0},
        "usage": {"codex/m": usage, "codex/default": {name: 2 * value for name, value in usage.items()}},
        "ids": [["a", 1], ["b/c", 1], ["d", 1]],
        "scores": {"exact": [1.0, "x", "fits"]},
        "input": ["first", "second"],
        "roles": ["user", "assistant", "assistant", "tool", "assistant", "tool", "assistant", "tool", "assistant"],
        "call": {"cmd": "ls", "cwd": "/w"},
        "completion": "yes, x",
        "target": [["x", "y"], "3", ""],
        "metadata": {"k": [1], "tags": ["t", "u"]},
        "own": {"judge": "no model"},
        "times": [2.0, 1.5, "2023-11-14T22:13:20+00:00"],
        "error": "failed: no",
        "limit": None,
        "one": HOSTILE,
        "summaries": [["a", True, None], ["b/c", True, None], ["d", True, "failed: no"]],
    }


def test_a_limit_is_one_in_inspects_words(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", SAMPLES[1:2], limit="tokens", error={"kind": "limit", "message": "too many"})
    with zipfile.ZipFile(exported(run, "x.eval")) as archive:
        assert archive.testzip() is None
        (name,) = [name for name in archive.namelist() if name.startswith("samples/")]
        assert json.loads(archive.read(name))["limit"] == {"type": "token", "limit": 5.0, "reason": "too many"}
        assert json.loads(archive.read("summaries.json"))[0]["limit"] == "token"


def test_what_cannot_be_exported_is_said_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    with open_run(run) as store:
        for path, format, words in (
            (tmp_path / "x.xlsx", None, "no known ending; name a format of jsonl, csv, parquet, inspect"),
            (tmp_path / "x", "xml", "no format 'xml'; expected one of jsonl, csv, parquet, inspect"),
            (tmp_path / "none" / "x.csv", None, "cannot be written: No such file or directory; name another file"),
        ):
            with pytest.raises(ExportError, match=words):
                export(store, path, format)
        stream = io.BytesIO()
        export_to(store, stream, "jsonl")
        assert stream.getvalue().count(b"\n") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", pytest.param("x.parquet", marks=pytest.mark.parquet), "x.eval"])
def test_a_run_without_samples_is_exported(tmp_path: Path, name: str) -> None:
    assert exported(make_run(tmp_path / "run", []), name).exists()
