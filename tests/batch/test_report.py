"""The report: what is said of runs, and that nothing in a sample can be more than text in it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from report_runs import InventedRun

from codex_batch.report import paired, plots, units, write
from codex_batch.report.document import COLUMNS, detail, opening
from codex_batch.report.figures import PairFigures, RunFigures
from codex_batch.report.markup import environment
from codex_batch.report.packing import ListPacker, pack, unpack
from codex_batch.report.source import facts_of
from codex_batch.report.transcript_view import cut_middle, transcript
from codex_batch.scoring.intervals import t_quantile
from codex_batch.store import Entry, EventLog, RecordRow, RunDirectory, SampleRow, ScoreRow
from codex_pool_cli.report import report

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "-->",
    "]]>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "[x](javascript:alert(1))",
    "\u2028\u2029\u202e\u0000\ud800\x1b[31m",
    "&lt;b&gt; & &amp; $body ${data} {{x}}",
    "</title></style></textarea></noscript>",
)


class Page(HTMLParser):
    """The elements of a page with the names of their attributes, and what is packed in it."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, ...]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.packed: dict[str, str] = {}
        self.comments: list[str] = []
        self.texts: list[str] = []
        self._inside: str | None = None
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.attributes += attrs
        self._inside = dict(attrs).get("id") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        if self._inside is not None and self._inside.startswith("packed-"):
            name = self._inside.removeprefix("packed-")
            self.packed[name] = self.packed.get(name, "") + data
        else:
            self.texts.append(data)

    def rows(self) -> list[dict[str, Any]]:
        columns = [*unpack(self.packed["data"])["columns"], "segment", "item"]
        return [dict(zip(columns, row, strict=True)) for row in unpack(self.packed["rows"])]


class OneSample:
    """A run of one sample in which everything that somebody else writes is one text."""

    def __init__(self, said: str) -> None:
        self.said = said
        # What is a key somewhere must not be empty and must be writable in SQLite.
        name = said or "-"
        score = ScoreRow(name, 0.5, False, said, said, {name: [said]}, None, 3, 0.0)
        failed = ScoreRow(name + "2", None, None, None, None, None, said, 3, 0.0)
        record = RecordRow(
            status="failed",
            attempts=1,
            limit=name,
            final_response=said,
            error={"kind": name, "message": said},
            usage={"total_tokens": 5},
            thread_id=said,
            worker=name,
            duration_ms=4,
            started_at=1.0,
            ended_at=2.0,
            artifacts=("diff.patch",),
        )
        spec = {"prompts": [said, said], "target": said, "metadata": {name: said}, "model": said}
        self.row = SampleRow(0, name, 1, "d", spec, (name,), "done", True, 0, record, (score, failed))

    def info(self) -> Mapping[str, Any]:
        said = self.said
        config = {"dataset": said, "model": [said], "versions": {said: said}, said: {said: said}}
        return {
            "path": "/runs/a" + re.sub("[/\0\ud800-\udfff]", "-", said)[:40],
            "created_at": 1.0,
            "state": "died",
            "config": config,
        }

    def samples(self) -> Iterator[SampleRow]:
        return iter([self.row])

    def sample(self, sample_id: str, epoch: int = 1) -> SampleRow:
        return self.row

    def attempts(self, n: int) -> list[Any]:
        return [
            dataclasses.replace(attempt, error={"kind": self.said, "message": self.said}, note=self.said, worker="w")
            for attempt in InventedRun(1).attempts(0)[:1]
        ]

    def events(self, n: int, attempt: int) -> Iterator[Mapping[str, Any]]:
        for kind in ({"type": "agentMessage", "text": self.said}, {"type": self.said, self.said: self.said}):
            yield {"method": "item/completed", "params": {"item": {"id": kind["type"], **kind}}}

    def artifact(self, n: int, name: str) -> bytes:
        return self.said.encode("utf-8", "surrogatepass")


