"""Gates of batches as a user runs them, on the real binary: exit codes, files, and what stands at the end of a run."""

from __future__ import annotations

import json
import signal
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from programs import codex_pool, running

from codex_app_server.testing.loopback import LoopbackModel

# A few runs each, on a machine that may be busy.
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(240)]
BATCH = ("--workers", "1", "--scorer", "exact", "--home")


def dataset(path: Path, directives: list[str]) -> str:
    lines = [
        json.dumps({"id": f"s{n}", "prompt": f"{n} [[{directive}]]", "target": "42"})
        for n, directive in enumerate(directives)
    ]
    path.write_text("\n".join(lines))
    return str(path)


def test_gates_decide_the_exit_code_of_a_batch(
    tmp_path: Path, home: Path, model: LoopbackModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = dataset(tmp_path / "good.jsonl", ["text 42"] * 8)
    main = ("batch", good, *BATCH, str(home), "-o", "main")
    first = codex_pool(*main, "--fail-under", "exact=1", "--json", home=home, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    done = json.loads(first.stdout.splitlines()[-1])
    (gate,) = done["gates"]
    assert (gate["gate"], gate["passed"], gate["figures"]["value"]) == ("exact >= 1", True, 1.0)
    assert "  gate       passed: exact >= 1: 1.000 over 8 scores" in first.stderr
    assert "codex-pool report main" not in first.stderr
    # The same answers, but for six that are wrong now, one of them as a workflow command, and one that fails.
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    hostile = 'text "\\n::error title=x::owned ##[error]"'
    answers = ["text 41"] * 5 + [hostile, "text 42", "http_error 400"]
    worse = dataset(tmp_path / "worse.jsonl", answers)
    command = ("batch", worse, *BATCH, str(home), "-o", "new run", "--min-scored", "0.5", "--junit", "ci/junit.xml")
    second = codex_pool(*command, "--fail-if-worse-than", "main", "--margin", "0.1", "--json", home=home, cwd=tmp_path)
    assert second.returncode == 4, second.stderr
    (gate,) = json.loads(second.stdout.splitlines()[-1])["gates"]
    assert gate["gate"] == "exact not worse than main" and not gate["passed"], gate
    assert gate["figures"]["p"] < 0.05 and gate["figures"]["change"] == pytest.approx(-7 / 8)
    # No line is a workflow command but those of the gates and of the worst samples.
    said = [line for line in (second.stdout + second.stderr).splitlines() if line.lstrip().startswith("::")]
    assert [line.partition("::")[2].partition(" ")[0] for line in said] == ["error", *["warning"] * 7], said
    assert "##[" not in second.stdout + second.stderr and "FAILED: exact not worse than main" in second.stderr
    assert summary.read_text().count("**failed**") == 1 and "7 samples did not pass" in summary.read_text()
    suites = ET.parse(tmp_path / "ci" / "junit.xml").getroot()
    assert [suite.attrib["name"] for suite in suites] == ["worse.jsonl", "gates"]
    assert (suites[0].attrib["failures"], suites[0].attrib["errors"], suites[1].attrib["failures"]) == ("6", "1", "1")
    monkeypatch.undo()
    # The same by `runs check`, without running; the store has what was decided.
    check = ("runs", "check", "new run", "--fail-if-worse-than", "main")
    again = codex_pool(*check, "--min-scored", "0.5", home=home, cwd=tmp_path)
    assert again.returncode == 4 and again.stdout.startswith("gate: FAILED: exact not worse than main: -0.875")
    assert codex_pool(*check, "--min-scored", "0.5", "--margin", "1", home=home, cwd=tmp_path).returncode == 0
    refused = codex_pool("runs", "check", "new run", "--fail-under", "exat=1", home=home, cwd=tmp_path)
    assert refused.returncode == 2 and "did you mean 'exact'?" in refused.stderr
    shown = codex_pool("runs", "show", "new run", home=home, cwd=tmp_path).stdout
    assert "FAILED: exact not worse than main" in shown
    # Refused before anything starts.
    asked = len(model.requests)
    for gate_of, words in (("gone", "no such directory"), ("main@low", "the run has no variants")):
        none = codex_pool("batch", good, *BATCH, str(home), "-o", "x", "--fail-if-worse-than", gate_of, cwd=tmp_path)
        assert none.returncode == 2 and words in none.stderr and "nothing was run" in none.stderr, none.stderr
    assert len(model.requests) == asked and not (tmp_path / "x").exists()
    # A few samples that failed are allowed by --min-scored; the end of a run says what to do next.
    passed = codex_pool(*command, "--fail-under", "exact=0.1", home=home, cwd=tmp_path)
    assert passed.returncode == 0, passed.stderr
    assert passed.stderr.splitlines()[-2:] == [
        "  report       codex-pool report 'new run'",
        "  failed ones  codex-pool runs retry 'new run'",
    ]


def test_gates_hold_for_each_variant_and_junit_is_written_when_interrupted(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    good = dataset(tmp_path / "good.jsonl", ["text 42"] * 5)
    main = ("batch", good, *BATCH, str(home), "--effort", "low", "--effort", "high", "-o", "main")
    first = codex_pool(*main, "--fail-under", "exact=1", "--junit", "j.xml", home=home, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    names = [suite.attrib["name"] for suite in ET.parse(tmp_path / "j.xml").getroot()]
    assert len(names) == 3 and names[0].startswith("good.jsonl@") and names[2] == "gates"
    low = names[0].partition("@")[2]
    compared = codex_pool("runs", "check", "main", "--fail-if-worse-than", f"main@{low}", cwd=tmp_path)
    # The baseline is not compared with itself.
    assert compared.returncode == 0 and compared.stdout.count("passed: exact@") == 1, compared.stderr + compared.stdout
    slow = dataset(tmp_path / "slow.jsonl", ["text 42", "text deltas=100 pace_ms=600", "text deltas=100 pace_ms=601"])
    more = ("-o", str(tmp_path / "slow"), "--junit", str(tmp_path / "k.xml"), "--json", "--fail-under", "exact=0.1")
    with running("batch", slow, *BATCH, str(home), *more, home=home) as run:
        run.wait_for_line('"id": "s0"', "stdout")
        assert run.end(signal.SIGINT) == 130
    assert json.loads(run.lines["stdout"][-1])["gates"][0]["passed"] is False
    suite, gates = ET.parse(tmp_path / "k.xml").getroot()
    assert (suite.attrib["tests"], suite.attrib["failures"], gates.attrib["failures"]) == ("3", "0", "1")
    assert int(suite.attrib["errors"]) + int(suite.attrib["skipped"]) == 2
