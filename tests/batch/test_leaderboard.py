"""Leaderboards: ranking with failures as 0, paired comparisons, settings that differ, and what the files contain."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import random
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from report_runs import InventedRun
from test_report import HOSTILE, OneSample, Page

from codex_batch.manage import listing
from codex_batch.report import page, paired
from codex_batch.report.leaderboard import operands, write
from codex_batch.report.leaderboard.chart import chart_of
from codex_batch.report.leaderboard.differing import differing, settings_of
from codex_batch.report.leaderboard.picture import png, svg
from codex_batch.report.leaderboard.results import RunResult
from codex_batch.report.leaderboard.table import Table, rows, table_of
from codex_batch.report.leaderboard.view import page_of
from codex_batch.store import Entry, RecordRow, RunDirectory, RunDirectoryError, SampleRow, ScoreRow
from codex_batch.store.means import Mean
from codex_pool_cli.report import report
from codex_pool_cli.runs import runs as runs_group
from codex_pool_cli.runs_list import _columns

Values = Mapping[str, float | None]
"""Scores by sample id; None for a sample that failed. The id may end in #EPOCH."""


def sample(n: int, name: str, scores: Mapping[str, float | None], *, digest: str = "d", **spec: Any) -> SampleRow:
    """A finished sample; one whose scores are all None has failed."""
    sample_id, _, epoch = name.partition("#")
    failed = all(value is None for value in scores.values())
    record = RecordRow("failed" if failed else "completed", 1, turns=1, thread_id="t", model="m")
    found = tuple(
        ScoreRow(scorer, value, None, None, None, None, None, 1, 0.0)
        for scorer, value in scores.items()
        if value is not None
    )
    return SampleRow(
        n, sample_id, int(epoch or 1), digest, {"prompts": ["p"], **spec}, (), "done", True, n, record, found
    )


def result(name: str, values: Values, *, scorer: str = "s", digest: str = "d", **config: Any) -> RunResult:
    info = {"path": f"/runs/{name}", "state": "finished", "config": {"scorers": [{"name": scorer}], **config}}
    made = RunResult(name, info)
    for n, (key, value) in enumerate(values.items()):
        made.add(sample(n, key, {scorer: value}, digest=digest))
    return made


def order(table: Table) -> list[tuple[int | None, str]]:
    return [(one.rank, table.results[one.place].name) for one in table.scorers[0].standings]


def test_a_configuration_that_fails_more_does_not_look_better() -> None:
    steady = result("steady", dict.fromkeys("abcdefghij", 0.6))
    crashing = result("crashing", {**dict.fromkeys("abcdefghij"), "a": 1.0})
    table = table_of([crashing, steady])
    assert order(table) == [(1, "steady"), (2, "crashing")]
    standing = table.scorers[0].standings[1]
    assert (standing.scored, standing.planned) == (1, 10)
    assert standing.of_scored is not None and standing.of_scored.mean == 1.0
    assert standing.mean == pytest.approx(0.1)


def test_equal_means_have_equal_ranks_and_keep_their_order() -> None:
    table = table_of([result(name, {"a": value}) for name, value in (("x", 0.0), ("y", 1.0), ("z", 1.0), ("w", 0.5))])
    assert order(table) == [(1, "y"), (1, "z"), (3, "w"), (4, "x")]


def test_a_failure_is_not_better_than_the_lowest_score() -> None:
    table = table_of([result("fails", {"a": -1.0, "b": None}), result("loses", {"a": -1.0, "b": -3.0})])
    assert table.scorers[0].floor == -3.0
    assert [rank for rank, _ in order(table)] == [1, 1]


def test_a_result_that_was_not_scored_by_a_scorer_has_no_rank() -> None:
    table = table_of([result("other", {"a": 1.0}, scorer="t"), result("mine", {"a": 0.0})], 0)
    (first,) = [scorer for scorer in table.scorers if scorer.scorer == "s"]
    assert [(one.rank, table.results[one.place].name) for one in first.standings] == [(1, "mine"), (None, "other")]
    (compared,) = first.comparisons
    assert compared.difference is None and compared.p is None and compared.only_this == 1


