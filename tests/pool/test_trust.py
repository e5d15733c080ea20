"""Every level of a path is named, whatever the path looks like."""

from __future__ import annotations

from pathlib import PurePosixPath

from hypothesis import example, given
from hypothesis import strategies as st

from codex_pool import trust


@given(st.lists(st.sampled_from(["a", "ab", "..", ".", "", " ", "ä"]), max_size=6).map("/".join), st.integers(0, 3))
@example("", 1)
@example("", 0)
@example("a", 2)
def test_a_directory_and_all_its_parents_are_named(path: str, slashes: int) -> None:
    directory = "/" * slashes + path
    pure = PurePosixPath(directory)
    assert list(trust.untrusting(directory)["projects"]) == [str(pure), *map(str, pure.parents)]
