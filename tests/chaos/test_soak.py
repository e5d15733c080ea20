"""The schedule of a soak, and its sums."""

from __future__ import annotations

from collections import Counter

from .soak.checks import decreases, sums, usage_sums
from .soak.clients import Load
from .soak.measure import Sample, Samples
from .soak.plan import FROM, KILLED, TO, Binaries, plan

TOKENS = {"input": 6, "output": 21}


def test_a_plan_has_all_operations_in_order_and_leaves_the_ends_quiet() -> None:
    binaries = Binaries("/first", "/other", "/broken")
    operations = plan(10_000, 1, binaries, recycles=20, kills=3, scales=(2, 6, 3))
    assert plan(10_000, 1, binaries, recycles=20, kills=3, scales=(2, 6, 3)) == operations
    assert plan(10_000, 2, binaries, recycles=20, kills=3, scales=(2, 6, 3)) != operations
    verbs = Counter(operation.verb for operation in operations)
    assert verbs["recycle",] == 20 and verbs["upgrade", "--self"] == 1
    assert verbs["upgrade", "--codex-bin", "/other"] == verbs["upgrade", "--codex-bin", "/broken"] == 1
    assert [each.verb[1] for each in operations if each.verb[:1] == ("scale",)] == ["2", "6", "3"]
    assert Counter(each.kill for each in operations if each.kill) == dict.fromkeys(KILLED, 3)
    assert sum(each.reload for each in operations) == 2
    at = [operation.at for operation in operations]
    assert at == sorted(at) and at[0] == 10_000 * FROM and at[-1] <= 10_000 * TO


def test_sums_are_exact_but_for_requests_that_were_not_answered() -> None:
    load = Load(completed=Counter(alice=9), unseen=Counter(alice=1), unanswered=Counter(alice=1))
    for turns in (9, 10, 11, 12):
        metrics = {("codex_pool_turns_total", "completed"): float(turns)}
        metrics |= {("codex_pool_tokens_total", "alice", kind): turns * each for kind, each in TOKENS.items()}
        rows = [{"principal": "alice", "turns": turns, "inputTokens": turns * 6, "outputTokens": turns * 21}]
        assert (not sums(load, metrics, TOKENS), not usage_sums(load, rows, TOKENS)) == (turns in (10, 11),) * 2
    assert sums(load, {**metrics, ("codex_pool_turns_total", "lost"): 1.0}, TOKENS)


def test_a_counter_that_goes_back_is_seen() -> None:
    before = {("codex_pool_turns_total", "completed"): 3.0, ("codex_pool_sessions",): 4.0}
    after = {("codex_pool_turns_total", "completed"): 2.0, ("codex_pool_sessions",): 1.0}
    assert decreases(before, before) == [] and len(decreases(before, after)) == len(decreases(before, {})) == 1


def test_what_grows_is_seen() -> None:
    small, large = Sample(1.0, 0, 20 << 20, 30), Sample(9.0, 0, 40 << 20, 40)
    samples = Samples({"broker": {1: [small, large]}, "worker": {2: [small], 3: [Sample(9.0, 0, 21 << 20, 31)]}})
    broker, worker = samples.rows(2.0, 8.0)
    assert [problem.partition(" of ")[0] for problem in broker.problems()] == ["memory", "descriptors"]
    assert worker.problems() == []