def test_a_scorer_that_scored_nothing_ranks_last_with_0() -> None:
    table = table_of([result("dead", {"a": None, "b": None}), result("alive", {"a": 0.0, "b": 0.5})])
    assert order(table) == [(1, "alive"), (2, "dead")]
    assert table.scorers[0].standings[1].of_scored is None


def test_samples_with_scorers_of_their_own_are_planned_for_those_alone() -> None:
    made = [RunResult(name, {"path": f"/r/{name}", "config": {}}) for name in "ab"]
    for place, one in enumerate(made):
        one.add(sample(0, "x", {"exact": 1.0}, scorers=["exact"]))
        one.add(sample(1, "y", {"judge": None if place else 1.0}, scorers=["judge"]))
    table = table_of(made)
    planned = {(scorer.scorer, one.place): one.planned for scorer in table.scorers for one in scorer.standings}
    # What scores `y` is known from the first run; the second one has no judge, as nothing was scored by one there.
    assert planned == {("exact", 0): 1, ("exact", 1): 1, ("judge", 0): 1, ("judge", 1): 0}


def test_epochs_of_a_sample_are_one_pair_and_widen_the_interval() -> None:
    alike = {f"{name}#{epoch}": float(name in "abcd") for name in "abcdefgh" for epoch in (1, 2, 3)}
    apart = {f"{n}": float(n < 12) for n in range(24)}
    one, other = (table_of([result("r", values)]).scorers[0].standings[0].of_all for values in (alike, apart))
    assert one is not None and other is not None and one.mean == other.mean == 0.5
    assert one.low is not None and other.low is not None and one.low < other.low
    table = table_of([result("a", alike), result("b", dict.fromkeys(alike, 1.0))], 0)
    found = table.scorers[0].comparisons[0].difference
    assert found is not None and (found.count, found.better) == (8, 4)


