"""Gates of a run: decided by its scores, refused where they could not be, and reported for CI systems."""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from runs import make_run

from codex_batch.dataset import Sample
from codex_batch.display.next_steps import next_steps
from codex_batch.exit_codes import CANNOT_START, GATE_FAILED, INTERRUPTED, OK, SOME_FAILED, USAGE
from codex_batch.gates import github, judge
from codex_batch.gates.cases import WORST, Case, Overview
from codex_batch.gates.columns import Plan, Scored
from codex_batch.gates.junit import allowed
from codex_batch.gates.options import FailUnder, GateError, GateOptions, parse_fail_under
from codex_batch.gates.prepare import plan_of_samples, plan_of_store, prepare, split_run
from codex_batch.gates.verdicts import Baseline, Prepared, Verdict, decide, fail_under, worse_than
from codex_batch.scoring import Score, Scorers
from codex_batch.store import Entry, RecordRow, RunDirectory, open_run
from codex_pool.runtime import workflow_commands

# The directory of a run that no baseline is in.
ELSEWHERE = Path("/elsewhere")


def scored(*values: float | None, first: int = 0) -> Scored:
    """Scores of samples with one epoch each."""
    return Scored({f"s{number}": [value] for number, value in enumerate(values, first)})


def under(scores: Scored | None, least: float, min_scored: float = 1.0) -> Verdict:
    return fail_under(FailUnder("exact", least), "", scores, min_scored)


def worse(before: Scored, after: Scored, **options: Any) -> Verdict:
    return worse_than(Baseline("main", "/main", {"exact": before}), "exact", "", after, GateOptions(**options))


def run_of(path: Path, scores: Sequence[float | None], scorer: str = "exact", **more: Any) -> Path:
    """A run of samples s0, s1, ..., each with its score, failed with None."""
    samples = [Sample(id=f"s{number}", prompts=("p",), target="t") for number in range(len(scores))]
    made = {
        sample.id: [Score(scorer=scorer, value=value, passed=value >= 1, explanation="it is not the target")]
        for sample, value in zip(samples, scores, strict=True)
        if value is not None
    }
    answers = [(sample, None if value is None else "answer") for sample, value in zip(samples, scores, strict=True)]
    return make_run(path, answers, scorers=[{"type": scorer, "name": scorer}], scores=made, **more)


# The mean.


def test_a_mean_passes_from_its_bound_on() -> None:
    assert under(scored(1, 1, 1, 0, 0), 0.6).passed
    low = under(scored(1, 1, 0, 0, 0), 0.6)
    assert not low.passed and low.reason == "0.400 is below 0.6, over 5 scores"
    close = under(Scored({f"s{n}": [float(n >= 2)] for n in range(10_000)}), 0.9999)
    assert not close.passed and close.reason.startswith("0.999800 is below 0.9999")


def test_a_sample_without_a_score_fails_the_gate_or_counts_as_0() -> None:
    strict = under(scored(1, 1, 1, None), 0.5)
    assert not strict.passed and "too few have a score: 3 of 4; at least 100 % are needed" in strict.reason
    allowed = under(scored(1, 1, 1, None), 0.75, min_scored=0.75)
    assert allowed.passed and allowed.reason == "0.750 over 4 samples, 1 of them without a score"
    assert not under(scored(1, 1, 1, None), 0.8, min_scored=0.75).passed
    # Below 0 it counts as the lowest score there is: a crash is never better than an answer.
    assert under(scored(-4, 2, None, None), 0, min_scored=0.5).figures["value"] == -2.5


@pytest.mark.parametrize("scores", [None, Scored(), scored(None, None)])
def test_what_is_not_known_has_not_passed(scores: Scored | None) -> None:
    assert not under(scores, -1.0, min_scored=0.0001).passed


def test_a_gate_holds_for_each_variant_or_for_the_one_it_names() -> None:
    columns = {"low": {"exact": scored(1, 0)}, "high": {"exact": scored(1, 1)}}
    gates = GateOptions(fail_under=(FailUnder("exact", 0.9), FailUnder("exact", 0.9, "high")))
    found = decide(gates, columns, Prepared(("low", "high", "gone")))
    assert [(verdict.gate, verdict.passed) for verdict in found] == [
        ("exact@low >= 0.9", False),
        ("exact@high >= 0.9", True),
        ("exact@gone >= 0.9", False),
        ("exact@high >= 0.9", True),
    ]


