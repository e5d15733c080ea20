"""Files written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from codex_app_server._runtime.files import PARTIAL, replacing, write_atomic


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_file_that_is_not_finished_changes_nothing(tmp_path: Path, is_shared: bool) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old", is_shared=is_shared)
    with pytest.raises(ZeroDivisionError), replacing(path, is_shared=is_shared) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_has_left_is_written_over_and_lends_no_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    left = tmp_path / ("file" + PARTIAL)
    left.write_bytes(b"a longer text than the next")
    left.chmod(0o666)
    write_atomic(path, b"new", mode=0o600, is_synced=True)
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o600 and not left.exists()


def test_a_link_beside_it_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"kept")
    (tmp_path / ("file" + PARTIAL)).symlink_to(other)
    write_atomic(tmp_path / "file", b"new")
    assert other.read_bytes() == b"kept" and not (tmp_path / "file").is_symlink()


def test_writers_of_one_file_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path, is_shared=True) as first:
        first.write(b"first")
        write_atomic(path, b"second", is_shared=True)
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["file"]


def test_a_file_that_cannot_take_its_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "taken", b"data")
    assert os.listdir(tmp_path) == ["taken"]
