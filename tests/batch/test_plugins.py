"""Plug-ins of installed distributions: what is found, scorers and formats of datasets by their names."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from plugin_distributions import write_distribution

from codex_batch.dataset import DatasetError, Request, Sample
from codex_batch.plugins import discovery
from codex_batch.plugins.discovery import DATASETS, EXPORTERS, ON_RECORD, SCORERS, plugins
from codex_batch.scoring import Score, ScoreContext, ScorerError, parse_scorer, parse_scorers, plugin
from codex_batch.scoring.dependencies import dependencies_of

MODULE = """
import sys

def length(sample, *, most=10):
    return {"value": len(sample["final_response"]), "passed": len(sample["final_response"]) <= most}

def fails(sample):
    raise LookupError("no such thing")

def lines(path):
    for line in path.read_text().splitlines():
        if line == "stop":
            raise ValueError("cannot read 'stop'")
        yield {"prompt": line, "of": path.name} if line != "list" else ["list"]

def dated(path):
    import datetime
    yield {"prompt": "p", "day": datetime.date(2000, 1, 1)}
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    points = {
        SCORERS: {"length": "bringing:length", "fails": "bringing:fails", "gone": "not_there:f", "exact": "bringing:f"},
        DATASETS: {"lines": "bringing:lines", "dated": "bringing:dated"},
    }
    site = write_distribution(tmp_path / "site", "bringing", points, {"bringing": MODULE})
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    plugin.kinds.cache_clear()
    return site


def test_what_is_installed_is_found_with_its_distribution_and_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_distribution(one, "Some_Thing", {SCORERS: {"a": "m:a", "both": "m:b", "exact": "m:c"}})
    write_distribution(two, "other", {SCORERS: {"both": "n:b", "9": "n:c"}, "codex_pool.scorer": {"s": "n:s"}})
    # The same distribution further back on the path is not looked at.
    write_distribution(two, "some-thing", {ON_RECORD: {"hidden": "m:a"}})
    monkeypatch.syspath_prepend(str(two))
    monkeypatch.syspath_prepend(str(one))
    found = {(each.name, each.distribution): each.problem for each in plugins({SCORERS: ["exact"]})}
    assert found["a", "Some_Thing 1.0"] is None
    taken, twice = found["exact", "Some_Thing 1.0"], found["both", "other 1.0"]
    assert taken == "codex-pool has one of that name; give it another one"
    assert (
        twice == found["both", "Some_Thing 1.0"] == "2 distributions have one of that name; remove all but one of them"
    )
    assert (found["9", "other 1.0"] or "").startswith("the name is not a letter and up to 63")
    assert (found["s", "other 1.0"] or "").startswith("the group is not known; expected one of codex_pool.scorers,")
    assert not any(name == "hidden" for name, _ in found)
    assert discovery.find(EXPORTERS, ()) == {}


def test_what_cannot_be_imported_or_is_no_function_is_named_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {"raising": 'raise ValueError("no\\nlicense")', "ending": "raise SystemExit(7)", "number": "n = 3"}
    points = {SCORERS: {"a": "raising:f", "b": "ending:f", "c": "number:n", "d": "number:gone"}}
    monkeypatch.syspath_prepend(str(write_distribution(tmp_path / "site", "acme-evals", points, modules)))

    def problem(name: str) -> str:
        with pytest.raises(discovery.PluginError) as caught:
            discovery.find(SCORERS, ())[name].load()
        return str(caught.value).replace(f"the plug-in {name!r} of codex_pool.scorers in acme-evals 1.0", "IT")

    remedy = "; upgrade or remove that distribution"
    assert problem("a") == f"IT cannot be imported from raising:f: ValueError: no license{remedy}"
    assert problem("b") == f"IT cannot be imported from ending:f: SystemExit: 7{remedy}"
    assert problem("c") == f"IT: number:n is int; expected a function or a class{remedy}"
    assert problem("d").startswith("IT cannot be imported from number:gone: AttributeError: ")


def score(spec: object, tmp_path: Path, answer: str = "four") -> Score:
    async def run() -> Score:
        scorer = parse_scorer(spec, "scorer", tmp_path)  # type: ignore[arg-type]
        return await scorer.score(
            ScoreContext(sample=Sample("s", ("p",)), final_response=answer, artifacts=tmp_path / "artifacts")
        )

    return asyncio.run(run())


def test_a_scorer_of_a_plug_in_is_used_by_its_name(site: Path, tmp_path: Path) -> None:
    # A module of the same name beside the dataset does not go before the installed one.
    (tmp_path / "bringing.py").write_text("def length(sample): return 99")
    got = score("length", tmp_path)
    assert (got.scorer, got.value, got.passed) == ("length", 4.0, True)
    got = score({"type": "length", "name": "short", "arguments": {"most": 3}}, tmp_path)
    assert (got.scorer, got.value, got.passed) == ("short", 4.0, False)


def test_a_score_depends_on_the_version_of_its_distribution(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dependencies_of(parse_scorers(["length"], "scorer", tmp_path))
    assert before == dependencies_of(parse_scorers(["length"], "scorer", tmp_path))
    metadata = site / "bringing-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    plugin.kinds.cache_clear()
    assert before != dependencies_of(parse_scorers(["length"], "scorer", tmp_path))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "gone",
            "scorer: type: the plug-in 'gone' of codex_pool.scorers in bringing 1.0 cannot be called: ModuleNotFound",
        ),
        ({"type": "length", "arguments": {"least": 1}}, "got an unexpected keyword argument 'least'; correct its arg"),
        ({"type": "length", "most": 3}, "most: is not an option of length; expected name, arguments, timeout_s, thres"),
        ("other", 'no scorer "other"; expected one of exact, includes, regex, number, choice, json_schema'),
    ],
)
def test_a_scorer_that_cannot_be_used_is_refused_by_name(site: Path, tmp_path: Path, spec: object, words: str) -> None:
    with pytest.raises(ScorerError) as caught:
        parse_scorer(spec, "scorer", tmp_path)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_a_dataset_is_read_by_a_format_of_a_plug_in(site: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.lines"
    path.write_text("one\ntwo\n")
    with Request(source=path, format="lines", columns=("prompt=prompt", "metadata.of=of")).open() as dataset:
        assert [(sample.id, sample.prompts, sample.metadata) for sample in dataset] == [
            ("1", ("one",), {"of": "d.lines"}),
            ("2", ("two",), {"of": "d.lines"}),
        ]


@pytest.mark.parametrize(
    ("format", "text", "words"),
    [
        ("lines", "one\nstop\n", "in bringing 1.0 failed behind row 1: ValueError: cannot read 'stop'; correct the"),
        ("lines", "list\n", 'row 1: is ["list"], a list; expected a mapping of columns'),
        ("dated", "", "row 1: is not plain JSON: Object of type date is not JSON serializable; expected text"),
        ("xml", "", "--format: no format 'xml'; expected one of jsonl, json, csv, tsv, parquet, folders, "),
    ],
)
def test_what_a_format_cannot_read_is_refused(site: Path, tmp_path: Path, format: str, text: str, words: str) -> None:
    path = tmp_path / "d.lines"
    path.write_text(text)
    with pytest.raises(DatasetError) as caught:
        Request(source=path, format=format).open()
    assert words in str(caught.value)
