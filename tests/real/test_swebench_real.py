"""SWE-bench from rows to predictions: a clone, an agent that resolves one of two issues, and the tests of the rows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from programs import codex_pool
from swebench_rows import SHORT, make_repository, row

from codex_app_server.testing.loopback import Rule, Script, Text, ToolCall

pytestmark = [pytest.mark.real, pytest.mark.git, pytest.mark.slow]


def test_issues_are_resolved_scored_and_exported(tmp_path: Path) -> None:
    commit = make_repository(tmp_path / "clones" / "calc")
    second = {**row(commit), "instance_id": "owner__calc-2", "problem_statement": "Nothing that the agent can do."}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(each) + "\n" for each in (row(commit), second)))
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    done = codex_pool(
        *("convert", "swebench", str(rows), "--repositories", str(tmp_path / "clones")),
        *("--test-command", SHORT, "-o", str(tasks)),
    )
    assert done.returncode == 0, done.stderr
    # It sees neither the tests of the row nor the check, and fixes what it is told of.
    fix = "test ! -e .swebench && ! grep -q add test_calc.py && sed -i 's/a - b/a + b/' calc.py"
    script = Script((Rule(ToolCall(fix, then=Text("fixed")), contains="add(2, 3) is -1"),), Text("no idea"))
    (tmp_path / "agent.json").write_bytes(script.to_json())
    done = codex_pool(
        *("batch", str(tasks / "tasks.jsonl"), "--demo-script", str(tmp_path / "agent.json")),
        *("--workers", "1", "-o", str(out)),
    )
    assert done.returncode == 0, done.stderr
    records = {record["id"]: record for record in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    scores = {name: record["scores"]["resolved"] for name, record in records.items()}
    assert {name: (score["value"], score["error"]) for name, score in scores.items()} == {
        "owner__calc-1": (1.0, None),
        "owner__calc-2": (0.0, None),
    }
    assert scores["owner__calc-2"]["metadata"] == {"fail_to_pass": "0/1", "pass_to_pass": "1/1"}
    done = codex_pool("runs", "export", str(out), "--format", "swebench")
    first, last = map(json.loads, done.stdout.splitlines())
    assert first["instance_id"] == "owner__calc-1" and last["model_patch"] == ""
    # The patch is of the repository at its base commit, and has nothing of the tests or the check.
    assert [line for line in first["model_patch"].splitlines() if line.startswith("diff")] == [
        "diff --git a/calc.py b/calc.py"
    ]
    again = tmp_path / "again"
    make_repository(again)
    (tmp_path / "p.diff").write_text(first["model_patch"])
    subprocess.run(["git", "apply", str(tmp_path / "p.diff")], cwd=again, check=True, timeout=30)
    assert "a + b" in (again / "calc.py").read_text()