def page_of(source: Any, path: Path, other: Any = None) -> Page:
    if other is None:
        write.write_run_report(source, path)
    else:
        write.write_comparison(source, other, path)
    return Page(path.read_text("utf-8"))


texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=60), st.lists(st.sampled_from(HOSTILE)).map("".join))


@settings(max_examples=60)
@given(said=texts, compared=st.booleans())
def test_what_samples_contain_is_text_and_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, said: str, compared: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "inert.html"
    page = page_of(OneSample(said), path, OneSample(said) if compared else None)
    harmless = "x" if said else ""
    other = page_of(OneSample(harmless), path, OneSample(harmless) if compared else None)
    assert page.elements == other.elements
    assert page.comments == []
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("style", "src", "srcset")]
    assert [value for name, value in page.attributes if name == "href"] == ["#samples"]
    (row,) = page.rows()
    assert row["id"] == (said or "-") and row["tags"] == [said or "-"]
    (found,) = unpack(page.packed["segment-0"])
    for one in found if compared else [found]:
        assert one.get("prompts") == [said, said]
        assert one.get("response", "") == one.get("target", "") == said
        assert one["scores"][1]["error"] == said and one["scores"][0]["metadata"] == {said or "-": [said]}
        assert one["attempts"][0]["entries"][0].get("text", "") == said
        if "\ud800" not in said and not any("\ud800" <= letter <= "\udfff" for letter in said):
            assert one.get("diff", "") == said


def test_the_policy_lets_only_the_pages_own_script_run(tmp_path: Path) -> None:
    page = page_of(InventedRun(2), tmp_path / "page.html")
    policy = next(value for name, value in page.attributes if name == "content" and value and "default-src" in value)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    source = (tmp_path / "page.html").read_text()
    # What is packed and the hash of the script are base64, in which two slashes say nothing.
    for base64 in (*page.packed.values(), *re.findall(r"sha256-([A-Za-z0-9+/=]+)", policy)):
        assert base64 in source
        source = source.replace(base64, "")
    # No address of anything outside; SVG in HTML needs no namespace either.
    assert not re.search(r"(?:https?:)?//[a-z]", source.replace("file://", ""))


def filled(template: str, **values: object) -> str:
    """A template of the report's environment, filled."""
    return environment().from_string(template).render(values)


def svg(plot: plots.Plot) -> str:
    return filled('{% import "plots.html" as drawn %}{{ drawn.figure(plot) }}', plot=plot)


@given(st.text(alphabet=st.characters(), max_size=40), st.text(max_size=40))
def test_values_of_a_template_are_no_markup(inner: str, value: str) -> None:
    template = '<p title="{{ value }}" data-x="{{ inner }}">{{ inner }}<b>{{ value }}</b></p>'
    page = Page(filled(template, inner=inner, value=value))
    assert page.elements == [("p", "title", "data-x"), ("b",)]
    assert "".join(page.texts).count("<") == (inner + value).count("<")


def test_text_cannot_reorder_what_stands_around_it() -> None:
    assert filled("{{ text }}", text="a\u202eb\x00\ud800") == "a\ufffdb\ufffd\ufffd"


def test_a_value_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="missing"):
        filled("{{ missing }}")


def test_texts_of_a_template_are_not_taken_for_markup() -> None:
    """`safe` and `~` would pass a value by the escaping of what cannot be printed."""
    names = environment().list_templates()
    assert {"run.html", "comparison.html", "plots.html"} <= set(names)
    for name in names:
        source = (files("codex_batch.report") / "templates" / name).read_text()
        assert not re.search(r"\|\s*safe|\{[{%][^}]*~", source), name


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(json_values, max_size=6))
def test_packed_values_come_back(values: list[Any]) -> None:
    packer = ListPacker()
    for value in values:
        packer.add(value)
    packed = packer.finish()
    assert unpack(packed) == unpack(pack(values)) == values
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed)


