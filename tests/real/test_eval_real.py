"""The example evaluation, over workspaces, the real codex and real commands to scores: it gives what is intended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs import codex_pool
from test_report import Page

from codex_batch.report.packing import unpack

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
EVAL = ROOT / "examples" / "eval"
AGENT = EVAL / "_demo" / "agent.toml"
EXPECTED: dict[str, dict[str, Any]] = json.loads((EVAL / "_demo" / "expected.json").read_text())
SCORER = "hidden-tests"


def run(output: Path, agent: Path) -> dict[str, dict[str, Any]]:
    """Return what the evaluation gives, by id."""
    done = codex_pool(
        *("batch", str(EVAL), "--demo-script", str(agent), "--retries", "1", "-o", str(output)), limit_s=120
    )
    assert done.returncode == 1, done.stderr
    records = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == sorted(EXPECTED)
    return {record["id"]: record for record in records}


def total(records: dict[str, dict[str, Any]]) -> float:
    return sum(map(value, records.values()))


def value(record: dict[str, Any]) -> float:
    """Return what a sample adds to the score: one that is not scored adds nothing."""
    score = record["scores"].get(SCORER)
    return 0.0 if score is None or score["error"] is not None else float(score["value"])


def reported(path: Path, *runs: Path) -> Page:
    """The report of one run, or of two compared."""
    done = codex_pool("report", *map(str, runs), "-o", str(path), limit_s=30)
    assert (done.returncode, done.stdout) == (0, f"{path}\n"), done.stderr
    return Page(path.read_text())


Evaluated = tuple[Path, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The run directory and its records."""
    output = tmp_path_factory.mktemp("eval") / "out"
    return output, run(output, AGENT)


def test_every_sample_ends_and_scores_as_its_script_intends(
    evaluated: Evaluated,
) -> None:
    records = evaluated[1]
    assert {name: {"status": record["status"], "score": value(record)} for name, record in records.items()} == EXPECTED
    assert records["log-parser"]["attempts"] == 2 == records["merge-intervals"]["attempts"]
    assert records["top-words"]["limit"] == "tool_calls"
    assert len(records["bank-account"]["responses"]) == 2
    assert records["csv-totals"]["duration_ms"] > 2000


def test_what_agents_changed_is_kept_and_their_workspaces_are_not(
    evaluated: Evaluated,
) -> None:
    output = evaluated[0]
    diff = (output / "artifacts" / "leap-year" / "diff.patch").read_text()
    assert "+    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)" in diff and "test_hidden" not in diff
    assert "InsufficientFunds" in (output / "artifacts" / "bank-account" / "diff.patch").read_text()
    work = output / "work"
    assert not work.exists() or list(work.rglob("*")) == []


def test_its_report_says_what_the_records_say(evaluated: Evaluated, tmp_path: Path) -> None:
    output, records = evaluated
    page = reported(tmp_path / "report.html", output)
    rows = {row["id"]: row for row in page.rows()}
    assert {name: row["status"] for name, row in rows.items()} == {name: r["status"] for name, r in records.items()}
    assert {name: row["scores"][0][1] for name, row in rows.items() if row["scores"]} == {
        name: record["scores"][SCORER]["value"] for name, record in records.items() if record["scores"]
    }
    details = unpack(page.packed["segment-0"])
    leap_year = details[rows["leap-year"]["item"]]
    assert leap_year["diff"] == (output / "artifacts" / "leap-year" / "diff.patch").read_text()
    entries = leap_year["attempts"][0]["entries"]
    assert [entry["kind"] for entry in entries] == ["user", "command", "command", "command", "agent", "turn"]
    assert "return year % 4 == 0" in entries[1]["text"] + entries[2]["text"] and entries[2]["exit_code"] == 0
    assert entries[-2]["text"] == records["leap-year"]["final_response"]
    users = [entry["kind"] for entry in details[rows["bank-account"]["item"]]["attempts"][0]["entries"]].count("user")
    assert users == 2 and len(details[rows["log-parser"]["item"]]["attempts"]) == 2


def test_another_script_for_one_sample_lowers_the_score_by_exactly_one_and_looking_for_answers_gains_nothing(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    hidden = [EVAL / "slugify" / "tests" / "test_hidden.py", AGENT, output / "run.sqlite", output / "home/config.toml"]
    look = f"cat {' '.join(map(str, hidden))}; ls {EVAL} {output} {output}/work; ls -d ..; cat ../base.git/HEAD"
    text = _replaced(AGENT.read_text(), 'for file in "$1"/*.txt; do', "for file in $1/*.txt; do")
    text = _replaced(
        text,
        'type = "text"\ntext = "Done: `slugify` now replaces everything but letters and digits by single hyphens."\n'
        "pace_ms = 5\n",
        f'type = "tool_call"\ncmd = "{look}"\nthen = {{ type = "text", text = "{{output}}" }}\n',
    )
    agent = tmp_path / "agent.toml"
    agent.write_text(text)
    before, after = evaluated[1], run(output, agent)
    assert total(after) == total(before) - 1
    rows = reported(tmp_path / "compared.html", evaluated[0], output).rows()
    values = {row["id"]: [side[1][0][1] if side[1] else None for side in (row["a"], row["b"])] for row in rows}
    assert {name: pair for name, pair in values.items() if pair[0] != pair[1]} == {"backup-script": [1.0, 0.0]}
    assert [name for name in after if value(after[name]) != value(before[name])] == ["backup-script"]
    seen = after["slugify"]["final_response"]
    assert seen.count("Permission denied") + seen.count("No such file") >= 7, seen
    assert not any(word in seen for word in ("test_titles", "rules.answer", "SQLite", "loopback", "refs/heads")), seen


def _replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)