def test_the_words_of_a_gate() -> None:
    assert parse_fail_under("exact@low=0.8") == FailUnder("exact", 0.8, "low")
    assert parse_fail_under("exact=.5").shown == "exact=0.5"
    for text in ("exact", "=1", "exact=", "exact@=1", "exact=nan", "exact=much", "@low=1"):
        with pytest.raises(ValueError, match="is not of the form SCORER=NUMBER"):
            parse_fail_under(text)


# The comparison.


def test_worse_is_told_from_chance_by_an_exact_test() -> None:
    before = scored(*[1.0] * 10)
    five = worse(before, scored(*[0.0] * 5, *[1.0] * 5))
    # McNemar, one-sided: 5 of 5 changes to the worse.
    assert not five.passed and five.figures["p"] == pytest.approx(0.5**5)
    assert "-0.500 (1.000 to 0.500), p 0.031, 10 common samples" in five.reason
    four = worse(before, scored(*[0.0] * 4, *[1.0] * 6))
    assert four.passed and four.figures["p"] == pytest.approx(0.5**4)
    same, better = worse(before, before), worse(scored(*[0.0] * 10), before)
    assert same.passed and same.figures["p"] == 0.5 and better.passed and better.figures["p"] > 0.99


def test_a_margin_is_allowed_and_what_is_beyond_it_is_not() -> None:
    before = scored(*[0.9] * 40)
    after = scored(*[0.9 - 0.05 - 0.001 * (n % 7) for n in range(40)])
    assert not worse(before, after).passed
    assert worse(before, after, margin=0.1).passed and not worse(before, after, margin=0.02).passed


def test_false_alarms_are_as_rare_as_alpha_says_at_the_margin() -> None:
    draw, alarms, runs = random.Random(7), 0, 400
    for _ in range(runs):
        # Each sample keeps its score, loses it with 0.12, gains it with 0.02: worse by the margin of 0.1 on the mean.
        rolls = [draw.random() for _ in range(250)]
        before = scored(*[0.0 if roll < 0.02 else 1.0 for roll in rolls])
        after = scored(*[0.0 if 0.02 <= roll < 0.14 else 1.0 for roll in rolls])
        alarms += not worse(before, after, margin=0.1).passed
    assert alarms / runs < 0.08


def test_epochs_count_as_one_and_samples_of_one_run_only_are_left_out() -> None:
    before = Scored({f"s{n}": [1.0, 0.0] for n in range(8)})
    after = Scored({f"s{n}": [0.5] for n in range(6)} | {"new": [0.0]})
    found = worse(before, after)
    assert found.passed and found.figures["change"] == 0
    assert found.reason.endswith("6 common samples, 1 only in the run, 2 only in the baseline")


def test_a_crash_of_the_run_counts_as_0_and_one_of_the_baseline_is_left_out() -> None:
    before = scored(*[1.0] * 10, None)
    after = scored(*[None] * 6, *[1.0] * 5)
    found = worse(before, after, min_scored=0.4)
    assert not found.passed and found.figures["pairs"] == 10 and found.figures["change"] == pytest.approx(-0.6)
    assert not worse(scored(*[1.0] * 10), after).passed
    assert "the baseline has scored 10 of 11" in worse(before, scored(*[1.0] * 11)).reason


def test_too_few_pairs_to_find_anything_do_not_pass() -> None:
    assert GateOptions(alpha=0.05).pairs_needed == 5 and GateOptions(alpha=0.5).pairs_needed == 1
    few = worse(scored(1, 1, 1, 1), scored(1, 1, 1, 1))
    assert not few.passed and "4 samples scored in both; at least 5 are needed" in few.reason
    assert not worse(scored(1, 1), scored(1, 1, first=5)).passed


# Refused before anything starts.


