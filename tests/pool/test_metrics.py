"""Counts of turns over workers and brokers, and their exposition as Prometheus reads it."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from broker_bench import Bench
from prometheus_client.parser import text_string_to_metric_families
from worker_bench import Bench as WorkerBench
from worker_bench import delta

from codex_pool.auth.usage import Rates, Used
from codex_pool.broker.counts import MAX_NAMES, Counts, Kept, kept_of
from codex_pool.broker.usage_ledger import UsageLedger
from codex_pool.gateway import exposition
from codex_pool.protocol import pool_report, tally, wire
from codex_pool.protocol.pool_report import PoolReport
from codex_pool.protocol.tally import DURATION_S, Tally
from codex_pool.supervisor.reasons import RECYCLE_REASONS, reason_of_recycling

NAMES = {
    "turns_running",
    "turns_waiting",
    "turns",
    "turn_queue_seconds",
    "turn_first_delta_seconds",
    "turn_duration_seconds",
    "tokens",
    "workers",
    "worker_restarts",
    "worker_recycles",
    "app_server_memory_bytes",
    "threads_loaded",
    "sessions",
    "events_dropped",
    "rate_limit_paused",
    "upgrade_failed",
    "refused",
    "build_info",
}


def parsed(report: PoolReport, refused_here: dict[str, int] | None = None) -> dict[tuple[str, ...], float]:
    """Values by the name of the series, without codex_pool_, and the values of its labels."""
    text = exposition.text_of(report, refused_here or {}).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type != "unknown"
        for sample in family.samples:
            key = (sample.name.removeprefix("codex_pool_"), *(str(value) for value in sample.labels.values()))
            assert key not in found
            found[key] = sample.value
    return found


def end(status: str = "completed", principal: str = "", *, tokens: int = 0, **counts: Any) -> wire.TurnEnded:
    used = wire.Tokens(tokens, 0, 1, 0) if tokens else None
    return wire.TurnEnded("t", "u", status, [], used, wire.TurnCounts(principal, **counts))


# Exposition.


def test_an_idle_pool_has_every_metric() -> None:
    text = exposition.text_of(PoolReport(tally=Tally()), {}).decode()
    assert {family.name.removeprefix("codex_pool_") for family in text_string_to_metric_families(text)} == NAMES
    values = parsed(PoolReport(tally=Tally()))
    assert values["turns_total", "completed"] == values["turns_total", "lost"] == 0
    assert values["turn_duration_seconds_count",] == values["turn_duration_seconds_bucket", "+Inf"] == 0


def test_every_value_is_exposed() -> None:
    counted = Tally()
    counted.count(
        "completed", wire.TurnCounts(took_ms=1500, queued_ms=40, first_delta_ms=200), wire.Tokens(9, 4, 3, 2), 1
    )
    counted.count("sideways", wire.TurnCounts(took_ms=10**8), None, 2)
    counted.tokens = {"alice": counted.tokens[""]}
    counted.dropped = 7
    values = parsed(
        PoolReport(
            tally=counted,
            turns_running=3,
            turns_waiting=2,
            workers={"ready": 2},
            memory_bytes={0: 1000, 11: 5},
            threads={0: 4},
            restarts={"exited": 1},
            recycles={"age": 2},
            sessions=5,
            rate_limit_paused=True,
            refused={"turns": 1},
            codex=["0.163.0"],
        ),
        {"a web page (Origin)": 2, "no connection can be accepted: [Errno 24]": 1},
    )
    expected = {
        ("turns_running",): 3,
        ("turns_waiting",): 2,
        ("turns_total", "completed"): 1,
        ("turns_total", "other"): 1,
        ("tokens_total", "alice", "input"): 9,
        ("tokens_total", "alice", "cached_input"): 4,
        ("tokens_total", "alice", "output"): 3,
        ("tokens_total", "alice", "reasoning"): 2,
        ("turn_queue_seconds_bucket", "0.025"): 0,
        ("turn_queue_seconds_bucket", "0.1"): 1,
        ("turn_queue_seconds_sum",): 0.04,
        ("turn_first_delta_seconds_count",): 1,
        ("turn_duration_seconds_bucket", "1.0"): 0,
        ("turn_duration_seconds_bucket", "2.5"): 1,
        ("turn_duration_seconds_bucket", "7200.0"): 1,
        ("turn_duration_seconds_bucket", "+Inf"): 2,
        ("turn_duration_seconds_sum",): 100_001.5,
        ("workers", "ready"): 2,
        ("app_server_memory_bytes", "11"): 5,
        ("threads_loaded", "0"): 4,
        ("worker_restarts_total", "exited"): 1,
        ("worker_recycles_total", "age"): 2,
        ("sessions",): 5,
        ("events_dropped_total",): 7,
        ("rate_limit_paused",): 1,
        ("refused_total", "turns"): 1,
        ("refused_total", "gateway_a_web_page"): 2,
        ("refused_total", "gateway_no_connection_can_be_accepted"): 1,
    }
    assert expected.items() <= values.items()
    assert [key[1] for key in values if key[0] == "build_info"] == ["0.163.0"]


def test_labels_are_bounded() -> None:
    many = {f"reason {number}": 1 for number in range(1000)}
    values = parsed(PoolReport(tally=Tally(), refused=many), {f"why {number}": 1 for number in range(1000)})
    refused = {key[1]: value for key, value in values.items() if key[0] == "refused_total"}
    assert len(refused) <= exposition.MAX_REASONS + 2 and sum(refused.values()) == 2000
    assert exposition.reason_label("(((") == "other" and len(exposition.reason_label("x" * 999)) == 64
    counted = Tally()
    for number in range(1000):
        counted.count("completed", wire.TurnCounts(f"p{number}"), wire.Tokens(1), 0)
    assert len(counted.tokens) == tally.MAX_PRINCIPALS + 1 and counted.tokens["other"].input == 1000 - 256


def test_names_of_people_cannot_break_the_format() -> None:
    counted = Tally(tokens={'a"} 1\nx{y="': wire.Tokens(3), "b\\": wire.Tokens(4)})
    values = parsed(PoolReport(tally=counted))
    assert values["tokens_total", 'a"} 1\nx{y="', "input"] == 3 and values["tokens_total", "b\\", "input"] == 4


def test_reports_pass_the_link_unchanged() -> None:
    report = PoolReport(not_ready="no", tally=Tally(ended={"lost": 2}), memory_bytes={3: 4}, codex=["1"])
    assert pool_report.decode(pool_report.encode(report)) == report
    with pytest.raises(wire.WireError, match="tally"):
        tally.decode(b"\xc1")


# Counts over workers and brokers.


def test_nothing_is_counted_twice_or_lost_whatever_dies() -> None:
    """Turns end on workers; the broker may have got the end, or not, when it dies; workers go one by one."""
    chance = random.Random(7)
    workers: dict[str, Tally] = {"w0": Tally(), "w1": Tally()}
    kept: Any = {}
    counts, ended, exposed = Counts(kept_of(kept)), 0, 0
    for name, counted in workers.items():
        counts.registered(name, tally.decode(tally.encode(counted)))
    for step in range(3000):
        event = chance.random()
        name = chance.choice(list(workers))
        if event < 0.9:
            one = end(took_ms=chance.randrange(10_000), tokens=5)
            assert one.counts is not None
            workers[name].count(one.status, one.counts, one.tokens, step)
            ended += 1
            # On its way when the broker dies.
            if event < 0.02:
                event = 0.99
            else:
                counts.ended(name, one, step)
        if 0.9 <= event < 0.95:
            counts.lost(name)
            del workers[name]
            workers[f"n{step}"] = Tally()
            counts.registered(f"n{step}", Tally())
        if event >= 0.97:
            counts = Counts(kept_of(kept), workers)
            for each in sorted(workers, key=lambda _: chance.random()):
                assert not counts.is_complete and counts.take_news() is None
                counts.registered(each, tally.decode(tally.encode(workers[each])))
        news = counts.take_news()
        if news is not None:
            kept = msgspec.json.decode(msgspec.json.encode(news["kept"]))
        total = counts.total()
        assert counts.is_complete and total.ended.get("completed", 0) == ended >= exposed
        exposed = ended
    assert sum(total.took.counts) == ended and total.took.sum_ms > 0
    assert total.tokens["other"].input == 5 * ended


def test_a_worker_that_dies_between_two_brokers_resets_all_counts_to_zero() -> None:
    """A part of them would be taken for a reset, and the rest be counted twice."""
    left, dead, late = (Tally(ended={"completed": count}) for count in (10, 20, 30))
    counts = Counts(Kept(Tally(ended={"completed": 5})), ["left", "dead", "late"])
    counts.registered("left", left)
    counts.lost("dead")
    counts.registered("late", late)
    assert counts.is_complete and counts.total().ended == {"completed": 0}
    counts.ended("left", end(took_ms=100), 1)
    news = counts.take_news()
    assert news is not None and news["lost"] == ["dead"]
    # The next broker goes on from there, and no second reset follows.
    again = Counts(kept_of(news["kept"]), ["left", "late"])
    again.registered("left", left)
    again.registered("late", late)
    again.registered("new", Tally(ended={"failed": 1}))
    assert again.total().ended == {"completed": 1, "failed": 1} and again.take_news() is None
    # What the supervisor cannot tell: nothing that was counted before is exposed.
    unknown = Counts(None, ["left"])
    unknown.registered("left", left)
    assert unknown.total().ended == {"completed": 0} and unknown.take_news() is not None
    assert dead.ended == {"completed": 20}


def test_a_worker_that_ends_in_order_between_two_brokers_leaves_its_counts() -> None:
    bench = Bench(counted={"tally": msgspec.to_builtins(Tally(ended={"completed": 5}))}, expect=["w0", "ended"])
    bench.register("w0", 0)
    left = Tally()
    for _ in range(3):
        left.count("completed", wire.TurnCounts("", 100), wire.Tokens(4, 0, 1), 1.0)
    as_reported = msgspec.json.decode(msgspec.json.encode(left))
    bench.apply(bench.core.worker_lost("ended", "it has ended", bench.now, tally.converted(as_reported)))
    counts = bench.core.state.counts
    assert counts.is_complete and counts.total().ended == {"completed": 8}
    # Of one that has registered, the broker knows which of its turns were lost.
    bench.apply(bench.core.worker_lost("w0", "it has ended", bench.now, tally.converted(as_reported)))
    assert counts.total().ended == {"completed": 8}
    # A last report of another version is none.
    assert tally.converted({"completed": 3}) is None and tally.converted(None) is None


def test_turns_that_a_killed_broker_has_not_written_are_counted_from_their_workers() -> None:
    counted = Tally()
    counted.count("completed", wire.TurnCounts("alice", 100), wire.Tokens(4, 0, 1), 1.0)
    counted.count("failed", wire.TurnCounts("alice", 100), None, 2.0)
    ledger = UsageLedger(Rates(None))
    ledger.registered("w", tally.decode(tally.encode(counted)).tokens, 3.0)
    ledger.registered("w", counted.tokens, 4.0)
    counted.count("completed", wire.TurnCounts("alice", 100), wire.Tokens(4, 0, 1), 5.0)
    stored = UsageLedger(Rates(None), is_stored=True)
    stored.registered("w", counted.tokens, 6.0)
    stored.opened({}, {}, {"w": {"alice": wire.TurnTokens(4, 0, 1, 0, 2)}}, 7.0)
    (sums,) = stored.take_changed().rows.values()
    assert (sums.turns, sums.tokens) == (1, wire.Tokens(4, 0, 1))
    assert ledger.used("alice", Used(), 8.0)[1] == Used(5)
    # A worker of an earlier version counts tokens only.
    before = msgspec.msgpack.encode(msgspec.structs.replace(counted, tokens={"alice": wire.Tokens(8, 0, 2)}))
    assert tally.decode(before).tokens == {"alice": wire.TurnTokens(8, 0, 2, 0, 0)}


def test_principals_keep_their_names() -> None:
    counts = Counts(Kept())
    counts.registered("w", Tally(tokens={f"p{number}": wire.TurnTokens(1) for number in range(60)}))
    for principal in sorted(counts.principals()):
        counts.name(principal, f"name of {principal}")
    tokens = counts.total().tokens
    assert len(tokens) == MAX_NAMES + 1 and tokens["other"].input == 10 and tokens["name of p0"].input == 1
    news = counts.take_news()
    assert news is not None
    again = Counts(kept_of(news["kept"]))
    again.registered("w", Tally(tokens={"p0": wire.TurnTokens(2)}))
    assert again.total().tokens == {"name of p0": wire.TurnTokens(2)}


def test_left_out_notifications_never_go_back() -> None:
    counts = Counts(Kept())
    counts.registered("w", Tally())
    counts.dropped("w", 7)
    counts.registered("w", Tally(dropped=5))
    assert counts.total().dropped == 7


# The worker.


def test_a_worker_counts_a_turn_once_with_all_that_it_took() -> None:
    bench = WorkerBench().start()
    bench.thread()
    bench.turn("u1")
    bench.now += 0.3
    bench.say(delta("u1"))
    bench.now += 0.7
    bench.say(delta("u1"))
    usage = {"inputTokens": 6, "cachedInputTokens": 1, "outputTokens": 21, "reasoningOutputTokens": 2}
    params = {"threadId": "t1", "turnId": "u1", "tokenUsage": {"total": usage, "last": usage}}
    bench.say({"method": "thread/tokenUsage/updated", "params": params})
    bench.complete("u1")
    (ended,) = bench.routed(wire.TurnEnded)
    assert ended.tokens == wire.Tokens(6, 1, 21, 2)
    assert ended.counts == wire.TurnCounts("", 1000, 0, 300, login_refused=False)
    counted = tally.decode(bench.new_broker().tally)
    assert counted.ended == {"completed": 1} and counted.tokens == {"": wire.TurnTokens(6, 1, 21, 2, 1)}
    assert sum(counted.took.counts) == 1 and counted.took.counts[DURATION_S.index(1.0)] == 1


@pytest.mark.parametrize(
    ("info", "refused"),
    [
        ("unauthorized", True),
        ({"responseStreamDisconnected": {"httpStatusCode": 401}}, True),
        ({"responseStreamDisconnected": {"httpStatusCode": 500}}, None),
        ("serverOverloaded", None),
        (None, None),
    ],
)
def test_a_refused_log_in_is_told_from_other_failures(info: Any, refused: bool | None) -> None:
    bench = WorkerBench().start()
    bench.thread()
    bench.turn("u1")
    turn = {"id": "u1", "status": "failed", "items": [], "error": {"message": "no", "codexErrorInfo": info}}
    bench.say({"method": "turn/completed", "params": {"threadId": "t1", "turn": turn}})
    (ended,) = bench.routed(wire.TurnEnded)
    assert ended.counts is not None and ended.counts.login_refused is refused


# The broker.


def test_readiness_follows_workers_and_the_last_answer_of_the_provider() -> None:
    bench = Bench(slots=2)
    assert bench.core.report(bench.now)[0].not_ready == "no worker is ready"
    worker = bench.register("w0", 0)
    bench.hello()
    bench.thread("t1")
    assert bench.core.report(bench.now)[0].not_ready == ""
    for refused, why in ((True, "the provider has refused the log-in"), (None, "the provider"), (False, "")):
        bench.now += 1
        counts = wire.TurnCounts("", 1, 0, None, refused)
        bench.from_worker(worker, wire.TurnEnded("t1", "u1", "failed" if refused else "completed", [], None, counts))
        report, _ = bench.core.report(bench.now)
        assert report.not_ready.startswith(why) and bool(report.not_ready) == bool(why)
    assert report.tally is not None and report.tally.ended == {"failed": 1, "completed": 2}
    assert report.workers["ready"] == 1 and report.workers["starting"] == 1
    bench.apply(bench.core.drain("w0", bench.now))
    report, _ = bench.core.report(bench.now)
    assert report.not_ready == "no worker is ready" and report.workers["draining"] == 1
    bench.core.worker_lost("w0", "killed", bench.now)
    assert bench.core.report(bench.now)[0].memory_bytes == bench.core.report(bench.now)[0].threads == {}


# The supervisor.


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("12 turns, the limit is 10", "turns"),
        ("12 threads, the limit is 10", "threads"),
        ("12 bytes of memory, the limit is 10", "memory"),
        ("33 descendants, the limit is 32", "descendants"),
        ("it has run for 60 s, the limit", "age"),
        ("its app-server was started before the account was changed", "state"),
        ("scaled down to 2", "operator"),
    ],
)
def test_recycles_have_few_reasons(why: str, reason: str) -> None:
    assert reason_of_recycling(why) == reason and reason in RECYCLE_REASONS


def test_spans_are_counted_by_what_became_of_them_in_a_pool_with_traces() -> None:
    values = parsed(PoolReport(tally=Tally(), spans={"exported": 3, "lost": 1}))
    assert (values["spans_total", "exported"], values["spans_total", "lost"]) == (3, 1)
    assert not any(key[0] == "spans_total" for key in parsed(PoolReport(tally=Tally())))
