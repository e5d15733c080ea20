"""Usage: costs of tokens, the store of a home, and how `codex-pool usage` groups and shows it."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_pool.auth.usage import Rates, UsageKey, UsageSums
from codex_pool.auth.usage_store import Change, UsageError, UsageStore, path_in, reset
from codex_pool.prices import parse_prices
from codex_pool.protocol.wire import Tokens, TurnTokens
from codex_pool_cli import usage as command

PRICES = parse_prices(
    """
    [models.m]
    input = 1.0
    cached_input = 0.1
    output = 10.0
    [[models.m.above]]
    input_tokens = 1000
    input = 2.0
    output = 20.0
    [models.m.service_tiers.priority]
    input = 3.0
    output = 15.0
    [models.other]
    input = 50.0
    output = 50.0
    """,
    "prices",
)
TOKENS = st.builds(Tokens, st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 5000))


@given(TOKENS, st.sampled_from(["m", "other", "nameless", ""]))
def test_a_cost_that_is_known_is_at_most_what_counts_against_a_limit(tokens: Tokens, model: str) -> None:
    sums = Rates(PRICES).sums(1, tokens, model)
    assert sums.cost <= sums.most + 1e-12
    assert bool(sums.unpriced) == (model not in ("m", "other") or (model == "m" and tokens.input > 1000))


def test_what_cannot_be_priced_is_unknown_and_counts_as_the_most_expensive() -> None:
    rates, tokens = Rates(PRICES), Tokens(1_000_000, 0, 1_000_000)
    assert rates.most(tokens, "m") == pytest.approx(3.0 + 20.0)
    assert rates.most(tokens, "nameless") == pytest.approx(100.0)
    # One that is not known is one of those that the principal has used, if any is known.
    assert rates.most(tokens, "", ["m", ""]) == pytest.approx(23.0) and rates.most(tokens, "") == pytest.approx(100.0)
    assert Rates(None).sums(1, tokens, "m") == UsageSums(1, tokens, 0.0, 0.0, 1)


def row(day: int, principal: str, tokens: int, model: str = "m") -> dict[UsageKey, UsageSums]:
    return {UsageKey(day, principal, model, "USD"): UsageSums(1, Tokens(tokens, 0, 1), 0.5, 1.0)}


def test_rows_add_up_over_writers_and_come_back(tmp_path: Path) -> None:
    home, keys = tmp_path / "home", tmp_path / "keys"
    one, two = UsageStore(home, keys), UsageStore(home, keys)
    one.add(Change(row(1, "alice", 10), {"alice": "Alice"}, {"w0": {"alice": TurnTokens(10)}}, []))
    two.add(Change(row(1, "alice", 5) | row(2, "bob", 7), {}, {"w1": {}}, ["w1"]))
    one.close()
    two.close()
    store = UsageStore(home, keys)
    alice = UsageSums(2, Tokens(15, 0, 2), 1.0, 2.0)
    assert store.rows() == {UsageKey(1, "alice", "m", "USD"): alice} | row(2, "bob", 7)
    assert store.rows(2) == row(2, "bob", 7) and store.rows(0, "bob") == row(2, "bob", 7)
    assert store.totals()[UsageKey(0, "alice", "m", "USD")] == alice
    assert store.names() == {"alice": "Alice"} and store.workers() == {"w0": {"alice": TurnTokens(10)}}
    assert path_in(home).stat().st_mode & 0o777 == 0o600
    store.close()


@pytest.mark.parametrize("how", ["deleted", "damaged", "exchanged"])
def test_a_store_that_is_lost_is_not_replaced_by_itself(tmp_path: Path, how: str) -> None:
    home, keys = tmp_path / "home", tmp_path / "keys"
    store = UsageStore(home, keys)
    store.add(Change(row(1, "alice", 10), {}, {}, []))
    store.verify()
    if how == "exchanged":
        UsageStore(tmp_path / "other", None).close()
        path_in(tmp_path / "other").rename(path_in(home))
    elif how == "deleted":
        path_in(home).unlink()
    else:
        store.close()
        path_in(home).write_bytes(b"not a database" * 1000)
    if how != "damaged":
        with pytest.raises(UsageError):
            store.verify()
        store.close()
    for log in ("-wal", "-shm"):
        path_in(home).with_name(path_in(home).name + log).unlink(missing_ok=True)
    with pytest.raises(UsageError):
        UsageStore(home, keys)
    aside = reset(home, keys)
    assert (aside is not None) == (how == "damaged")
    again = UsageStore(home, keys)
    assert again.rows() == {}
    again.close()


# The command.


@pytest.mark.parametrize(
    ("text", "day"), [("7d", "2026-11-23"), ("2w", "2026-11-16"), ("12h", "2026-11-29"), ("2026-01-31", "2026-01-31")]
)
def test_since_is_the_beginning_of_a_day_of_utc(text: str, day: str) -> None:
    now = dt.datetime(2026, 11, 30, 3, 0, tzinfo=dt.timezone.utc)
    at = command.since_of(text, now)
    assert dt.datetime.fromtimestamp(at, dt.timezone.utc).isoformat() == f"{day}T00:00:00+00:00"


@pytest.mark.parametrize("text", ["", "7", "d", "yesterday", "999999w", "2026-13-01"])
def test_a_since_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match="such as 7d"):
        command.since_of(text, dt.datetime.now(dt.timezone.utc))


def shown(**fields: object) -> dict[str, object]:
    counts = dict.fromkeys(("turns", "inputTokens", "cachedInputTokens", "outputTokens", "reasoningOutputTokens"), 1)
    usual = {"day": 86400, "principal": "1", "principalName": "alice", "model": "m", "spend": 0.5, "unpriced": 0}
    return {**counts, **usual, "currency": "USD", **fields}


def test_spend_is_unknown_where_a_part_of_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        shown(),
        shown(model="n"),
        shown(principal="2", principalName="bob", unpriced=1),
        shown(principal="3", principalName="cy", currency=None),
        shown(principal="4", principalName="dee", currency="EUR"),
        shown(principal="4", principalName="dee"),
    ]
    groups = command.grouped(rows, "principal")
    assert [(each.name, each.counts["turns"], each.spend) for each in groups] == [
        ("alice", 2, 1.0),
        ("bob", 1, None),
        ("cy", 1, None),
        ("dee", 2, None),
    ]
    command._write_table("principal", groups)
    command._write_csv("principal", groups)
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["alice", "2", "2", "2", "2", "2", "1.00", "USD"] and out[2].endswith("unknown")
    assert out[6] == "alice,2,2,2,2,2,1.000000,USD" and out[7] == "bob,1,1,1,1,1,unknown,"
    assert [each.name for each in command.grouped(rows, "model")] == ["m", "n"]
    assert [each.name for each in command.grouped(rows, "day")] == ["1970-01-02"]
    assert json.dumps([command._json_row("day", each) for each in groups])