def test_gates_that_cannot_be_decided_are_refused_with_what_is_meant(tmp_path: Path) -> None:
    samples = [Sample(id=f"s{number}", prompts=("p",), target="t") for number in range(10)]
    plan = plan_of_samples(samples, Scorers(("exact", "judge:Good?")).of, ("low", "high"))
    good, poor = run_of(tmp_path / "good", [1.0] * 10), run_of(tmp_path / "poor", [1.0] * 8 + [None] * 2)
    other = run_of(tmp_path / "other", [1.0] * 10, scorer="includes")
    few = run_of(tmp_path / "few", [1.0] * 3)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.sqlite").write_bytes(b"no database " * 100)

    def problem(**options: Any) -> str:
        with pytest.raises(GateError) as refused:
            prepare(GateOptions(**options), plan, tmp_path / "out")
        assert len(refused.value.problems) == 1
        return str(refused.value)

    def of(text: str) -> str:
        return problem(fail_under=(parse_fail_under(text),))

    def against(path: str | Path, *scorers: str, **more: Any) -> str:
        return problem(worse_than=(str(path),), scorers=scorers or ("exact",), **more)

    assert of("exat=0.5") == "--fail-under exat=0.5: no scorer 'exat'; did you mean 'exact'?"
    assert of("tests=0.5").endswith("no scorer 'tests'; there are exact, judge")
    assert of("exact@hihg=0.5").endswith("no variant 'hihg'; did you mean 'high'?")
    assert of("exact=80").endswith("exact gives scores from 0 to 1, so 80 can never be reached")
    assert of("judge=-1").endswith("judge gives scores from 0 to 1, so -1 is always reached")
    assert "no such directory" in against(tmp_path / "gone")
    assert "cannot be used" in against(tmp_path / "broken")
    assert "is the run itself; name another run, or a variant" in against(tmp_path / "out")
    assert "no variant 'hihg'; did you mean 'high'?" in against(f"{tmp_path / 'out'}@hihg")
    assert "no scorer 'exakt'; did you mean 'exact'?" in problem(worse_than=(str(good),), scorers=("exact", "exakt"))
    assert "exact has not scored it; score it with `codex-pool score`" in against(other)
    assert "exact has scored 8 of 10 common samples; run the others" in against(poor)
    assert "3 common samples with a score by exact cannot show" in against(few)
    assert "the run has no variants" in against(f"{good}@low")
    assert problem(junit=tmp_path).startswith("--junit: ") and "is a directory" in problem(junit=tmp_path)
    with contextlib.closing(RunDirectory(tmp_path / "going")) as going:
        going.launch({})
        assert "is still under way" in against(tmp_path / "going")
    assert prepare(GateOptions(worse_than=(str(poor),), scorers=("exact",), min_scored=0.8), plan, ELSEWHERE).baselines
    with pytest.raises(GateError, match="the run has no scorers; name one with --scorer"):
        prepare(GateOptions(fail_under=(FailUnder("exact", 1),)), Plan(), ELSEWHERE)


def test_variants_are_compared_with_one_of_the_same_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    samples = [Sample(id=f"s{number}", prompts=("p",), target="t") for number in range(6)]
    plan = plan_of_samples(samples, Scorers(("exact",)).of, ("before", "after", "other"))
    options = GateOptions(worse_than=(f"{run}@before",))
    # The run is still to start, and has the scores when the gates are decided.
    prepared = prepare(options, plan, run)
    assert list(prepared.baselines) == [(f"{run}@before", "after"), (f"{run}@before", "other")]
    columns = {
        "before": {"exact": scored(1, 1, 1, 1, 1, 1)},
        "after": {"exact": scored(1, 0, 0, 0, 0, 0)},
        "other": {"exact": scored(1, 1, 1, 1, 1, 1)},
    }
    after, other = decide(options, columns, prepared)
    assert (after.variant, after.passed, other.variant, other.passed) == ("after", False, "other", True)
    assert after.gate == f"exact@after not worse than {run}@before" and after.figures["change"] == pytest.approx(-5 / 6)
    # A baseline that is not known is no reason to pass.
    assert not any(verdict.passed for verdict in decide(options, {**columns, "before": {}}, prepared))
    for variants, problem in ((("before",), "no variant beside before"), (("after",), "no variant 'before'")):
        with pytest.raises(GateError, match=problem):
            prepare(options, plan_of_samples(samples, Scorers(("exact",)).of, variants), run)
    few = plan_of_samples(samples[:3], Scorers(("exact",)).of, ("before", "after"))
    with pytest.raises(GateError, match="3 samples with a score by exact cannot show"):
        prepare(options, few, run)


