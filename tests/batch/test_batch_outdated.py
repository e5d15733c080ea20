"""Scores that the same command makes again when targets, scorers or their files were changed, and those that stay."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from codex_batch.dataset import Sample
from codex_batch.display.summary import dataset_changes
from codex_batch.run.scheduler import entry_of
from codex_batch.scoring import Score, Scorers
from codex_batch.store import DatasetChanges, RecordRow, RunDirectory, ScoreRow


def load(path: Path, samples: list[Sample], scorers: Scorers) -> tuple[DatasetChanges, list[str]]:
    """Take the samples as a command does; what is new, and the ids of what is to be scored."""
    with contextlib.closing(RunDirectory(path)) as directory:
        directory.launch({})
        news = directory.load([entry_of(sample, scorers) for sample in samples], "d.jsonl")
        return news, [row.id for row in directory.store.samples(state="scoring")]


def run(path: Path, samples: list[Sample], scorers: Scorers, *, others: tuple[str, ...] = ()) -> None:
    """Have the samples completed, and scored by the scorers and by some that `codex-pool score` named."""
    with contextlib.closing(RunDirectory(path)) as directory:
        directory.launch({})
        directory.load([entry_of(sample, scorers) for sample in samples], "d.jsonl")
        for sample in samples:
            n = directory.store.sample(*sample.key).n
            start = directory.start_attempt(n, "k", "t").result(5)
            directory.finish(start, RecordRow("completed", 1, final_response="x"), {"status": "completed"}).result(5)
            dependencies = {**scorers.dependencies_of(sample), **Scorers(others).dependencies_of(sample)}
            directory.replace_scores(
                n, [Score(scorer=name, value=1.0) for name in dependencies], dependencies=dependencies
            )


def sample(name: str, **fields: Any) -> Sample:
    return Sample(name, (f"prompt of {name}",), **{"target": "x", **fields})


SAMPLES = [sample("a"), sample("b", metadata={"k": 1}), sample("c", tags=("t",))]
EXACT = ("exact",)


def test_what_was_not_changed_is_not_scored_again(tmp_path: Path) -> None:
    run(tmp_path, SAMPLES, Scorers(EXACT), others=("includes",))
    # In another order, and with fewer scorers named.
    for specs in (EXACT, ()):
        news, to_score = load(tmp_path, SAMPLES[::-1], Scorers(specs))
        assert (to_score, dataset_changes(news)) == ([], [])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"target": "y"}, "another target"),
        ({"target": ["x"]}, "another target"),
        ({"metadata": {"k": 2}}, "another metadata"),
        ({"tags": ("u",)}, "other tags"),
    ],
)
def test_what_a_scorer_looks_at_outdates_its_scores_of_that_sample(
    tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    run(tmp_path, SAMPLES, Scorers(EXACT), others=("includes",))
    changed = [SAMPLES[0], sample("b", **{"metadata": {"k": 1}, **fields}), SAMPLES[2]]
    news, to_score = load(tmp_path, changed, Scorers(EXACT))
    assert to_score == ["b"] and news.reasons == Counter({reason: 1})
    # A score that nobody can make again now is not left beside figures that it does not belong to.
    assert news.dropped == Counter({"includes": 1})
    assert any("1 score by includes removed" in line for line in dataset_changes(news)), dataset_changes(news)
    # What is to be scored stays so until it is.
    assert load(tmp_path, changed, Scorers(EXACT))[1] == ["b"]


def test_a_judge_is_not_asked_again_about_what_it_does_not_see(tmp_path: Path) -> None:
    scorers = Scorers(("judge",))
    run(tmp_path, SAMPLES, scorers)
    assert load(tmp_path, [sample("a", metadata={"k": 1}), *SAMPLES[1:]], scorers)[1] == []
    assert load(tmp_path, [sample("a", target="y"), *SAMPLES[1:]], scorers)[1] == ["a"]
    assert load(tmp_path, SAMPLES, Scorers(("judge:Is it polite?",)))[1] == ["a", "b", "c"]


def test_an_added_scorer_a_changed_one_and_a_changed_file_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "checks.py").write_text("def f(context):\n    return True\n")
    files = tmp_path / "tests"
    files.mkdir()
    (files / "test_a.py").write_text("one")
    python = {"type": "python", "function": "checks:f", "path": str(tmp_path)}
    command = {"type": "command", "command": "true", "files": {"tests": str(files)}}
    out = tmp_path / "out"
    run(out, SAMPLES, Scorers((python, command)))
    assert load(out, SAMPLES, Scorers((python, command)))[1] == []
    assert load(out, SAMPLES, Scorers((python, command, "exact")))[1] == ["a", "b", "c"]


@pytest.mark.parametrize("changed", ["module", "file", "option"])
def test_a_changed_scorer_is_noticed_by_its_options_and_files(tmp_path: Path, changed: str) -> None:
    module, file = tmp_path / "checks.py", tmp_path / "tests" / "test_a.py"
    module.write_text("def f(context):\n    return True\n")
    file.parent.mkdir()
    file.write_text("one")
    python: dict[str, Any] = {"type": "python", "function": "checks:f", "path": str(tmp_path)}
    command = {"type": "command", "command": "true", "files": {"tests": str(file.parent)}}
    run(tmp_path / "out", SAMPLES, Scorers((python, command)))
    # What Python leaves beside a module when it runs it, and times, are no change.
    os.utime(module, (1, 1))
    (file.parent / "__pycache__").mkdir()
    (file.parent / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert load(tmp_path / "out", SAMPLES, Scorers((python, command)))[1] == []
    if changed == "module":
        module.write_text("def f(context):\n    return False\n")
    elif changed == "file":
        file.write_text("two")
    else:
        python["threshold"] = 0.5
    news, to_score = load(tmp_path / "out", SAMPLES, Scorers((python, command)))
    assert to_score == ["a", "b", "c"] and news.reasons == Counter({"another scorer": 3})
    with contextlib.closing(RunDirectory(tmp_path / "out")) as directory:
        kept = {score.scorer for score in directory.store.sample("a").scores}
    assert kept == ({"python"} if changed == "file" else {"command"})


def test_scores_of_an_earlier_codex_pool_are_compared_by_the_stored_sample(tmp_path: Path) -> None:
    run(tmp_path, SAMPLES, Scorers(EXACT))
    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        for row in list(directory.store.samples()):
            directory.replace_scores(row.n, [ScoreRow("exact", 1.0, True, None, None, None, None, 1, 0.0)])
    assert load(tmp_path, SAMPLES, Scorers(EXACT))[1] == []
    assert load(tmp_path, [sample("a", target="y"), *SAMPLES[1:]], Scorers(EXACT))[1] == ["a"]


def test_new_samples_are_said(tmp_path: Path) -> None:
    assert dataset_changes(load(tmp_path, SAMPLES[:1], Scorers())[0]) == []
    assert dataset_changes(load(tmp_path, SAMPLES, Scorers())[0]) == ["2 new samples to be run"]
