"""json_bounds: what it counts is what is in the text, whatever the strings contain."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from codex_pool.protocol import json_bounds

TEXT = st.text(st.sampled_from('[]{},"\\\n ab/\u2028é'), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def counted(value: Any) -> tuple[int, int]:
    """Brackets and commas, and strings."""
    if isinstance(value, str):
        return 0, 1
    if not isinstance(value, dict | list):
        return 0, 0
    inner = [counted(each) for each in (value.values() if isinstance(value, dict) else value)]
    strings = sum(each[1] for each in inner) + (len(value) if isinstance(value, dict) else 0)
    return sum(each[0] for each in inner) + 2 + max(0, len(value) - 1), strings


def depth(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max((depth(each) for each in (value.values() if isinstance(value, dict) else value)), default=0)


@given(VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_it_counts_what_is_outside_of_strings(value: Any, ascii_only: bool, indent: int | None) -> None:
    line = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    brackets, strings = counted(value)
    for limit in range(brackets + strings + 2):
        # A text shorter than the limit cannot have more.
        expected = len(line) > limit and (brackets > limit or strings > limit)
        assert json_bounds.has_more_values(line, limit) == expected, (line, limit)
    levels = depth(value)
    assert not json_bounds.is_deeper(line, levels)
    assert levels == 0 or json_bounds.is_deeper(line, levels - 1) or levels - 1 >= line.count(b"[") + line.count(b"{")


def test_long_text_is_one_value() -> None:
    line = json.dumps({"text": 'def f(a, b): return {"x": [1, 2, "\\"]}\n' * 10_000}).encode()
    assert not json_bounds.has_more_values(line, 2) and not json_bounds.is_deeper(line, 1)