def test_figures_that_json_lacks_are_null() -> None:
    assert unpack(pack([math.nan, {"a": (math.inf, 1.5)}])) == [None, {"a": [None, 1.5]}]


def test_a_small_run_is_one_file_and_every_row_finds_its_detail(tmp_path: Path) -> None:
    run = InventedRun(10)
    page = page_of(run, tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").stat().st_size < 200_000
    rows = page.rows()
    assert [row["id"] for row in rows] == [row.id for row in run.samples()]
    details = unpack(page.packed["segment-0"])
    for row, sample in zip(rows, run.samples(), strict=True):
        assert details[row["item"]]["thread_id"] == sample.record.thread_id
        assert [score["scorer"] for score in details[row["item"]].get("scores", [])] == [
            s.scorer for s in sample.scores
        ]


def test_a_large_run_has_its_transcripts_in_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "INLINE_BYTES", 60_000)
    monkeypatch.setattr(write, "SEGMENT_BYTES", 5_000)
    run, path = InventedRun(300, output_lines=40), tmp_path / "a b.html"
    for _ in range(2):
        page = page_of(run, path)
        about = unpack(page.packed["data"])["segments"]
        assert sorted(page.packed) == ["data", "rows"] and about["directory"] == "a b.segments"
        assert sorted(found.name for found in tmp_path.iterdir()) == ["a b.html", "a b.segments"]
        files = sorted((tmp_path / "a b.segments").iterdir())
        assert len(files) == about["count"] > 5
        details = []
        for number, file in enumerate(files):
            call = re.fullmatch(r'codexPoolSegment\("(\w+)",(\d+),"([A-Za-z0-9+/=]+)"\);\n', file.read_text())
            assert call is not None and (call[1], int(call[2])) == (about["token"], number)
            details.append(unpack(call[3]))
        for row, sample in zip(page.rows(), run.samples(), strict=True):
            assert details[row["segment"]][row["item"]]["thread_id"] == sample.record.thread_id
    # A run that needs none leaves none behind.
    page_of(InventedRun(3), path)
    assert [found.name for found in tmp_path.iterdir()] == ["a b.html"]


