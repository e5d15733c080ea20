"""The package of examples/plugin, built and installed, in a batch on the real binary."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from collector import Collector
from programs import LIMIT_S, codex_pool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
QUESTIONS = '[[text "8"]] How many legs has a spider? => 8\n# Comment\n[[text "five"]] And a hexagon sides? => 6\n'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the example is installed in."""
    directory = tmp_path_factory.mktemp("plugin")
    source = directory / "source"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("dist", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--disable-pip-version-check", "--target", str(directory / "site"), str(source)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    return directory / "site"


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(site), path))))
    return site


@pytest.mark.real
def test_the_example_is_used_end_to_end(installed: Path, tmp_path: Path, home: Path) -> None:
    listed = codex_pool("plugins", "--check", "--json")
    found = {(each["group"], each["name"]): each["problem"] for each in json.loads(listed.stdout)["plugins"]}
    assert listed.returncode == 0 and found == {
        ("codex_pool.datasets", "questions"): None,
        ("codex_pool.exporters", "markdown"): None,
        ("codex_pool.on_record", "tally"): None,
        ("codex_pool.scorers", "length"): None,
    }
    data, out = tmp_path / "q.txt", tmp_path / "run"
    data.write_text(QUESTIONS)
    scorer = '{"type": "length", "arguments": {"most": 2}}'
    done = codex_pool(
        *("batch", str(data), "--format", "questions", "--scorer", scorer, "--scorer", "exact", "-o", str(out)),
        *("--on-record", "tally", "--workers", "1", "--home", str(home), "--json"),
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["hooks"] == {"tally": {"delivered": 2, "failed": 0, "left_out": 0, "error": None}}
    samples = {event["id"]: event for event in events if event["event"] == "sample"}
    scores = {name: [score["passed"] for score in sample["scores"].values()] for name, sample in samples.items()}
    assert scores == {"line-1": [True, True], "line-3": [False, False]}
    assert json.loads((out / "tally.json").read_text()) == {"completed": 2}
    exported = codex_pool("runs", "export", str(out), "--format", "markdown")
    assert exported.stdout == "# run\n\n- **line-1** (completed): 8\n- **line-3** (completed): five\n"


@pytest.mark.real
def test_a_run_goes_on_with_a_hook_that_dies_and_loses_no_record(installed: Path, tmp_path: Path, home: Path) -> None:
    data, out = tmp_path / "q.txt", tmp_path / "run"
    data.write_text(QUESTIONS)
    common = ("--format", "questions", "--workers", "1", "--home", str(home), "-o", str(out))
    refused = codex_pool("batch", str(data), *common, "--on-record", "talley")
    assert refused.returncode == 2 and not out.exists(), refused.stderr
    assert "--on-record: no hook 'talley'; expected one of " in refused.stderr
    # A directory in the way of the file that the hook writes at the end.
    (out / "tally.json").mkdir(parents=True)
    done = codex_pool("batch", str(data), *common, "--on-record", "tally")
    assert done.returncode == 0, done.stderr
    assert "in codex-pool-example 1.0: its end: IsADirectoryError" in done.stderr
    assert "on record: tally  2 records; last error: its end: IsADirectoryError" in done.stderr
    assert len((out / "results.jsonl").read_text().splitlines()) == 2


@pytest.mark.real
def test_the_spans_of_samples_reach_a_collector(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    data, out = tmp_path / "d.jsonl", tmp_path / "run"
    data.write_text('{"id": "a", "prompt": "[[text SECRET]]", "target": "SECRET"}\n')
    monkeypatch.setenv("TRACEPARENT", f"00-{trace}-{span}-01")
    with Collector() as collector:
        for name, value in collector.environment.items():
            monkeypatch.setenv(name, value)
        done = codex_pool(
            *("batch", str(data), "--scorer", "exact", "--on-record", "opentelemetry", "--workers", "1"),
            *("--home", str(home), "-o", str(out)),
        )
        assert done.returncode == 0, done.stderr
        assert "on record: opentelemetry  1 record\n" in done.stderr
        (sample,) = collector.spans
    (record,) = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert (sample.name, sample.trace, sample.parent) == ("codex_pool.sample", trace, span)
    assert (sample.begin, sample.end) == (round(record["started_at"] * 1e9), round(record["ended_at"] * 1e9))
    wanted = {
        "codex_pool.sample.id": "a",
        "codex_pool.outcome": "completed",
        "codex_pool.score.exact": 1.0,
        "codex_pool.run": "run",
        "gen_ai.conversation.id": record["thread_id"],
        "gen_ai.usage.output_tokens": record["usage"]["output_tokens"],
    }
    assert wanted.items() <= sample.attributes.items() and "SECRET" not in repr(sample)
