"""Delays before something is tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from codex_app_server._runtime.backoff import backoff_s


def test_delays_double_up_to_the_longest() -> None:
    assert [backoff_s(n, 0.5, 3.0) for n in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@given(st.integers(-5, 10**9), st.floats(0.01, 10), st.floats(0.01, 600), st.floats(0, 1))
def test_jitter_takes_up_to_half_of_a_delay(n: int, first_s: float, longest_s: float, j: float) -> None:
    full_s = backoff_s(n, first_s, longest_s)
    assert full_s <= longest_s and full_s / 2 <= backoff_s(n, first_s, longest_s, j) <= full_s
    assert backoff_s(n + 1, first_s, longest_s) >= full_s