def test_five_thousand_samples_fit(tmp_path: Path) -> None:
    run, draw = InventedRun(5_000, commands=0), random.Random(0)
    letters = [chr(code) for code in range(0x4E00, 0x9FFF)]
    for place, row in enumerate(run._rows):
        # What compresses worst: every letter its own.
        noise = ["".join(draw.choices(letters, k=200)) for _ in range(2)]
        record = msgspec.structs.replace(row.record, final_response=noise[0])
        run._rows[place] = msgspec.structs.replace(row, spec={"prompts": [noise[1]]}, record=record)
    page_of(run, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 10_000_000


def test_what_is_not_of_a_report_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "report.segments" / "letter.txt"
    kept.parent.mkdir()
    kept.write_text("dear")
    with pytest.raises(write.ReportError, match=r"letter\.txt is not of a report"):
        write.write_run_report(InventedRun(2), tmp_path / "report.html")
    assert kept.read_text() == "dear" and [path.name for path in tmp_path.iterdir()] == ["report.segments"]
    (tmp_path / "file").write_text("")
    with pytest.raises(write.ReportError, match="cannot be written"):
        write.write_run_report(InventedRun(2), tmp_path / "file" / "report.html")


def test_the_figures_of_a_run_are_sums_of_its_samples() -> None:
    run, figures = InventedRun(200, epochs=2), RunFigures()
    rows = list(run.samples())
    for row in rows:
        figures.add(row, run.attempts(row.n))
    records = [row.record for row in rows if row.record is not None]
    assert dict(figures.statuses) == Counter(record.status for record in records)
    assert figures.usage["total_tokens"] == sum(record.usage["total_tokens"] for record in records if record.usage)
    # What was tried again was paid for as well.
    costs = [attempt.cost for row in rows for attempt in run.attempts(row.n)]
    assert figures.cost == pytest.approx(sum(cost or 0 for cost in costs))
    assert figures.retries == sum(record.attempts - 1 for record in records) > 0
    assert len(figures.spans) == sum(record.attempts for record in records)
    values = [score.value for row in rows for score in row.scores if score.scorer == "tests"]
    summary = figures.scores()
    assert summary.scorers["tests"].mean == pytest.approx(sum(values) / len(values))
    assert (
        set(summary.tags["tests"]) == {tag for row in rows for tag in row.tags}
        and 2 in summary.scorers["tests"].pass_at
    )


def test_a_sample_that_was_not_run_is_shown_as_that(tmp_path: Path) -> None:
    run = InventedRun(4)
    for place, changes in enumerate(
        ({"state": "running"}, {"state": "pending"}, {"state": "pending", "selected": False})
    ):
        run._rows[place] = msgspec.structs.replace(run._rows[place], record=None, scores=(), **changes)
    page = page_of(run, tmp_path / "report.html")
    assert [row["status"] for row in page.rows()][:2] == ["running", "not run"] and len(page.rows()) == 3


def test_two_runs_are_matched_by_id_and_epoch(tmp_path: Path) -> None:
    a, b = InventedRun(20, epochs=2), InventedRun(24, epochs=2, seed=2, name="tuesday")
    b._rows[3] = msgspec.structs.replace(b._rows[3], digest="another")
    b._by_key[b._rows[3].id, b._rows[3].epoch] = b._rows[3]
    gone = a._rows[0] = msgspec.structs.replace(a._rows[0], selected=False, record=None)
    a._by_key[gone.id, gone.epoch] = gone
    page = page_of(a, tmp_path / "compared.html", b)
    rows = page.rows()
    assert Counter((row["id"], row["epoch"]) for row in rows) == Counter((row.id, row.epoch) for row in b.samples())
    notes = {row["id"] + str(row["epoch"]): row["note"] for row in rows if row["note"]}
    changed = b._rows[3]
    first = b._rows[0]
    assert notes.pop(f"{changed.id}{changed.epoch}") == "asked differently"
    assert notes.pop(f"{first.id}{first.epoch}") == "only in B"
    assert set(notes.values()) == {"only in B"} and len(notes) == 4
    (missing,) = [row for row in rows if (row["id"], row["epoch"]) == (first.id, first.epoch)]
    assert missing["a"] is None and missing["b"][0] == first.record.status
    assert unpack(page.packed["segment-0"])[missing["item"]][0] is None


@given(st.lists(st.tuples(st.sampled_from((0.0, 0.25, 1.0)), st.sampled_from((0.0, 0.5, 1.0))), min_size=1, max_size=9))
def test_the_paired_test_is_the_permutation_test(pairs: list[tuple[float, float]]) -> None:
    found = paired.difference(pairs)
    assert found is not None
    changes = [b - a for a, b in pairs]
    seen = abs(sum(changes))
    flips = list(itertools.product((1, -1), repeat=len(changes)))
    exact = sum(abs(sum(s * c for s, c in zip(signs, changes, strict=True))) >= seen - 1e-9 for signs in flips)
    assert found.p == pytest.approx(exact / len(flips))
    assert (found.better, found.worse) == (sum(c > 0 for c in changes), sum(c < 0 for c in changes))
    assert found.low <= found.value <= found.high and found.value == pytest.approx(found.after - found.before)
    turned = paired.difference([(b, a) for a, b in pairs])
    assert turned is not None and turned.p == pytest.approx(found.p)
    assert (turned.low, turned.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_paired_tests_of_known_cases() -> None:
    five = paired.difference([(0.0, 1.0)] * 5 + [(1.0, 1.0)] * 20)
    assert five is not None and five.p == pytest.approx(0.0625) and "McNemar" in five.test and five.low > -0.05
    nothing = paired.difference([(1.0, 1.0)] * 4)
    assert nothing is not None and nothing.p == 1.0 and nothing.low < 0 < nothing.high
    alone = paired.difference([(0.2, 0.9)])
    assert alone is not None and math.isinf(alone.high)
    assert paired.difference([]) is None
    # Drawn and by the normal law: near each other where one takes over from the other.
    many = [(0.0, 0.1 * (index % 7) - 0.25) for index in range(220)]
    drawn, normal = paired.difference(many[:196]), paired.difference(many)
    assert drawn is not None and normal is not None
    assert "draws" in drawn.test and "normal" in normal.test and drawn.p == pytest.approx(normal.p, abs=0.05)
    assert paired.difference(many[:196]) == drawn


def test_students_quantile() -> None:
    for df, expected in ((1, 12.706), (10, 2.228), (11, 2.201), (30, 2.042), (1000, 1.962)):
        assert t_quantile(df) == pytest.approx(expected, abs=2e-3)


def test_epochs_of_a_sample_are_one_pair() -> None:
    figures = PairFigures()
    a, b = InventedRun(12, epochs=3), InventedRun(12, epochs=3, seed=5)
    for first, second in zip(a.samples(), b.samples(), strict=True):
        figures.add(first, second)
    found = figures.score("tests")
    assert found is not None and found.count <= 4
    assert figures.both == 12 and figures.scorers() == ["tests", "judge"]


@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=80))
def test_a_histogram_counts_every_value_once(values: list[float]) -> None:
    drawn = svg(plots.histogram("t", values, units.duration, units.duration, units.round_step, "longest"))
    counts = [int(found.replace(",", "")) for found in re.findall(r"</?title>[^<]*: ([\d,]+)</title>", drawn)]
    assert sum(counts) == len(values)
    for found in re.findall(r'<rect[^>]* x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)"', drawn):
        x, y, width, height = map(float, found)
        assert x >= 0 and y >= 0 and x + width <= plots.WIDTH and y + height <= plots.HEIGHT


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0, 1e5), st.floats(0, 1e3), st.sampled_from(("completed", "lost"))),
        min_size=1,
        max_size=40,
    )
)
def test_a_timeline_has_a_bar_for_every_attempt(attempts: list[tuple[str, float, float, str]]) -> None:
    spans = [
        plots.Span(lane, start, start + long, status, n, f"s{n}")
        for n, (lane, start, long, status) in enumerate(attempts)
    ]
    drawn = svg(plots.timeline("t", spans))
    assert sorted(map(int, re.findall(r'data-n="(\d+)"', drawn))) == list(range(len(spans)))
    assert f"{len({span.lane for span in spans})} worker" in drawn


