"""Leases of samples: who has which, until when, and which result counts."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from codex_batch.hosts.leases import LEASE_S, Leases, Verdict

STEPS = ["lease", "gone", "join", "deliver", "late"]


def two_hosts() -> Leases:
    leases = Leases()
    leases.joined("a", 2, 0.0)
    leases.joined("b", 1, 0.0)
    return leases


def test_the_host_with_most_room_is_next_and_none_has_more_than_its_places() -> None:
    leases = two_hosts()
    given = []
    for n in range(4):
        host = leases.place(n)
        given.append(host)
        if host is not None:
            leases.lease(f"k{n}", n, host)
    assert given == ["a", "b", "a", None] and leases.places == 3
    assert leases.delivered("k1", is_complete=True) == (Verdict.WON, [])
    assert leases.place(4) == "b" and leases.place(4, but=["b"]) is None


def test_a_host_that_answers_nothing_loses_its_leases_in_time_and_one_that_answers_does_not() -> None:
    leases = two_hosts()
    leases.lease("k1", 1, "a")
    leases.lease("k2", 2, "b")
    leases.heard("a", LEASE_S - 1, {"k1": 1})
    assert leases.silent(LEASE_S - 0.1) == [] and leases.silent(LEASE_S) == ["b"]
    assert leases.gone("b") == ["k2"] and leases.is_live("k1") and not leases.is_live("k2")
    assert leases.gone("b") == [] and leases.places == 2


def test_a_host_that_comes_back_without_a_lease_has_lost_it() -> None:
    leases = two_hosts()
    leases.lease("k1", 1, "a")
    leases.lease("k2", 2, "a")
    assert leases.heard("a", 1.0, {"k2": 2}) == ["k1"]
    assert leases.held("a") == 1 and leases.place(1) is not None


def test_a_late_complete_result_wins_if_it_is_the_first_and_the_attempt_after_it_is_halted() -> None:
    leases = two_hosts()
    leases.lease("k1", 1, "b")
    assert leases.gone("b") == ["k1"]
    leases.lease("k2", 1, "a")
    assert leases.delivered("k1", is_complete=True) == (Verdict.WON, ["k2"])
    assert leases.delivered("k2", is_complete=True) == (Verdict.SUPERSEDED, [])


def test_a_late_result_that_is_not_complete_or_comes_after_the_record_does_not_count() -> None:
    leases = two_hosts()
    leases.lease("k1", 1, "b")
    leases.lease("k2", 2, "a")
    leases.gone("b")
    leases.gone("a")
    assert leases.delivered("k1", is_complete=False) == (Verdict.SUPERSEDED, [])
    leases.finished(2)
    assert leases.delivered("k2", is_complete=True) == (Verdict.SUPERSEDED, [])


def test_a_sample_is_not_leased_to_a_host_that_still_has_another_attempt_at_it() -> None:
    leases = Leases()
    leases.joined("a", 3, 0.0)
    leases.lease("k1", 1, "a")
    leases.gone("a")
    leases.joined("a", 3, 1.0)
    assert leases.place(1) is None and leases.place(2) == "a" and leases.held("a") == 1
    assert leases.delivered("k1", is_complete=False)[0] is Verdict.SUPERSEDED
    assert leases.place(1) == "a"


def test_leases_of_an_earlier_launch_are_taken_over_and_live_once_they_are_asked_for() -> None:
    leases = Leases()
    assert not leases.revive("k1")
    leases.joined("a", 1, 0.0)
    leases.heard("a", 0.0, {"k1": 1})
    assert leases.place(2) is None and not leases.is_live("k1")
    assert leases.revive("k1") and leases.is_live("k1")
    assert leases.delivered("k1", is_complete=False) == (Verdict.WON, [])
    assert leases.delivered("k1", is_complete=True)[0] is Verdict.UNKNOWN


def test_a_spool_that_another_host_takes_over_takes_its_leases_along() -> None:
    leases = two_hosts()
    leases.lease("k1", 1, "a")
    leases.heard("b", 1.0, {"k1": 1})
    assert leases.host_of("k1") == "b" and leases.held("a") == 0
    assert leases.gone("a") == [] and leases.gone("b") == ["k1"]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7)), max_size=60))
def test_at_most_one_result_of_a_sample_wins_without_a_new_attempt_in_between(steps: Sequence[tuple[str, int]]) -> None:
    leases, opened, won = Leases(), [], set[int]()
    for name in "ab":
        leases.joined(name, 2, 0.0)
    for number, (step, which) in enumerate(steps):
        host, n = "ab"[which % 2], which % 3
        if step == "lease" and n not in won and (place := leases.place(n)) is not None:
            live = [key for key, of in opened if of == n and leases.is_live(key)]
            if not live:
                opened.append((f"k{number}", n))
                leases.lease(f"k{number}", n, place)
        elif step == "gone":
            leases.gone(host)
        elif step == "join":
            leases.joined(host, 2, float(number))
        elif opened:
            key, of = opened.pop(which % len(opened))
            verdict, _ = leases.delivered(key, is_complete=step == "deliver")
            if verdict is Verdict.WON:
                assert of not in won
                won.add(of)
        assert all(leases.held(name) >= 0 for name in leases.hosts)