def test_a_variant_that_the_command_leaves_out_is_the_baseline_as_it_was_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    samples = [Sample(id=f"s{number}", prompts=("p",), target="t", variant="before") for number in range(6)]
    scores = {sample.id: [Score(scorer="exact", value=1.0, passed=True)] for sample in samples}
    make_run(run, [(sample, "answer") for sample in samples], scorers=[{"type": "exact", "name": "exact"}])
    with contextlib.closing(RunDirectory(run)) as directory:
        for row in directory.store.samples():
            directory.replace_scores(row.n, scores[row.id])
    plan = plan_of_samples([Sample(id=s.id, prompts=("p",)) for s in samples], Scorers(("exact",)).of, ("after",))
    options = GateOptions(worse_than=(f"{run}@before",))
    (verdict,) = decide(options, {"after": {"exact": scored(*[0.0] * 6)}}, prepare(options, plan, run))
    assert not verdict.passed and verdict.figures["change"] == -1.0


def test_a_variant_is_compared_with_the_one_of_its_name_or_the_one_that_is_named(tmp_path: Path) -> None:
    samples = [Sample(id=f"s{number}", prompts=("p",), target="t") for number in range(6)]
    for name, variants in (("one", {"low": 1.0, "high": 0.0}), ("plain", {"": 1.0})):
        with contextlib.closing(RunDirectory(tmp_path / name)) as directory:
            directory.launch({"scorers": [{"type": "exact", "name": "exact"}], "dataset": {"name": "d.jsonl"}})
            entries = [Entry(s.id, 1, s.digest, s.to_json(), variant=v) for s in samples for v in variants]
            directory.load(entries, "d.jsonl")
            for sample in samples:
                for variant, value in variants.items():
                    n = directory.store.sample(sample.id, 1, variant).n
                    start = directory.start_attempt(n, "key", "thread").result(5)
                    directory.finish(start, RecordRow("completed", 1), {"status": "completed"}).result(5)
                    directory.replace_scores(n, [Score(scorer="exact", value=value, passed=value == 1.0)])
            directory.outcome("finished", {})

    def verdicts(run: str, *worse_than: str, **options: Any) -> list[tuple[str, bool]]:
        asked = GateOptions(worse_than=tuple(str(tmp_path / name) for name in worse_than), **options)
        with open_run(tmp_path / run) as store:
            gates = judge.Gates(asked, prepare(asked, plan_of_store(store), ELSEWHERE))
            return [(v.gate.replace(f"{tmp_path}/", ""), v.passed) for v in gates.decide(store)]

    assert verdicts("one", "one", "one@low", "plain") == [
        ("exact@low not worse than one@low", True),
        ("exact@high not worse than one@high", True),
        ("exact@low not worse than one@low", True),
        ("exact@high not worse than one@low", False),
        ("exact@low not worse than plain", True),
        ("exact@high not worse than plain", False),
    ]
    assert verdicts("plain", "one@high") == [("exact not worse than one@high", True)]
    for baseline, words in (("one", "has several variants; name one of"), ("one@hihg", "did you mean 'high'?")):
        with pytest.raises(GateError) as refused:
            verdicts("plain", baseline)
        assert words in str(refused.value) and len(refused.value.problems) == 1
    options = GateOptions(fail_under=(FailUnder("exact", 0.5),), junit=tmp_path / "junit.xml")
    with open_run(tmp_path / "one") as store:
        found = judge.Gates(options, prepare(options, plan_of_store(store), ELSEWHERE)).decide(store)
        judge.publish(options, store, found, {})
    low, high, gates = junit((tmp_path / "junit.xml").read_text())
    assert (low.attrib["name"], high.attrib["name"]) == ("d.jsonl@low", "d.jsonl@high")
    assert (low.attrib["failures"], high.attrib["failures"], gates.attrib["failures"]) == ("0", "6", "1")
    assert high[0].attrib["classname"] == "d.high" and high[0].attrib["name"] == "s0"


