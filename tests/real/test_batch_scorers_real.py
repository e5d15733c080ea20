"""Scorers of a run on the real binary: an agent's work is scored by what it could not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import codex_pool

from codex_batch.store import open_run

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


@pytest.mark.real
def test_a_scorer_that_cannot_start_is_said_once_and_answers_are_found_by_one_option(
    tmp_path: Path, home: Path
) -> None:
    data, out, template = tmp_path / "data.jsonl", tmp_path / "out", tmp_path / "ask.txt"
    asked = '[[text "So 3 and 1. #### 4 (in 2 steps)"]]'
    lines = [{"id": n, "question": asked, "target": "3 + 1\n#### 4", "level": "easy"} for n in range(3)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    template.write_text("{{ question }}")
    scorers = ("--scorer", "command:exec no-such-program", "--scorer", "number", "--answer", r"#### (\d+)")
    options = ["--workers", "1", "--home", str(home), "--prompt-template", str(template), "-o", str(out)]
    done = codex_pool("batch", str(data), *options, *scorers)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("not scored: cannot be started: exit code 127 (no such program)") == 1
    assert "3 not scored: the scorer failed" in done.stderr
    with open_run(out) as store:
        for row in store.samples():
            command, number = row.scores
            assert (command.value, command.passed) == (None, None) and "no-such-program" in (command.error or "")
            assert (number.passed, number.answer, number.error) == (True, "4", None), number
