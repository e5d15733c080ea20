"""Rewards of a Harbor verifier: what counts, and what is not scored; and the scores that they are."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_batch.dataset import Sample
from codex_batch.harbor import collected
from codex_batch.harbor.collected import MAX_FILE_BYTES, Collected
from codex_batch.harbor.report import REPORT, Report, StepReport
from codex_batch.harbor.rewards import NoReward, below, of_steps, rewards_of
from codex_batch.scoring import ScoreContext, parse_scorer, score_sample
from codex_batch.scoring.scorer import Score

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("files", "rewards"),
    [
        ({"reward.txt": b"1"}, {"reward": 1.0}),
        ({"reward.txt": b" 0.25\r\n"}, {"reward": 0.25}),
        ({"reward.txt": b"-3"}, {"reward": -3.0}),
        ({"reward.json": b'{"reward": 1, "style": 0.5}'}, {"reward": 1.0, "style": 0.5}),
        ({"reward.json": b'{"passed": true}'}, {"passed": 1.0}),
        # The text counts only where there is no JSON.
        ({"reward.txt": b"1", "reward.json": b'{"a": 0}'}, {"a": 0.0}),
    ],
)
def test_a_reward_is_a_number_by_its_key(files: dict[str, bytes], rewards: dict[str, float]) -> None:
    assert rewards_of(files) == rewards


@pytest.mark.parametrize(
    ("files", "problem", "kind"),
    [
        ({}, "left neither /logs/verifier/reward.txt nor", "RewardFileNotFoundError"),
        ({"test-stdout.txt": b"1"}, "left neither", "RewardFileNotFoundError"),
        ({"reward.txt": b""}, "reward.txt: is empty", "RewardFileEmptyError"),
        ({"reward.txt": b" \n"}, "reward.txt: is ''; expected a number", "VerifierOutputParseError"),
        ({"reward.txt": b"pass"}, "reward.txt: is 'pass'; expected a number", "VerifierOutputParseError"),
        ({"reward.txt": b"\xff"}, "expected a number", "VerifierOutputParseError"),
        ({"reward.txt": b"nan"}, "reward.txt: is nan; expected a finite number", "VerifierOutputParseError"),
        ({"reward.txt": b"-inf"}, "is -inf; expected a finite number", "VerifierOutputParseError"),
        ({"reward.json": b""}, "reward.json: is empty", "RewardFileEmptyError"),
        ({"reward.json": b"{"}, "is no JSON", "VerifierOutputParseError"),
        ({"reward.json": b"{}"}, "is '{}'; expected an object with at least one number", "VerifierOutputParseError"),
        ({"reward.json": b"1"}, "is '1'; expected an object", "VerifierOutputParseError"),
        ({"reward.json": b'{"a": "1"}'}, "'a': is '\"1\"'; expected a number", "VerifierOutputParseError"),
        ({"reward.json": b'{"a": {"b": 1}}'}, "'a': is '{\"b\": 1}'; expected a number", "VerifierOutputParseError"),
        ({"reward.json": b'{"\\ud800": 1}'}, "the name '\\ud800' cannot be printed", "VerifierOutputParseError"),
        ({"reward.json": b'{"a\\n": 1}'}, "the name 'a\\n' cannot be printed", "VerifierOutputParseError"),
        ({"reward.json": b'{"a": null}'}, "'a': is 'null'; expected a number", "VerifierOutputParseError"),
        ({"reward.json": b'{"a": NaN}'}, "'a': is nan; expected a finite number", "VerifierOutputParseError"),
        ({"reward.json": b'{"a": 1e999}'}, "'a': is inf; expected a finite number", "VerifierOutputParseError"),
        ({"reward.json": b'{"a": 1%s}' % (b"0" * 400)}, "'a': is too large", "VerifierOutputParseError"),
        # One that is wrong is not made good by the other.
        ({"reward.txt": b"1", "reward.json": b""}, "reward.json: is empty", "RewardFileEmptyError"),
    ],
)
def test_what_is_no_finite_number_is_no_reward_and_never_0(files: dict[str, bytes], problem: str, kind: str) -> None:
    with pytest.raises(NoReward) as caught:
        rewards_of(files)
    assert problem in str(caught.value) and caught.value.kind == kind


@given(st.binary(max_size=40))
def test_any_data_is_a_reward_or_has_none(data: bytes) -> None:
    for name in ("reward.txt", "reward.json"):
        try:
            found = rewards_of({name: data})
        except NoReward:
            continue
        assert found and all(isinstance(value, float) and abs(value) < float("inf") for value in found.values())


def test_rewards_of_steps() -> None:
    steps = [{"a": 1.0}, {"a": 0.0, "b": 1.0}]
    assert of_steps(steps, is_mean=True) == {"a": 0.5, "b": 0.5}
    assert of_steps(steps, is_mean=False) == {"a": 0.0, "b": 1.0}


def test_least_rewards() -> None:
    assert below({"reward": 0.5}, {"reward": 0.5}) is None and below({}, {}) is None
    assert below({"reward": 0.4}, {"reward": 0.5}) == "reward: is 0.4; min_reward is 0.5"
    assert below({"a": 1.0}, {"reward": -5.0}) == "reward: there is no such reward; min_reward is -5"


# Scores.


def scores(directory: Path, report: Report | None) -> list[Score]:
    if report is not None:
        (directory / REPORT).write_bytes(report.to_json())
    scorer = parse_scorer({"type": "harbor", "name": "reward"}, "scorers")
    context = ScoreContext(sample=Sample("a", ("p",)), final_response=None, artifacts=directory)
    return asyncio.run(score_sample([scorer], context))


def plain(found: list[Score]) -> dict[str, tuple[float, bool | None]]:
    assert all(score.error is None and score.others == () for score in found)
    return {score.scorer: (score.value, score.passed) for score in found}


def test_each_key_is_a_score(tmp_path: Path) -> None:
    one = Report((StepReport("", {"reward": 1.0, "style": 0.5}),))
    assert plain(scores(tmp_path, one)) == {"reward": (1.0, True), "style": (0.5, None)}
    # Without a reward by that name there is no such score, rather than one that nobody gave.
    other = Report((StepReport("", {"style": 0.5}),))
    assert plain(scores(tmp_path, other)) == {"style": (0.5, None)}
    assert plain(scores(tmp_path, Report((StepReport("", {"reward": 0.99}),)))) == {"reward": (0.99, False)}


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        (None, "run the sample again"),
        (Report((StepReport("", None, "reward.txt: is empty"),)), "reward.txt: is empty"),
        (Report((StepReport("a", {"reward": 1.0}), StepReport("b", None, "x"))), "step b: x"),
        (Report((), ended="the container was not healthy"), "the container was not healthy"),
        (Report((StepReport("", {"a b": 1.0}),)), 'a reward has the name "a b"'),
        (Report((StepReport("", {"a": 1e200}),)), "expected a number up to 1e+100"),
    ],
)
def test_what_has_no_reward_is_not_scored(report: Report | None, problem: str, tmp_path: Path) -> None:
    (score,) = scores(tmp_path, report)
    assert score.error is not None and problem in score.error


# Files that are kept.


def test_what_an_agent_leaves_takes_no_room_from_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collected, "MAX_BYTES", 10)
    for name, data in (("agent", "x" * 8), ("verifier", "0.123456")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log").write_text(data)
    (tmp_path / "verifier" / "reward.txt").write_text("0.123456")
    kept = Collected()
    kept.add("/logs/agent", tmp_path / "agent", "", "agent")
    assert kept.add("/logs/verifier", tmp_path / "verifier", "", "verifier") == {"reward.txt": b"0.123456"}


def test_files_are_kept_in_bounds_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    logs = tmp_path / "logs"
    (logs / "deep").mkdir(parents=True)
    (logs / "reward.txt").write_text("1")
    (logs / "deep" / "log").write_text("text")
    (logs / "link").symlink_to(outside)
    with (logs / "large").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    kept = Collected()
    assert kept.add("/logs/verifier", logs, "", "verifier") == {"reward.txt": b"1", "deep/log": b"text"}
    kept.add("/app/report", outside, "steps/a/", "artifacts/report")
    kept.note("/app/none", "steps/a/", "artifacts/none", "missing")
    kept.note("/logs/artifacts", "steps/a/", "artifacts/logs/artifacts", "empty")
    files = kept.with_report(Report(()))
    assert sorted(files) == [
        REPORT,
        "steps/a/artifacts/manifest.json",
        "steps/a/artifacts/report",
        "verifier/deep/log",
        "verifier/reward.txt",
    ]
    assert [(entry["source"], entry["status"]) for entry in json.loads(files["steps/a/artifacts/manifest.json"])] == [
        ("/app/report", "ok"),
        ("/app/none", "failed"),
        ("/logs/artifacts", "empty"),
    ]