def test_a_baseline_of_other_samples_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [1.0] * 6)
    plan = plan_of_samples([Sample(id="x", prompts=("p",), target="t")], Scorers(("exact",)).of, ("",))
    with pytest.raises(GateError, match="none of the samples that exact scores in this run"):
        prepare(GateOptions(worse_than=(str(run),)), plan, ELSEWHERE)


def test_a_run_may_have_an_at_sign_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a@b").mkdir()
    assert split_run(str(tmp_path / "a@b")) == (tmp_path / "a@b", None)
    assert split_run(str(tmp_path / "a@b@low")) == (tmp_path / "a@b", "low")
    assert split_run(str(tmp_path / "c@low")) == (tmp_path / "c", "low")


def test_the_exit_code_of_a_run_with_gates() -> None:
    passed, failed = under(scored(1), 0.5), under(scored(0), 0.5)
    assert judge.exit_code(SOME_FAILED, [], None) == SOME_FAILED
    for code, verdicts, problem, expected in (
        (OK, [passed], None, OK),
        (OK, [passed, failed], None, GATE_FAILED),
        (SOME_FAILED, [failed], "the pool is gone", GATE_FAILED),
        # What is missing is as little as --min-scored allows.
        (SOME_FAILED, [passed], None, OK),
        (SOME_FAILED, [passed], "the pool is gone", SOME_FAILED),
        (INTERRUPTED, [failed], None, INTERRUPTED),
        (USAGE, [failed], None, USAGE),
        (CANNOT_START, [failed], None, CANNOT_START),
    ):
        assert judge.exit_code(code, verdicts, problem) == expected


# A run that there is, and the files of it.

HOSTILE = (
    "::error title=x::owned\n  ::warning::y ##[error]z <b>|`$(x)`[l](http://e.org)& \x1b[2J\x01\ufffe ]]> %0A\r, :"
)


def hostile_run(path: Path) -> Path:
    """A run whose ids, answers, errors and explanations hold what could be taken for something else."""
    samples = [Sample(id=f"s{n}-{HOSTILE}" if n < 3 else f"s{n}", prompts=(HOSTILE,), target="t") for n in range(6)]
    scores = {
        samples[n].id: [Score(scorer="exact", value=value, passed=value == 1, explanation=HOSTILE)]
        for n, value in ((0, 0.0), (3, 1.0), (4, 0.0))
    }
    scores[samples[5].id] = [Score(scorer="exact", value=0.0, error=HOSTILE)]
    answers = [(sample, HOSTILE if n != 1 else None) for n, sample in enumerate(samples) if n != 2]
    make_run(path, answers, scorers=[{"type": "exact", "name": "exact"}], scores=scores)
    directory = RunDirectory(path)
    directory.load([Entry(s.id, 1, s.digest, s.to_json()) for s in samples], "d.jsonl")
    directory.close()
    return path


# Attributes of junit-10.xsd of the xUnit plugin of Jenkins, those required in capitals.
ALLOWED = {
    "testsuites": "name time tests failures disabled errors",
    "testsuite": "NAME TESTS failures errors time disabled skipped skips timestamp hostname id package assertions "
    "file log url version group",
    "testcase": "NAME time classname status class file line log group url assertions",
    "failure": "message type",
    "error": "message type",
    "skipped": "message type",
}
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"testcase", "properties", "system-out", "system-err"},
    "testcase": {"failure", "error", "skipped", "system-out", "system-err"},
}


def junit(text: str) -> ET.Element:
    """A document that keeps the rules of the schema, and whose counts are right."""
    root = ET.fromstring(text)
    assert root.tag == "testsuites"
    for element in root.iter():
        names = ALLOWED[element.tag].split()
        assert set(element.attrib) <= {name.lower() for name in names}, element.attrib
        assert {name.lower() for name in names if name.isupper()} <= set(element.attrib)
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set())
        for name in ("time",) if "time" in element.attrib else ():
            assert math.isfinite(float(element.attrib[name]))
    for suite in root.iter("testsuite"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp", "2026-01-01T00:00:00"))
        cases = suite.findall("testcase")
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.attrib[attribute]) == sum(case.find(tag) is not None for case in cases)
        assert int(suite.attrib["tests"]) == len(cases)
    for attribute in ("tests", "failures", "errors"):
        assert int(root.attrib[attribute]) == sum(int(suite.attrib[attribute]) for suite in root)
    return root


