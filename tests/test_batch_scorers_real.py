"""Scorers of a run on the real binary: an agent's work is scored by what it could not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import codex_pool

from codex_pool.batch.store import open_run

SECRET = "the-answer-is-42"


@pytest.mark.real
def test_an_agent_cannot_read_what_a_scorer_of_the_run_brings(tmp_path: Path, home: Path) -> None:
    hidden, data, out = tmp_path / "hidden.txt", tmp_path / "data" / "data.jsonl", tmp_path / "out"
    hidden.write_text(SECRET)
    data.parent.mkdir()
    look = f'[[tool_call "echo looked; cat {hidden}; echo 42 > mine"]] [[text done]]'
    sample = {"id": "a", "prompt": look, "sandbox": "workspace-write", "workspace": {"files": {"readme": "x"}}}
    data.write_text(json.dumps(sample) + "\n")
    check = 'test "the-answer-is-$(cat mine)" = "$(cat hidden)"'
    scorer = json.dumps({"type": "command", "command": check, "files": {"hidden": str(hidden)}})
    options = ["--workers", "1", "--home", str(home), "--scorer", scorer, "-o", str(out)]
    done = codex_pool("batch", str(data), *options)
    assert done.returncode == 0, done.stderr
    with open_run(out) as store:
        (row,) = store.samples()
        events = json.dumps(list(store.events(row.n, 1)))
    assert "looked" in events and SECRET not in events.replace(look, "")
    assert [score.passed for score in row.scores] == [True], row.scores