def test_samples_that_only_one_has_are_counted() -> None:
    a = result("a", {"1": 1.0, "2": 0.0, "3": None})
    b = result("b", {"2": 1.0, "3": 1.0, "4": 1.0, "5": 1.0}, digest="other")
    (found,) = table_of([a, b], 0).scorers[0].comparisons
    assert (found.only_baseline, found.only_this, found.asked_differently) == (1, 2, 2)
    assert found.difference is not None and (found.difference.count, found.difference.value) == (2, 1.0)
    # Of what both scored, the failure is left out.
    assert found.of_scored is not None and (found.of_scored.count, found.of_scored.value) == (1, 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_steps_down(p_values: list[float]) -> None:
    corrected = paired.holm(p_values)
    assert all(0 <= before <= after <= 1 for before, after in zip(p_values, corrected, strict=True))
    assert min(corrected) == pytest.approx(min(1.0, min(p_values) * len(p_values)))
    ranked = sorted(zip(p_values, corrected, strict=True))
    assert [after for _, after in ranked] == sorted(after for _, after in ranked)


def test_holm_of_a_known_case() -> None:
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([]) == []


def test_all_comparisons_are_corrected_together() -> None:
    draw = random.Random(1)
    made = [
        result(f"r{skill}", {str(n): float(draw.random() < skill / 10) for n in range(60)}) for skill in (3, 6, 8, 9)
    ]
    table = table_of(made, 0)
    found = table.scorers[0].comparisons
    assert [one.place for one in found] == [1, 2, 3]
    raw = [one.difference.p for one in found if one.difference is not None]
    assert [one.p for one in found] == paired.holm(raw)
    assert table_of(made).scorers[0].comparisons == []


def test_the_permutation_test_by_bytes_draws_what_it_drew_bit_by_bit() -> None:
    draw = random.Random(3)
    changes = [draw.gauss(0.1, 1) for _ in range(61)]
    bits, sizes = random.Random(0), [abs(change) for change in changes]
    seen, hits = abs(sum(changes)) - 1e-9, 0
    for _ in range(paired.FLIPS):
        flipped = bits.getrandbits(len(sizes))
        hits += abs(sum(sizes) - 2 * sum(size for n, size in enumerate(sizes) if flipped >> n & 1)) >= seen
    found = paired.difference([(0.0, change) for change in changes])
    assert found is not None and found.p == (hits + 1) / (paired.FLIPS + 1)


def configured(name: str, model: str, effort: str | None, **more: Any) -> RunResult:
    effective = {"model": model, "effort": effort, "provider": "openai", "codex_version": "0.163.0", **more}
    return result(name, {"a": 1.0}, effective=effective)


def test_what_differs_is_a_line_for_people() -> None:
    made = [
        configured("a", "gpt-5.1", "low"),
        configured("b", "gpt-5.2", "high", sources={"/home/AGENTS.md": "1"}),
        configured("c", "gpt-5.1", "low", guarded=False, keys={"web_search": "live"}),
    ]
    found = differing(made, 0)
    assert found.same == "provider openai, codex 0.163.0"
    assert found.lines == [
        "baseline",
        "model gpt-5.1 → gpt-5.2, effort low → high, instructions of the home added",
        "web search live (was not set), unguarded (was not set)",
    ]
    own = differing(made).lines
    assert own[0] == "model gpt-5.1, effort low, no instructions of the home"
    assert own[2].endswith("web search live, unguarded")


def test_settings_of_a_variant_and_of_a_run_whose_configuration_is_not_known() -> None:
    info = {"path": "/r", "config": {}}
    low, high = (
        RunResult(name, info, variant=name, variant_settings={"agents_md": digest, "codex_bin": None})
        for name, digest in (("low", "1"), ("high", "2"))
    )
    assert differing([low, high], 0).lines[1] == "AGENTS.md changed"
    unknown = result("old", {"a": 1.0})
    assert settings_of(unknown)["model"] == "m" and differing([unknown]).unknown == [0]


def invented(run: InventedRun, **more: Any) -> RunResult:
    made = RunResult(run.name, {**run.info(), **more})
    for row in run.samples():
        made.add(row)
        for attempt in run.attempts(row.n):
            made.add_attempt(attempt)
    return made


def test_what_a_result_took_is_the_sum_of_its_attempts() -> None:
    run = InventedRun(80)
    made = invented(run)
    attempts = [attempt for row in run.samples() for attempt in run.attempts(row.n)]
    assert made.cost == pytest.approx(sum(attempt.cost or 0 for attempt in attempts)) == made.known_cost
    assert made.tokens == sum((attempt.usage or {})["total_tokens"] for attempt in attempts)
    assert made.turns == 80 and made.span_s is not None and made.span_s > 0
    judged = invented(run, judged={"tokens": 5, "cost": 2.0, "unknown": 1})
    assert judged.cost == pytest.approx(made.cost + 2) and judged.known_cost is None


@pytest.fixture(scope="module")
def table() -> Table:
    made = [invented(InventedRun(40, name=f"r{seed}", seed=seed, skill=0.4 + seed / 10)) for seed in range(4)]
    return table_of(made, 1)


def test_the_page_has_every_result_for_every_scorer_and_no_mean_over_them(table: Table) -> None:
    shown = page_of(table, {0: "r0/report.html"})
    assert shown.title == "4 runs" and shown.baseline == "r1" and shown.comparisons == 6
    assert [scorer.name for scorer in shown.scorers] == ["tests", "judge"]
    for scorer in shown.scorers:
        assert sorted(row.name for row in scorer.rows) == ["r0", "r1", "r2", "r3"]
        assert [row.rank.text for row in scorer.rows] == ["1", "2", "3", "4"]
        assert len(scorer.compared) == 3
    source = page.leaderboard_page(shown)
    found = Page(source)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("style", "src")]
    assert {value for name, value in found.attributes if name == "href"} == {"#table", "r0/report.html"}
    assert len(source) < 200_000


def test_notes_say_what_limits_the_conclusions() -> None:
    a = result("a", {"x": 1.0}, dataset={"name": "d", "fingerprint": "1"}, currency="USD", effective={})
    b = result("b", {"x": 1.0}, dataset={"name": "d", "fingerprint": "2"}, currency="EUR")
    b.state = "died"
    notes = " ".join(page_of(table_of([a, b]), {}).notes)
    assert "different datasets" in notes and "d (1), d (2)" in notes
    assert "b is of a run that died" in notes and "not known of b" in notes and "different currencies" in notes


