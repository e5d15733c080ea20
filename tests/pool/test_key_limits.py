"""Limits of keys in the broker: turns that run and wait, tokens, spend, priority; and what the ledger counts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_policy_broker import KeyedBench, identity

from codex_app_server._protocol.rpc_errors import map_jsonrpc_error
from codex_app_server.errors import KEY_LIMIT, KeyLimitError
from codex_pool.auth.principal import Identity
from codex_pool.auth.usage import DAY_S, Rates, UsageKey, UsageSums, Used
from codex_pool.broker.effects import SaveUsage
from codex_pool.broker.usage_ledger import UsageLedger
from codex_pool.prices import Prices, parse_prices
from codex_pool.protocol import wire
from codex_pool.protocol.wire import Tokens, TurnTokens

NOON = DAY_S / 2
PRICES = parse_prices(
    "[models.m]\ninput = 1.0\ncached_input = 0.5\noutput = 10.0\n[models.dear]\ninput = 100.0\noutput = 100.0\n",
    "prices",
)


def bench_of(*identities: Identity, prices: Prices | None = None, is_stored: bool = False) -> KeyedBench:
    ledger = UsageLedger(Rates(prices), NOON, is_stored=is_stored)
    bench = KeyedBench(*identities, usage=ledger, unix_offset=NOON)
    bench.register()
    for each in identities:
        bench.hello(f"{each.name}-1")
    bench.hello("own")
    return bench


def start(bench: KeyedBench, thread: str, session: str) -> tuple[str, Any]:
    """Ask for a turn on a thread, which is made if need be, and have the worker begin what it was sent."""
    if thread not in bench.core.state.threads:
        bench.keyed_thread(thread, session)
        known = bench.core.state.threads[thread]
        known.record = msgspec.structs.replace(known.record, model="m")
    call = bench.call("turn/start", {"threadId": thread}, session=session)
    bench.answer_all(bench.workers["w0"])
    return call


def running(bench: KeyedBench, principal: str) -> int:
    return bench.core.state.turns.running_of(principal)


def end(bench: KeyedBench, thread: str, tokens: Tokens) -> None:
    """End the turn of a thread, with the tokens that it has used."""
    worker = bench.workers["w0"]
    (turn_id,) = bench.core.state.threads[thread].turns
    owner = bench.core.state.threads.owner_of(thread)
    worker.running.pop(turn_id)
    counts = wire.TurnCounts(owner, 100)
    bench.from_worker(worker, wire.TurnEnded(thread, turn_id, "completed", [], tokens, counts))
    bench.answer_all(worker)


def limit_of(bench: KeyedBench, call: tuple[str, Any]) -> KeyLimitError:
    error = bench.error(call)
    found = map_jsonrpc_error(error["code"], error["message"], error["data"])
    assert isinstance(found, KeyLimitError) and found.code == KEY_LIMIT
    return found


def test_a_turn_beyond_those_that_may_run_waits_and_begins_when_one_ends() -> None:
    bench = bench_of(identity("alice", max_running_turns=2), identity("bob"))
    for number in range(4):
        start(bench, f"a{number}", "alice-1")
    start(bench, "b0", "bob-1")
    assert (running(bench, "P-alice"), running(bench, "P-bob")) == (2, 1)
    end(bench, "a0", Tokens())
    assert running(bench, "P-alice") == 2 and bench.core.state.requests.held == 1


def test_a_turn_beyond_those_that_may_wait_is_refused_and_may_be_tried_again() -> None:
    bench = bench_of(identity("alice", max_running_turns=1, max_waiting_turns=1))
    start(bench, "a0", "alice-1")
    waits, refused = start(bench, "a1", "alice-1"), start(bench, "a2", "alice-1")
    assert waits not in bench.answers
    error = bench.error(refused)
    assert error["code"] == -32001 and error["data"]["what"] == "waiting_turns" and error["data"]["limit"] == 1
    assert "--max-waiting-turns" in error["message"] and bench.core.state.refused["waiting_turns"] == 1
    end(bench, "a0", Tokens())
    start(bench, "a2", "alice-1")
    assert bench.core.state.requests.held == 1


def test_other_limits_let_turns_begin_that_wait() -> None:
    bench = bench_of(identity("alice", max_running_turns=1))
    for number in range(3):
        start(bench, f"a{number}", "alice-1")
    assert running(bench, "P-alice") == 1 and bench.core.state.policy is not None
    bench.core.state.policy.replace([identity("alice", max_running_turns=3)])
    bench.apply(bench.core.keys_changed(bench.now))
    assert running(bench, "P-alice") == 3


def test_tokens_of_a_day_are_free_again_on_the_next_and_those_in_all_are_not() -> None:
    bench = bench_of(identity("alice", max_tokens_per_day=100, max_tokens=200))
    start(bench, "a", "alice-1")
    end(bench, "a", Tokens(80, 70, 20, 5))
    day = limit_of(bench, start(bench, "a", "alice-1"))
    assert (day.what, day.limit, day.used, day.free_at) == ("tokens_per_day", 100, 100, DAY_S)
    assert "1970-01-02 00:00 UTC" in str(day) and "--max-tokens-per-day" in str(day)
    bench.tick(DAY_S / 2)
    bench.hello("alice-1")
    start(bench, "a", "alice-1")
    end(bench, "a", Tokens(100))
    in_all = limit_of(bench, start(bench, "a", "alice-1"))
    assert (in_all.what, in_all.used, in_all.free_at) == ("tokens", 200, None)
    assert bench.core.state.refused["tokens_per_day"] == bench.core.state.refused["tokens"] == 1


@pytest.mark.parametrize("method", ["turn/steer", "thread/compact/start", "thread/goal/set"])
def test_what_would_use_more_tokens_is_refused_and_what_reads_is_not(method: str) -> None:
    bench = bench_of(identity("alice", max_tokens=0))
    bench.keyed_thread("a", "alice-1")
    assert limit_of(bench, bench.call(method, {"threadId": "a"}, session="alice-1")).what == "tokens"
    assert not bench.workers["w0"].open
    bench.call("thread/read", {"threadId": "a"}, session="alice-1")
    assert len(bench.workers["w0"].open) == 1


def test_a_turn_that_waits_is_refused_when_those_before_it_have_used_the_rest() -> None:
    bench = bench_of(identity("alice", max_running_turns=1, max_tokens=100))
    start(bench, "a0", "alice-1")
    waits = start(bench, "a1", "alice-1")
    assert waits not in bench.answers
    end(bench, "a0", Tokens(100))
    assert limit_of(bench, waits).used == 100 and running(bench, "P-alice") == 0


def test_tokens_of_turns_that_run_count_and_their_turns_are_not_cut() -> None:
    bench = bench_of(identity("alice", max_tokens=100))
    start(bench, "a0", "alice-1")
    (turn_id,) = bench.core.state.threads["a0"].turns
    activity = wire.Activity([wire.TurnActivity(turn_id, bench.now, Tokens(60, 0, 50))])
    bench.from_worker(bench.workers["w0"], activity)
    assert limit_of(bench, start(bench, "a1", "alice-1")).used == 110 and running(bench, "P-alice") == 1
    end(bench, "a0", Tokens(70, 0, 50))
    # Nothing is counted twice.
    assert limit_of(bench, start(bench, "a1", "alice-1")).used == 120


def test_tokens_of_sub_agents_count() -> None:
    bench = bench_of(identity("alice", max_tokens=100))
    start(bench, "a0", "alice-1")
    worker = bench.workers["w0"]
    bench.from_worker(worker, wire.Children("a0", ["child"]))
    bench.from_worker(worker, wire.TurnStarted("child", "turn-of-child", [], by_itself=True))
    activity = wire.Activity([wire.TurnActivity("turn-of-child", bench.now, Tokens(100))])
    bench.from_worker(worker, activity)
    assert limit_of(bench, start(bench, "a1", "alice-1")).used == 100


def test_a_turn_that_begins_by_itself_beyond_a_limit_is_interrupted() -> None:
    bench = bench_of(identity("alice", max_tokens=0), identity("bob"))
    sent = []
    for name in ("alice", "bob"):
        bench.keyed_thread(name, f"{name}-1")
        effects = bench.from_worker(bench.workers["w0"], wire.TurnStarted(name, f"turn-{name}", [], by_itself=True))
        sent += [wire.decode_to_worker(each.frames[0]) for each in effects if hasattr(each, "frames")]
    assert [each for each in sent if isinstance(each, wire.Interrupt)] == [wire.Interrupt("alice", "turn-alice")]


def test_spend_counts_at_the_highest_price_that_it_can_have_had() -> None:
    bench = bench_of(identity("alice", max_spend_per_day=1.0), prices=PRICES)
    start(bench, "a", "alice-1")
    end(bench, "a", Tokens(1_000_000, 1_000_000, 50_000))
    spent = limit_of(bench, start(bench, "a", "alice-1"))
    assert spent.what == "spend_per_day" and spent.used == pytest.approx(1.0)
    assert spent.data["currency"] == "USD" and "1.0000 USD" in str(spent)


def test_a_limit_of_spend_without_a_price_is_a_refusal() -> None:
    bare = bench_of(identity("alice", max_spend=1.0))
    assert limit_of(bare, start(bare, "a", "alice-1")).what == "prices"
    bench = bench_of(identity("alice", max_spend=1.0), prices=PRICES)
    call = bench.call("thread/start", {"model": "nameless"}, session="alice-1")
    assert limit_of(bench, call).what == "prices" and "'nameless'" in bench.error(call)["message"]
    start(bench, "a", "alice-1")
    assert running(bench, "P-alice") == 1


def test_a_store_that_is_lost_refuses_keys_with_such_limits_and_no_others() -> None:
    bench = bench_of(identity("alice", max_tokens=100), identity("bob"), is_stored=True)
    bench.core.usage_closed("the file was deleted")
    refused = limit_of(bench, start(bench, "a", "alice-1"))
    assert refused.what == "usage" and "reset-usage" in str(refused) and "deleted" in str(refused)
    start(bench, "b", "bob-1")
    assert running(bench, "P-bob") == 1
    end(bench, "b", Tokens(7))
    # What was counted meanwhile is in the tally of the worker.
    effects = bench.core.usage_opened({}, {}, {}, bench.now)
    (change,) = [each.change for each in effects if isinstance(each, SaveUsage)]
    assert {key.principal: sums.tokens for key, sums in change.rows.items()} == {"P-bob": Tokens(7)}
    assert running(bench, "P-alice") == 0
    start(bench, "a", "alice-1")
    assert running(bench, "P-alice") == 1


def test_admins_have_limits_too_and_the_owner_has_none() -> None:
    bench = bench_of(identity("root", admin=True, max_tokens=0))
    assert limit_of(bench, start(bench, "r", "root-1")).what == "tokens"
    start(bench, "o", "own")
    assert running(bench, "") == 1


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(0, 2),
    st.lists(st.tuples(st.sampled_from(["start", "end"]), st.sampled_from(["alice", "bob"]), st.integers(0, 5))),
)
def test_turns_that_run_and_wait_stay_within_their_limits_and_none_is_forgotten(
    may_run: int, may_wait: int, script: list[tuple[str, str, int]]
) -> None:
    bench = bench_of(identity("alice", max_running_turns=may_run, max_waiting_turns=may_wait), identity("bob"))
    calls: list[tuple[str, Any]] = []
    for what, name, number in script:
        thread = f"{name}{number}"
        if what == "start":
            calls.append(start(bench, thread, f"{name}-1"))
        elif thread in bench.core.state.threads and bench.core.state.threads[thread].turns:
            end(bench, thread, Tokens(1))
        waiting = sum(each.starts_turn for each in bench.core.state.requests.held_of("P-alice"))
        assert running(bench, "P-alice") <= may_run and waiting <= may_wait
    assert bench.core.state.faults() == []
    for name, number in [(name, number) for name in ("alice", "bob") for number in range(6)] * 8:
        thread = bench.core.state.threads.get(f"{name}{number}")
        if thread is not None and thread.turns:
            end(bench, f"{name}{number}", Tokens(1))
    # Each was answered, by its turn or by a refusal.
    assert all(call in bench.answers for call in calls) and bench.core.state.requests.held == 0


# The ledger.

events = st.lists(
    st.tuples(
        st.sampled_from(["end", "kill the broker", "save"]),
        st.sampled_from(["w0", "w1"]),
        st.sampled_from(["alice", "bob"]),
        st.integers(0, 50),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(events)
def test_a_broker_that_is_killed_at_any_moment_counts_all_once(script: list[tuple[str, str, str, int]]) -> None:
    """The store gets what was written; what was not, the next broker finds in the tallies of the workers."""
    stored: dict[UsageKey, UsageSums] = {}
    counted: dict[str, dict[str, TurnTokens]] = {}
    tallies: dict[str, dict[str, TurnTokens]] = {"w0": {}, "w1": {}}
    sent: Counter[str] = Counter()
    turns: Counter[str] = Counter()

    def save(ledger: UsageLedger) -> None:
        assert ledger.has_news or not ledger.unsaved_principals
        change = ledger.take_changed()
        for key, sums in change.rows.items():
            stored[key] = stored.get(key, UsageSums()) + sums
        counted.update(change.workers)

    def begin() -> UsageLedger:
        ledger = UsageLedger(Rates(None), is_stored=True)
        ledger.opened({key._replace(day=0): sums for key, sums in stored.items()}, stored, counted, 0.0)
        for worker, tally in tallies.items():
            ledger.registered(worker, tally, 0.0)
        return ledger

    ledger = begin()
    for what, worker, who, tokens in script:
        if what == "end":
            tally = tallies[worker]
            tally[who] = tally.get(who, TurnTokens()) + TurnTokens(tokens, turns=1)
            sent[who] += tokens
            turns[who] += 1
            ledger.ended(worker, who, "m", Tokens(tokens), tally, 0.0)
        elif what == "save":
            save(ledger)
        else:
            ledger = begin()
        for name in ("alice", "bob"):
            assert ledger.used(name, Used(), 0.0)[1].tokens == sent[name]
    save(ledger)
    total: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    for key, sums in stored.items():
        total[key.principal] += sums.tokens.input
        ended[key.principal] += sums.turns
    assert +total == +sent and ended == turns
