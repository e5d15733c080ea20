"""Binaries of a run: which there are, what they are called, and how the workers are shared out."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from codex_batch.configuration.variants import Variant
from codex_batch.run.binaries import Binary, binaries_of, distinct_names, shares
from codex_batch.run.run_pools import joined_slots

DEFAULT = "/venv/codex_cli_bin/bin/codex"


def variant(name: str, codex_bin: str | None = None) -> Variant:
    return Variant(name=name, codex_bin=codex_bin)


def test_without_other_binaries_there_is_one() -> None:
    assert binaries_of((), DEFAULT, 4) == (Binary(path=None, variants=(), workers=4),)
    one = Binary(path=None, variants=("a", "b"), workers=4)
    assert binaries_of([variant("a"), variant("b")], DEFAULT, 4) == (one,)
    # The same file by its own name.
    assert binaries_of([variant("a"), variant("b", DEFAULT)], DEFAULT, 4) == (one,)


def test_a_binary_of_all_variants_is_the_only_one() -> None:
    only = Binary(path="/old/codex", variants=("a", "b"), workers=3)
    assert binaries_of([variant("a", "/old/codex"), variant("b", "/old/codex")], DEFAULT, 3) == (only,)


def test_each_distinct_binary_has_its_variants_and_its_share() -> None:
    found = binaries_of(
        [variant("old", "/opt/old/codex"), variant("a"), variant("b"), variant("older", "/opt/older/codex")], DEFAULT, 8
    )
    assert found == (
        Binary(path=None, variants=("a", "b"), workers=4, name="bin/codex"),
        Binary(path="/opt/old/codex", variants=("old",), workers=2, name="old/codex"),
        Binary(path="/opt/older/codex", variants=("older",), workers=2, name="older/codex"),
    )


def test_names_are_as_long_as_they_must_be() -> None:
    assert distinct_names(["/a/codex-1", "/a/codex-2"]) == ["codex-1", "codex-2"]
    assert distinct_names(["/old/bin/codex", "/new/bin/codex"]) == ["old/bin/codex", "new/bin/codex"]
    assert distinct_names(["/codex", "/a/codex"]) == ["//codex", "a/codex"]
    assert distinct_names(["/bin/codex"]) == ["codex"]


@given(st.integers(1, 64), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_workers_are_shared_out_fairly(total: int, weights: list[int]) -> None:
    found = shares(total, weights)
    assert len(found) == len(weights) and min(found) >= 1
    assert sum(found) == max(total, len(weights))
    for one, part in enumerate(found):
        for other, less in enumerate(found):
            # Nobody has two more than fair, beside one who has less than fair.
            assert part <= 1 or (part - 1) / weights[one] <= less / weights[other]


def test_slots_of_several_binaries_are_counted_through_and_named() -> None:
    one: list[dict[str, Any]] = [{"slot": 0, "state": "ready"}, {"slot": 1, "state": "starting"}]
    assert joined_slots({"": one}) is one
    assert joined_slots({"a": one, "b": one[:1], "c": []}) == [
        {"slot": 0, "state": "ready", "binary": "a"},
        {"slot": 1, "state": "starting", "binary": "a"},
        {"slot": 2, "state": "ready", "binary": "b"},
    ]