def test_the_files_of_a_run_whose_samples_are_hostile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = hostile_run(tmp_path / "run")
    options = GateOptions(fail_under=(FailUnder("exact", 0.5),), junit=tmp_path / "junit.xml")
    summary = tmp_path / "summary.md"
    environ = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    with open_run(run) as store:
        plan = plan_of_store(store)
        assert list(plan.scorers) == ["exact"] and len(plan.ids["exact"]) == 6
        verdicts = judge.Gates(options, prepare(options, plan, ELSEWHERE)).decide(store)
        published = judge.publish(options, store, verdicts, environ, lambda text: text.replace("owned", "[redacted]"))
    assert not verdicts[0].passed and published.problems == []
    assert allowed("a\x00\ud800\t\n\U0001f600") == "a\\x00\\ud800\t\n\U0001f600"
    root = junit((tmp_path / "junit.xml").read_text())
    samples, gates = root
    assert (samples.get("name"), samples.get("tests"), samples.get("skipped")) == ("d.jsonl", "6", "1")
    assert (samples.get("failures"), samples.get("errors")) == ("2", "2")
    wrong = samples[0].find("failure")
    assert wrong is not None and "exact 0: ::error title=x::[redacted]" in wrong.attrib["message"]
    assert wrong.text is not None and "\\x1b[2J\\x01\\ufffe ]]>" in wrong.text and "owned" not in wrong.text
    assert samples[3].attrib["classname"] == "d" and len(samples[3]) == 0
    assert gates.attrib["name"] == "gates" and gates[0].attrib["name"] == "exact >= 0.5"
    text = summary.read_text()
    assert text.startswith("### codex-pool: d.jsonl\n") and "**failed**" in text and "exact &#62;= 0.5" in text
    # Nothing of a sample is markup: no cell, no link, no HTML, no code.
    of_samples = [line for line in text.splitlines() if "redacted" in line]
    assert of_samples and all(line.count("|") == 4 for line in of_samples)
    assert not re.search(r"[<`\[\]$:]", "".join(of_samples)) and "owned" not in text
    assert 0 < len(published.annotations) <= 20
    for line in published.annotations:
        assert re.fullmatch(r"::(error|warning) title=[^:,\n\r]*::[^\n\r]*", line) and "##[" not in line
        assert "\x1b" not in line and "owned" not in line
    assert published.annotations[0].startswith("::error title=gate failed%3A exact >= 0.5::too few have a score")
    judge.Judgement(OK, verdicts, published).annotate()
    assert capsys.readouterr().err.splitlines() == published.annotations
    # A second step's summary is appended, up to what GitHub takes.
    with summary.open("ab") as file:
        file.write(b"x" * (github.SUMMARY_BYTES - 200 - summary.stat().st_size))
    with open_run(run) as store:
        judge.publish(GateOptions(), store, [], environ)
    assert summary.stat().st_size < github.SUMMARY_BYTES and b"GitHub takes 1 MiB" in summary.read_bytes()[-200:]


def test_a_file_that_cannot_be_written_is_a_problem_and_no_exception(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [1.0])
    options = GateOptions(junit=tmp_path / "gone" / "junit.xml")
    with open_run(run) as store:
        published = judge.publish(options, store, [], {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path)})
    assert published.junit is None and len(published.problems) == 2
    assert published.problems[0].startswith("--junit: ") and "GITHUB_STEP_SUMMARY" in published.problems[1]
    with open_run(run) as store:
        assert judge.Gates(options).judge(store, OK, None).code == SOME_FAILED
        assert judge.Gates(options).judge(store, USAGE, None) == judge.Judgement(USAGE)
        assert judge.Gates().judge(store, OK, None) == judge.Judgement(OK)