def test_many_attempts_are_few_paths() -> None:
    spans = [plots.Span(f"w{n % 4}", n * 0.5, n * 0.5 + 1.9, "completed", n, "s") for n in range(20_000)]
    assert len(svg(plots.timeline("t", spans))) < 100_000


def test_throughput_counts_every_end() -> None:
    ends = [(float(at), at % 5 > 0) for at in range(100)]
    drawn = svg(plots.throughput("t", ends))
    hints = set(re.findall(r"after ([^:]+): (\d+) completed, (\d+) not", drawn))
    assert sum(int(good) for _, good, _ in hints) == 80 and sum(int(bad) for _, _, bad in hints) == 20


def item(method: str = "item/completed", **values: Any) -> dict[str, Any]:
    return {"method": method, "params": {"item": {"id": "1", **values}}}


ITEMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"type": "userMessage", "content": [{"type": "text", "text": "hi"}, {"type": "localImage", "path": "/a.png"}]},
        {"kind": "user", "text": "hi\n[localImage: /a.png]"},
    ),
    (
        {"type": "agentMessage", "text": "a", "phase": "commentary"},
        {"kind": "agent", "text": "a", "phase": "commentary"},
    ),
    ({"type": "reasoning", "summary": ["a"], "content": ["b"]}, {"kind": "reasoning", "text": "a\n\nb"}),
    ({"type": "plan", "text": "1."}, {"kind": "plan", "text": "1."}),
    (
        {
            "type": "commandExecution",
            "command": "ls",
            "aggregatedOutput": "x",
            "exitCode": 0,
            "status": "completed",
            "durationMs": 4,
            "cwd": "/w",
        },
        {
            "kind": "command",
            "text": "ls",
            "output": "x",
            "exit_code": 0,
            "status": "completed",
            "duration_ms": 4,
            "cwd": "/w",
        },
    ),
    (
        {
            "type": "fileChange",
            "status": "completed",
            "changes": [{"path": "a", "kind": {"type": "add"}, "diff": "+x"}],
        },
        {"kind": "files", "status": "completed", "changes": [{"path": "a", "change": "add", "diff": "+x"}]},
    ),
    (
        {
            "type": "mcpToolCall",
            "server": "s",
            "tool": "t",
            "arguments": {"a": 1},
            "result": "r",
            "status": "completed",
        },
        {"kind": "tool", "title": "s.t", "text": '{\n  "a": 1\n}', "output": "r", "status": "completed"},
    ),
    ({"type": "webSearch", "query": "q", "results": None}, {"kind": "search", "text": "q"}),
    ({"type": "sleep", "durationMs": 5}, {"kind": "note", "title": "sleep", "text": '{\n  "durationMs": 5\n}'}),
    ({"type": "agentMessage"}, {"kind": "note", "title": "agentMessage"}),
]


