"""Variants as a dimension of a run, on the real binary: what the model is asked, in which order, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs import codex_pool

from codex_app_server.testing.loopback import LoopbackModel
from codex_batch.store import open_run

real = pytest.mark.real

FOUR = ("m1-low", "m1-high", "m2-low", "m2-high")


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@real
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_each_sample_is_run_in_each_variant_beside_each_other_and_the_run_is_resumed_as_a_whole(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "out"
    data.write_text(
        "".join(json.dumps({"id": name, "prompt": f"{name} [[text yes]]", "target": "yes"}) + "\n" for name in "ab")
    )
    of_run = ("batch", str(data), "--scorer", "exact", "--workers", "1", "--turns-per-worker", "1", "-o", str(out))
    two_by_two = ("--model", "m1", "--model", "m2", "--effort", "low", "--effort", "high")

    # One command for half of the samples; each of these in all variants.
    done = codex_pool(*of_run, *two_by_two, "--limit", "1", "--json", home=home)
    assert done.returncode == 0, done.stderr
    wanted = [("m1", "low"), ("m1", "high"), ("m2", "low"), ("m2", "high")]
    assert [(each.model, each.effort, each.prompt[0]) for each in model.requests] == [(*pair, "a") for pair in wanted]
    launched, *samples, ended = (json.loads(line) for line in done.stdout.splitlines())
    assert launched["effective"] is None and launched["samples"] == 4
    assert [
        (each["name"], each["effective"]["model"], each["effective"]["effort"]) for each in launched["variants"]
    ] == [(name, *pair) for name, pair in zip(FOUR, wanted, strict=True)]
    assert len({each["effective"]["fingerprint"] for each in launched["variants"]}) == 4
    assert sorted(each["variant"] for each in samples) == sorted(FOUR)
    assert ended["metrics"] == {} and list(ended["variants"]) == list(FOUR)
    assert all(each["metrics"]["exact"]["mean"] == 1.0 for each in ended["variants"].values())
    assert all(each["counts"]["completed"] == 1 and each["tokens"] > 0 for each in ended["variants"].values())

    # The same of all samples goes on, and a model more is only its own runs.
    more = codex_pool(*of_run, *two_by_two, "--model", "m3", home=home)
    assert more.returncode == 0, more.stderr
    asked = [(each.prompt[0], each.model, each.effort) for each in model.requests[4:]]
    pairs = [(name, effort) for name in ("m1", "m2", "m3") for effort in ("low", "high")]
    assert asked == [*(("a", "m3", effort) for effort in ("low", "high")), *(("b", *pair) for pair in pairs)]
    table = [line.split() for line in more.stderr.splitlines() if line.strip().startswith(("variant", "m1-", "m3-"))]
    assert table[0] == ["variant", "done", "exact", "tokens"]
    assert table[1][:3] == ["m1-low", "2/2", "1.000"] and table[-1][0] == "m3-high"
    assert not any(line.split()[:1] == ["exact"] for line in more.stderr.splitlines()), "no mean over variants"
    records = results(out)
    assert [(each["id"], each["variant"], each["model"], each["effort"]) for each in records] == [
        (name, f"{of}-{effort}", of, effort) for name in "ab" for of, effort in pairs
    ]
    with open_run(out) as store:
        assert store.variant_names() == [each["name"] for each in store.variants()] == [f"{m}-{e}" for m, e in pairs]
        assert {each["fingerprint"] for each in records} == {
            each["effective"]["fingerprint"] for each in store.variants()
        }
        assert store.sample("b", 1, "m2-high").spec.keys() == {"id", "prompts", "target", "variant", "directory"}

    # A variant that the command leaves out keeps its results.
    count = len(model.requests)
    again = codex_pool(*of_run, *two_by_two, home=home)
    assert again.returncode == 0 and "nothing to do" in again.stderr and len(model.requests) == count
    assert len(results(out)) == 12

    # Looked at and run again by its name.
    shown = codex_pool("runs", "show", str(out), "a@m3-low", "--json")
    assert json.loads(shown.stdout)["variant"] == "m3-low" and json.loads(shown.stdout)["model"] == "m3"
    once_more = codex_pool("runs", "retry", str(out), "b@m3-high", home=home)
    assert once_more.returncode == 0, once_more.stderr
    assert [(each.prompt[0], each.model, each.effort) for each in model.requests[count:]] == [("b", "m3", "high")]
    listed = codex_pool("runs", "show", str(out)).stdout
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("m3-")] == ["2/2", "2/2"]


@real
def test_one_model_effort_and_sandbox_are_those_of_samples_that_name_none(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "out"
    rows = [{"id": "plain", "prompt": "p"}, {"id": "own", "prompt": "p", "model": "mine", "sandbox": "workspace-write"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    of_run = ("batch", str(data), "--workers", "1", "-o", str(out))
    done = codex_pool(*of_run, "--model", "m1", "--effort", "high", "--sandbox", "read-only", "--json", home=home)
    assert done.returncode == 0, done.stderr
    assert sorted((each.model, each.effort) for each in model.requests) == [("m1", "high"), ("mine", "high")]
    effective = json.loads(done.stdout.splitlines()[0])["effective"]
    assert (effective["model"], effective["effort"], effective["sandbox"]) == ("m1", "high", "read-only")
    plain, own = results(out)
    assert [(each["model"], each["effort"]) for each in (plain, own)] == [("m1", "high"), ("mine", "high")]
    assert plain["fingerprint"] == effective["fingerprint"] != own["fingerprint"] and "variant" not in plain
    other = codex_pool(*of_run, "--model", "m2", "--effort", "high", "--sandbox", "read-only", home=home)
    assert other.returncode == 2 and "another configuration (model: m1, now m2): 'plain'" in other.stderr
