"""Directories of samples without a workspace: what is left empty is the next one's, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from codex_batch.workspace import EmptyDirectories


def test_what_is_left_empty_is_the_next_ones(tmp_path: Path) -> None:
    empty = EmptyDirectories()
    first, second, third = (str(tmp_path / name) for name in "abc")
    empty.make(first)
    known = Path(first).stat().st_ino
    empty.leave(first)
    empty.make(second)
    assert Path(second).stat().st_ino == known and [path.name for path in tmp_path.iterdir()] == ["b"]
    empty.make(third)
    assert Path(third).stat().st_ino != known and Path(second).is_dir()


def test_what_something_lies_in_stays(tmp_path: Path) -> None:
    empty = EmptyDirectories()
    first, second = tmp_path / "a", tmp_path / "b"
    empty.make(str(first))
    (first / "found.txt").write_text("found")
    empty.leave(str(first))
    empty.make(str(second))
    assert (first / "found.txt").read_text() == "found" and list(second.iterdir()) == []


def test_a_directory_that_is_there_is_taken_as_it_is(tmp_path: Path) -> None:
    empty = EmptyDirectories()
    left, there, bare, later = (tmp_path / name for name in ("left", "there", "bare", "later"))
    for path in (there, bare):
        path.mkdir()
    (there / "found.txt").write_text("found")
    empty.make(str(left))
    empty.leave(str(left))
    empty.make(str(there))
    assert (there / "found.txt").exists() and left.exists()
    empty.make(str(bare))
    empty.make(str(later))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "later", "there"]


def test_what_is_gone_or_left_over(tmp_path: Path) -> None:
    empty = EmptyDirectories()
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        empty.make(str(path))
    for path in paths:
        empty.leave(str(path))
    paths[2].rmdir()
    (paths[1] / "late.txt").write_text("late")
    empty.leave(str(tmp_path / "never there"))
    # The last is gone, the one before is not empty any more: it keeps its name all the same when it is handed on.
    empty.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    with pytest.raises(OSError):
        empty.make(str(tmp_path / "no such" / "a"))