@pytest.mark.parametrize(("values", "entry"), ITEMS)
def test_an_item_is_an_entry(values: dict[str, Any], entry: dict[str, Any]) -> None:
    assert transcript([item(**values)]) == [entry]


def test_a_transcript_keeps_the_order_of_what_began_and_says_what_never_ended() -> None:
    events = [
        item("item/started", id="a", type="commandExecution", command="sleep 9"),
        item(id="b", type="agentMessage", text="meanwhile"),
        item("item/started", id="c", type="commandExecution", command="sleep 99"),
        item(id="a", type="commandExecution", command="sleep 9", exitCode=0),
        {"method": "error", "params": {"error": {"message": "busy"}, "willRetry": True}},
        {"method": "turn/completed", "params": {"turn": {"status": "failed", "error": {"message": "gone"}}}},
        {"method": "item/agentMessage/delta", "params": {"delta": "x"}},
        {"params": 5},
    ]
    assert [(entry["kind"], entry.get("open"), entry.get("text")) for entry in transcript(events)] == [
        ("command", None, "sleep 9"),
        ("agent", None, "meanwhile"),
        ("command", True, "sleep 99"),
        ("error", None, "busy"),
        ("turn", None, "gone"),
    ]


@given(st.text(max_size=500), st.integers(10, 100))
def test_a_text_that_is_cut_says_so(said: str, characters: int) -> None:
    shown = cut_middle(said, characters)
    if len(said) <= characters:
        assert shown == said
    else:
        assert f"[... {len(said) - characters:,} characters left out ...]" in shown and shown.startswith(said[:6])
    assert "\n" not in opening(said) and len(opening(said)) <= 160


def test_a_detail_is_bounded() -> None:
    run = InventedRun(1)
    row = msgspec.structs.replace(run._rows[0], record=RecordRow("completed", 1, final_response="x" * 3_000_000))
    events = [item(id=str(n), type="commandExecution", command="c", aggregatedOutput="y" * 50_000) for n in range(20)]
    found = detail(row, run.attempts(0)[:1], lambda attempt: events, b"z" * 9_000_000)
    assert len(json.dumps(found)) < 1_300_000