def test_results_without_scorers_have_a_page_too() -> None:
    made = RunResult("a", {"path": "/r/a", "config": {}})
    made.add(sample(0, "x", {}))
    shown = page_of(table_of([made]), {})
    assert shown.scorers == [] and [row.name for row in shown.unscored] == ["a"]
    assert "No scorer has scored anything" in page.leaderboard_page(shown)
    assert [row["name"] for row in rows(table_of([made]))] == ["a"]


@pytest.mark.parametrize("said", [*HOSTILE[:2], "".join(HOSTILE)])
def test_names_of_runs_and_scorers_are_text(said: str) -> None:
    source = OneSample(said)
    made = RunResult(said, source.info())
    made.add(source.row)
    table = table_of([made, made], 0)
    found = Page(page.leaderboard_page(page_of(table, {})))
    harmless = OneSample("x")
    other = RunResult("x", harmless.info())
    other.add(harmless.row)
    expected = Page(page.leaderboard_page(page_of(table_of([other, other], 0), {})))
    assert found.elements == expected.elements
    drawing = ET.fromstring(svg(chart_of(table, table.scorers[0])))
    assert {element.tag.rpartition("}")[2] for element in drawing.iter()} == {
        *("svg", "title", "desc", "rect", "line", "text", "circle")
    }


def texts(drawing: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(drawing).iter() if element.tag.endswith("text")]


def test_a_chart_has_a_dot_for_every_result_best_on_top(table: Table) -> None:
    chart = chart_of(table, table.scorers[0])
    drawing = svg(chart)
    names = [text for text in texts(drawing) if re.fullmatch(r"r\d", text)]
    assert names == [table.results[one.place].name for one in table.scorers[0].standings]
    assert drawing.count("<circle") == 4 and 'stroke-dasharray="4 4"' in drawing
    for shape in chart.shapes:
        if shape.kind == "dot":
            assert 0 < shape.x < chart.width and 0 < shape.y < chart.height


def test_a_chart_of_one_run_names_its_variants_and_its_baseline(tmp_path: Path) -> None:
    varied, plain = make(tmp_path / "varied", ("low", "high")), make(tmp_path / "plain")
    for runs, baseline, names in (
        ([varied], 0, ["low", "high"]),
        ([varied, plain], None, ["varied@low", "varied@high", "plain"]),
    ):
        made = table_of(operands.read(operands.choose([str(run) for run in runs])), baseline)
        found = texts(svg(chart_of(made, made.scorers[0])))
        assert set(names) <= set(found)
        assert found[1].endswith("interval of 95 %" if baseline is None else "interval of 95 %; dashed: low")