def test_nothing_is_written_that_was_not_asked_for(tmp_path: Path) -> None:
    with open_run(run_of(tmp_path / "run", [1.0])) as store:
        assert (
            judge.publish(GateOptions(), store, [], {"GITHUB_STEP_SUMMARY": str(tmp_path / "s")}) == judge.Published()
        )
    assert not (tmp_path / "s").exists()


def test_the_worst_samples_and_at_most_ten_annotations_of_a_kind() -> None:
    overview = Overview()
    with_row: Any = type("Row", (), {"id": "x", "tags": (), "scores": ()})
    for number in range(50):
        kind: Any = "error" if number == 40 else "failure" if number % 2 else "passed"
        overview.add(with_row, Case(f"s{number}", "low", kind, message="m"))
    worst = overview.worst
    assert len(worst) == WORST and [case.name for case in worst[:3]] == ["s40", "s1", "s3"]
    verdicts = [under(scored(0), 0.5) for _ in range(12)]
    lines = github.workflow_commands(overview, verdicts)
    assert sum(line.startswith("::error ") for line in lines) == 10
    assert sum(line.startswith("::warning ") for line in lines) == 10
    assert lines[9] == "::error title=gates failed::3 more; see the step summary"
    assert lines[-1].startswith("::warning title=samples did not pass::17 more")
    long = github.summary("d", overview, verdicts * 1000)
    assert len(long.encode()) < 100_000 and "| and 11,900 more | | |" in long and "25 samples did not pass" not in long


def test_text_of_others_is_no_workflow_command() -> None:
    neutral = workflow_commands.neutral
    assert (
        neutral("a::b\n::error::x\n \t::set-output name=a::b") == "a::b\n\\x3a:error::x\n \t\\x3a:set-output name=a::b"
    )
    assert neutral("x ##[error]y") == "x \\x23#[error]y" and neutral("plain") == "plain"
    line = json.dumps({"text": "##[error]x"})
    assert "##[" not in workflow_commands.json_line(line)
    assert json.loads(workflow_commands.json_line(line)) == json.loads(line)
    assert workflow_commands.command("error", "a:b,c%", "x\r\ny::") == "::error title=a%3Ab%2Cc%25::x%0D%0Ay::"


def test_scores_that_were_added_later_can_be_asked_for(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [1.0, 1.0])
    directory = RunDirectory(run)
    row = directory.store.sample("s0")
    directory.replace_scores(row.n, [*row.scores, Score(scorer="style", value=5.0)])
    directory.close()
    with open_run(run) as store:
        plan = plan_of_store(store)
        options = GateOptions(fail_under=(FailUnder("style", 4),), min_scored=0.5)
        (verdict,) = judge.Gates(options, prepare(options, plan, ELSEWHERE)).decide(store)
    assert (verdict.figures["scored"], verdict.figures["planned"], verdict.figures["value"]) == (1, 2, 2.5)


# What to do next.


def test_what_to_do_next_is_what_applies_quoted_for_a_shell() -> None:
    command = ["batch", "my data.jsonl", "-o", "out put"]
    done = {"completed": 3, "failed": 0, "not_run": 0}
    assert next_steps("/w/out put", "/w", done, command) == [("report", "codex-pool report 'out put'")]
    some = {"completed": 3, "lost": 1, "not_run": 2}
    assert next_steps("/r", "/w", some, command, baseline="/w/main") == [
        ("report", "codex-pool report /r"),
        ("compare", "codex-pool report main /r"),
        ("failed ones", "codex-pool runs retry /r"),
        ("go on", "codex-pool batch 'my data.jsonl' -o 'out put'"),
    ]
    own = next_steps("/w/pr", "/w", done, command, baseline="/w/pr", variant="before")
    assert own[-1] == ("compare", "codex-pool report pr --baseline pr@before")
    assert next_steps("/w/-r", "/w", {"not_run": 1}, ["batch", "-", "-o", "-r"]) == [
        ("go on", "the same command again")
    ]
    secret = next_steps("/r", "/w", {"not_run": 1}, ["batch", "d", "-c", "api_key=..."])
    assert secret == [("go on", "the same command again")]
    assert next_steps("/r", "/w", some, command, is_estimate=True)[-1][1] == "the same command without --estimate"
    assert next_steps("/w/-r", "/w", done, command)[0][1] == "codex-pool report ./-r"