def test_what_is_known_of_a_run_says_when_it_is_not_over() -> None:
    info: dict[str, Any] = {
        "path": "/r/night",
        "state": "died",
        "created_at": 0.0,
        "launches": [{}, {}, {}],
        "config": {},
    }
    info["config"] = {
        "arguments": {"workers": 2, "dataset": "d"},
        "dataset": {"name": "tasks/", "git": {"commit": "0123456789abcdef", "changed": True}},
    }
    facts = facts_of(info)
    assert {("workers", "2"), ("dataset", "tasks/"), ("commit", "0123456789ab, with changes")} < set(facts.facts)
    assert facts.name == "night" and ("resumed", "2 times") in facts.facts
    assert facts.problem is not None and "died" in facts.problem


@pytest.mark.parametrize(
    ("ms", "shown"),
    [(0, "0 ms"), (999.4, "999 ms"), (999.6, "1.0 s"), (59_940, "59.9 s"), (60_000, "1 min"), (61_000, "1 min 1 s"),
     (3_599_600, "1 h"), (7_440_000, "2 h 4 min"), (None, units.NOTHING)],
)  # fmt: skip
def test_durations(ms: float | None, shown: str) -> None:
    assert units.duration(ms) == shown


def test_money() -> None:
    assert [units.money(1234.5, "USD"), units.money(0.01234, "EUR"), units.money(0.5, None)] == [
        "$1,234.50",
        "0.0123 EUR",
        "0.5000",
    ]


def run_directory(path: Path, response: str) -> None:
    """A real run directory with one finished sample."""
    directory = RunDirectory(path)
    try:
        directory.launch({"dataset": "d.jsonl"})
        directory.load([Entry("a", 1, "d", {"id": "a", "prompts": ["Say it."]}, ("t",))], "d.jsonl")
        n = directory.store.sample("a").n
        start = directory.start_attempt(n, "key", "thread").result(5)
        end = {"status": "completed", "worker": "w", "duration_ms": 5}
        log = EventLog()
        log.add(json.dumps(item(type="agentMessage", text=response)).encode())
        record = RecordRow("completed", 1, final_response=response)
        directory.finish(start, record, end, to_score=True, events=log.member()).result(5)
        value = float(response == "yes")
        directory.scored(n, [ScoreRow("exact", value, bool(value), response, None, None, None, 1, 0.0)]).result(5)
        directory.outcome("finished", {})
    finally:
        directory.close()


def test_reports_are_made_of_run_directories(tmp_path: Path) -> None:
    run_directory(tmp_path / "a", "no")
    run_directory(tmp_path / "b", "yes")
    done = CliRunner().invoke(report, [str(tmp_path / "a")])
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path}/a/report.html\n")
    page = Page((tmp_path / "a" / "report.html").read_text())
    (row,) = page.rows()
    assert {name: row[name] for name in COLUMNS[:3]} == {"id": "a", "epoch": 1, "status": "completed"}
    (found,) = unpack(page.packed["segment-0"])
    assert found["attempts"][0]["entries"] == [{"kind": "agent", "text": "no"}]
    next((tmp_path / "a" / "events").iterdir()).write_bytes(b"damaged")
    done = CliRunner().invoke(
        report, [str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "new" / "c.html")]
    )
    assert done.exit_code == 0, done.output
    page = Page((tmp_path / "new" / "c.html").read_text())
    ((first, second),) = unpack(page.packed["segment-0"])
    assert "cannot be read" in first["attempts"][0]["entries"][0]["text"]
    assert second["attempts"][0]["entries"] == [{"kind": "agent", "text": "yes"}]
    (row,) = page.rows()
    assert (row["a"][1], row["b"][1]) == ([[0, 0.0, False, 0]], [[0, 1.0, True, 0]])


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none", "no such directory"), (tmp_path, "not the directory of a batch")):
        done = CliRunner().invoke(report, [str(path)])
        assert done.exit_code == 2 and said in done.stderr
    assert list(tmp_path.iterdir()) == []
