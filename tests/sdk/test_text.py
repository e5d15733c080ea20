"""Texts for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_app_server._runtime.text import cut, duration, one_line, plural


@given(st.text(max_size=40), st.integers(3, 30))
def test_a_text_is_cut_only_if_it_is_too_long(text: str, characters: int) -> None:
    shown = cut(text, characters)
    assert shown == text or (len(shown) == characters and shown.endswith("...") and text.startswith(shown[:-3]))
    assert len(cut(text, characters, "…")) <= characters
    assert len(one_line(text, characters).splitlines()) <= 1


def test_counts() -> None:
    assert [plural(0, "turn"), plural(1, "turn"), plural(1200, "turn")] == ["0 turns", "1 turn", "1,200 turns"]
    assert [plural(n, "retry", "retries") for n in (1, 2)] == ["1 retry", "2 retries"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (65, "1 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7440, "2 h 04 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