def test_a_png_has_its_texts_with_fonts_and_without(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image, ImageChops

    from codex_batch.report.leaderboard import picture

    chart = chart_of(table, table.scorers[0])
    no_text = without_labels(chart)
    for fonts in (picture._FONTS, (("no such font.ttf", "nor this.ttf"),)):
        monkeypatch.setattr(picture, "_FONTS", fonts)
        image, plain = (Image.open(io.BytesIO(png(each))) for each in (chart, no_text))
        assert image.size == (chart.width * picture.SCALE, chart.height * picture.SCALE)
        box = ImageChops.difference(image, plain).getbbox()
        assert box is not None and box[0] < 60 and box[2] > image.width - 2 * 200
    assert picture._Fonts().drawable("\u22121 → é 中") == "-1 -> e ?"


def without_labels(chart: Any) -> Any:
    return dataclasses.replace(chart, shapes=[shape for shape in chart.shapes if shape.kind != "label"])


def test_csv_and_json_have_the_same_rows(table: Table) -> None:
    found = list(csv.DictReader(io.StringIO(write.as_csv(table))))
    value = json.loads(write.as_json(table))
    assert value["baseline"] == "r1" and set(value["settings"]) == {"r0", "r1", "r2", "r3"}
    assert [(row["scorer"], row["rank"], row["name"]) for row in found] == [
        (row["scorer"], str(row["rank"]), row["name"]) for row in value["rows"]
    ]
    assert len(found) == 8 and float(found[0]["mean_failures_as_0"]) == value["rows"][0]["mean_failures_as_0"]
    assert [row["p_holm"] for row in value["rows"] if row["baseline"]] == [None, None]


# Run directories, and the command.


def make(path: Path, variants: Iterable[str] = ("",), *, right: int = 2, model: str = "m1") -> Path:
    """A run directory of four samples for each variant; of the first `right` of each the answer is right."""
    names = [name for name in variants if name]
    with contextlib.closing(RunDirectory(path)) as directory:
        effective = {"model": model, "effort": "low"}
        stored = [{"name": name, "effective": {**effective, "effort": name}, "agents_md": None} for name in names]
        config = {"dataset": {"name": "d.jsonl", "fingerprint": "f"}, "effective": effective}
        directory.launch({**config, "variants": stored} if names else config)
        entries = [
            Entry(str(n), 1, f"{n}", {"id": str(n), "prompts": ["p"]}, variant=variant)
            for n in range(4)
            for variant in variants
        ]
        directory.load(entries, "d.jsonl")
        if names:
            directory.note("variants", stored).result(5)
        for place, row in enumerate(directory.store.samples()):
            start = directory.start_attempt(row.n, f"k{row.n}", "t").result(5)
            record = RecordRow("completed", 1, thread_id="t", model=model, effort=row.variant or "low", turns=1)
            directory.finish(start, record, {"status": "completed"}, to_score=True).result(5)
            passed = int(row.id) < right + (place % max(1, len(names)))
            directory.scored(row.n, [ScoreRow("exact", float(passed), passed, None, None, None, None, 1, 0.0)]).result(
                5
            )
        directory.outcome("finished", {})
    return path


def test_operands_are_runs_and_variants(tmp_path: Path) -> None:
    plain, varied = make(tmp_path / "plain"), make(tmp_path / "varied", ("low", "high"))
    odd = make(tmp_path / "at@low")
    found = operands.choose([str(plain), str(varied), f"{varied}@high", str(odd)])
    assert [one.name for one in found] == ["plain", "varied@low", "varied@high", "varied@high", "at@low"]
    results = operands.read(found[:3])
    assert [one.samples for one in results] == [4, 4, 4]
    assert [settings_of(one)["effort"] for one in results] == ["low", "low", "high"]
    with pytest.raises(RunDirectoryError, match="has no variant 'none'; it has low, high"):
        operands.choose([f"{varied}@none"])
    with pytest.raises(RunDirectoryError, match="it has no variants"):
        operands.choose([f"{plain}@low"])
    with pytest.raises(RunDirectoryError, match=r"name .*@low, .*@high"):
        operands.one(str(varied))
    same = make(tmp_path / "deep" / "plain")
    assert [one.name for one in operands.choose([str(plain), str(same)])] == ["plain", "deep/plain"]


def test_the_command_writes_what_its_operands_and_options_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, right in (("a", 1), ("b", 2), ("c", 3)):
        make(Path(name), right=right)
    make(Path("v"), ("low", "high"))

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(report, list(arguments))
        assert done.exit_code == 0, done.output
        return done.stdout

    assert said("a") == "a/report.html\n" and "Report of a run" in Path("a/report.html").read_text()
    assert said("a", "b") == "b/report-against-a.html\n"
    compared = Path("b/report-against-a.html").read_text()
    assert "Comparison of two runs" in compared and "m1 · low" in compared and "the same settings" in compared
    assert said("a", "b", "c") == "leaderboard.html\n"
    board = Path("leaderboard.html").read_text()
    # Reports that are there are linked to.
    assert 'href="a/report.html"' in board and 'href="c/report.html"' not in board
    assert said("a", "--table") == "a/report.html\n" and "Leaderboard" in Path("a/report.html").read_text()
    assert said("v") == "v/report.html\n" and "Comparison of two runs" in Path("v/report.html").read_text()
    assert "effort low → high" in Path("v/report.html").read_text()
    assert said("v@high") == "v/report@high.html\n" and "v@high" in Path("v/report@high.html").read_text()
    assert said("v@low", "v@high") == "v/report@high-against-low.html\n"
    assert (
        said("a", "--baseline", "v@low", "--svg", "c.svg", "--png", "c.png", "-o", "p.html") == "c.svg\nc.png\np.html\n"
    )
    assert "v@low" in Path("c.svg").read_text()
    value = json.loads(said("a", "v", "--baseline", "v@low", "--json", "-"))
    assert [(row["name"], row["baseline"]) for row in value["rows"]] == [
        ("v@high", False),
        ("v@low", True),
        ("a", False),
    ]
    assert said("v", "--csv", "-").startswith("scorer,rank,name,")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("a", "--scorer", "none"), "no run has it; they have exact"),
        (("a", "--csv", "-", "--json", "-"), "cannot both be on stdout"),
        (("a", "--baseline", "nowhere"), "no such directory"),
    ],
)
def test_what_the_command_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("a"))
    done = CliRunner().invoke(report, list(arguments))
    assert done.exit_code == 2 and problem in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_png_without_pillow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "PIL", None)
    done = CliRunner().invoke(report, [str(tmp_path / "a"), "--png", str(tmp_path / "c.png")])
    assert done.exit_code == 2 and "pip install 'codex-pool[png]'" in done.stderr


