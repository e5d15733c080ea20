"""The ownership store: it keeps what was written, and knows when it is not what it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from codex_pool.auth.ownership import Mark, OwnershipError, Row, Store, path_in, reset


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def mark(home: Path) -> Mark:
    return Mark(home.parent / "keys", home)


def write(home: Path, *rows: Row) -> None:
    with contextlib.closing(Store(home, mark(home))) as store:
        store.write(rows)


def owners(home: Path) -> dict[str, str]:
    with contextlib.closing(Store(home, mark(home))) as store:
        return {row.thread_id: row.owner for row in store.news()}


def row(thread_id: str, owner: str = "alice", **fields: bool) -> Row:
    return Row(thread_id=thread_id, owner=owner, stored=True, **fields)


def test_what_is_written_is_there_for_the_next_and_for_others_that_have_it_open(home: Path) -> None:
    with contextlib.closing(Store(home, mark(home))) as other:
        assert other.news() == []
        write(home, row("t1"), row("t2", "bob"))
        assert [each.thread_id for each in other.news()] == ["t1", "t2"] and other.news() == []
        write(home, row("t1", archived=True))
        assert [(each.thread_id, each.archived) for each in other.news()] == [("t1", True)]
        other.verify()
    assert owners(home) == {"t1": "alice", "t2": "bob"}


def test_a_thread_keeps_its_owner(home: Path) -> None:
    write(home, row("t1"))
    write(home, row("t1", "mallory", archived=True))
    assert owners(home) == {"t1": "alice"}


def _delete(store: Path, _: Path) -> None:
    store.unlink()


def _truncate(store: Path, _: Path) -> None:
    os.truncate(store, 4096)


def _empty(store: Path, _: Path) -> None:
    store.write_bytes(b"")


def _overwrite(store: Path, _: Path) -> None:
    store.write_bytes(b"no database" * 1000)


def _put_back(store: Path, backup: Path) -> None:
    shutil.copy(backup, store)


def _of_another_home(store: Path, _: Path) -> None:
    other = store.parent.parent.parent / "other"
    other.mkdir()
    (other.parent / "keys2").mkdir()
    with contextlib.closing(Store(other, Mark(other.parent / "keys2", other))) as made:
        made.write([row("t1", "mallory")])
    shutil.copy(path_in(other), store)


def _of_another_version(store: Path, _: Path) -> None:
    with contextlib.closing(sqlite3.connect(store)) as connection, connection:
        connection.execute("UPDATE meta SET version = 99")


LOSSES: dict[str, tuple[Callable[[Path, Path], None], int]] = {
    # What happens, and how many threads a reset can still tell the owners of.
    "deleted": (_delete, 0),
    "truncated": (_truncate, 0),
    "empty": (_empty, 0),
    "overwritten": (_overwrite, 0),
    "older": (_put_back, 1),
    "foreign": (_of_another_home, 1),
    "of another version": (_of_another_version, 0),
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("open_meanwhile", [False, True])
def test_a_store_that_is_not_what_it_was_is_refused_until_its_loss_is_accepted(
    home: Path, tmp_path: Path, kind: str, open_meanwhile: bool
) -> None:
    damage, kept = LOSSES[kind]
    write(home, row("t1"))
    backup = tmp_path / "backup"
    shutil.copy(path_in(home), backup)
    write(home, *(row(f"t{number}") for number in range(2, 100)))
    with contextlib.closing(Store(home, mark(home))) as store:
        if not open_meanwhile:
            store.close()
        for log in ("-wal", "-shm"):
            path_in(home).with_name(path_in(home).name + log).unlink(missing_ok=True)
        damage(path_in(home), backup)
        if open_meanwhile:
            with pytest.raises(OwnershipError):
                store.verify()
    with pytest.raises(OwnershipError):
        Store(home, mark(home))
    number, _ = reset(home, home.parent / "keys")
    assert number == kept and len(owners(home)) == kept
    write(home, row("t1000"))
    assert "t1000" in owners(home)


def test_a_home_that_never_had_a_store_gets_one_and_a_pool_without_keys_makes_none(home: Path) -> None:
    with pytest.raises(OwnershipError, match="missing"):
        Store(home, None)
    assert not path_in(home).exists()
    assert owners(home) == {}
    with contextlib.closing(Store(home, None)) as store:
        store.write([row("t1", archived=True)])
    assert owners(home) == {"t1": "alice"}


def test_a_home_that_was_copied_has_no_store_of_its_own(home: Path, tmp_path: Path) -> None:
    write(home, row("t1"))
    shutil.copytree(home, tmp_path / "copy")
    with pytest.raises(OwnershipError, match="another home"):
        Store(tmp_path / "copy", mark(tmp_path / "copy"))