def test_a_list_of_runs_has_scores_and_is_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("a"), right=1)
    make(Path("b"), right=3, model="m2")
    make(Path("v"), ("low", "high"))
    with contextlib.closing(RunDirectory(Path("new"))):
        (Path("broken")).mkdir()
        (Path("broken") / "run.sqlite").write_bytes(b"no database " * 100)
        found = CliRunner().invoke(runs_group, ["list", "--sort", "score"])
        lines = [re.split(r"  +", line) for line in found.stdout.splitlines()]
        as_json = CliRunner().invoke(runs_group, ["list", "--json"]).stdout.splitlines()
    assert [line[0] for line in lines] == ["RUN", "b", "v@high", "v@low", "a", "broken", "new"]
    assert lines[1][1:8] == ["finished", "4/4", "4", "0.750 exact", "4/4", "m2", "low"]
    values = {Path(value["path"]).name: value for value in map(json.loads, as_json)}
    assert values["a"]["scores"] == {"exact": {"mean": 0.25, "scored": 4}} and values["a"]["models"] == {"m1": 4}
    # There is no figure over variants.
    assert values["v"]["scores"] == {}
    assert [(one["name"], one["scores"]["exact"]["mean"]) for one in values["v"]["variants"]] == [
        ("low", 0.5),
        ("high", 0.75),
    ]
    assert "cannot be used" in values["broken"]["problem"]


def test_a_list_counts_a_sample_without_a_score_as_0_and_fits_the_terminal() -> None:
    part = listing.Part("", {"total": 100, "done": 50}, {"exact": Mean(1.0, 45)}, {}, {})
    assert part.mean == 0.9
    widths = [30, 8, 5, 9, 11, 6, 17, 6, 16, 28]
    assert [len(_columns(widths, room)) for room in (None, 200, 120, 80, 20)] == [10, 10, 8, 5, 4]
    assert _columns(widths, 80) == [0, 1, 2, 4, 5]


def test_a_variant_that_the_last_command_left_out_has_its_scores_in_the_list(tmp_path: Path) -> None:
    run = make(tmp_path / "run", ("low", "high"))
    with contextlib.closing(RunDirectory(run)) as directory:
        kept = [row for row in directory.store.samples() if row.variant == "high"]
        directory.load((Entry(r.id, r.epoch, r.digest, r.spec, r.tags, variant="high") for r in kept), "made-up.jsonl")
    low, high = listing.listed(run).parts
    assert (low.variant, low.counts["done"], low.scores["exact"].scored) == ("low", 4, 4)
    assert high.scores["exact"].scored == 4


def test_a_run_that_breaks_while_it_is_read_does_not_end_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path / "a")

    def broken(store: Any, variant: str = "") -> Any:
        raise ValueError("database disk image\nis malformed")

    monkeypatch.setattr(listing, "means", broken)
    assert listing.listed(made).problem == "database disk image is malformed"
