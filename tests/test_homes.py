"""SQLite homes: every slot has one of its own, kept, and a new one begins as a copy of a warm one."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from codex_pool.supervisor.homes import SqliteHomes


def write(path: Path, value: str, *, wal: bool = False) -> None:
    with closing(sqlite3.connect(path)) as connection:
        if wal:
            connection.execute("pragma journal_mode=wal")
        connection.execute("create table t (v)")
        connection.execute("insert into t values (?)", (value,))
        connection.commit()


def read(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [value for (value,) in connection.execute("select v from t")]


def test_each_slot_gets_a_private_directory_of_its_own(tmp_path: Path) -> None:
    homes = SqliteHomes(tmp_path / "a" / "sqlite", 3)
    assert [path.name for path in homes.paths] == ["0", "1", "2"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in homes.paths)
    homes.release()


def test_two_pools_on_one_home_never_share_and_freed_homes_are_taken_again(tmp_path: Path) -> None:
    first = SqliteHomes(tmp_path, 2)
    second = SqliteHomes(tmp_path, 2)
    assert [path.name for path in second.paths] == ["2", "3"]
    first.release()
    third = SqliteHomes(tmp_path, 3)
    assert [path.name for path in third.paths] == ["0", "1", "4"]
    for homes in (first, second, third):
        homes.release()


def test_a_cold_home_is_seeded_from_a_warm_one(tmp_path: Path) -> None:
    homes = SqliteHomes(tmp_path, 2)
    write(homes.paths[0] / "state_5.sqlite", "warm", wal=True)
    write(homes.paths[0] / "logs_2.sqlite", "logs")
    homes.seed(1)
    assert read(homes.paths[1] / "state_5.sqlite") == ["warm"]
    assert read(homes.paths[1] / "logs_2.sqlite") == ["logs"]
    assert [path for path in homes.paths[1].iterdir() if path.suffix == ".partial"] == []
    homes.release()


def test_seeding_copies_what_a_running_app_server_has_written(tmp_path: Path) -> None:
    homes = SqliteHomes(tmp_path, 2)
    database = homes.paths[0] / "state.sqlite"
    write(database, "old", wal=True)
    with closing(sqlite3.connect(database)) as running:
        running.execute("insert into t values ('in the log')")
        running.commit()
        homes.seed(1)
        assert read(homes.paths[1] / "state.sqlite") == ["old", "in the log"]
    homes.release()


def test_a_warm_home_is_left_alone_and_the_first_of_all_starts_cold(tmp_path: Path) -> None:
    homes = SqliteHomes(tmp_path, 2)
    homes.seed(0)
    assert list(homes.paths[0].glob("*.sqlite")) == []
    write(homes.paths[0] / "state.sqlite", "mine")
    write(homes.paths[1] / "state.sqlite", "other")
    homes.seed(1)
    assert read(homes.paths[1] / "state.sqlite") == ["other"]
    homes.release()


def test_a_database_that_cannot_be_copied_only_means_a_cold_start(tmp_path: Path) -> None:
    homes = SqliteHomes(tmp_path, 2)
    (homes.paths[0] / "state.sqlite").write_bytes(b"not a database, but long enough to look like one" * 100)
    (tmp_path / "a file").write_text("no directory")
    homes.seed(1)
    assert [path.name for path in homes.paths[1].iterdir()] == ["codex-pool.lock"]
    homes.release()


def test_a_seed_that_breaks_off_leaves_no_half_warm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home counts as warm by its databases: half of them copied would never be completed."""
    homes = SqliteHomes(tmp_path, 2)
    write(homes.paths[0] / "a.sqlite", "a")
    (homes.paths[0] / "b.sqlite").write_bytes(b"broken" * 1000)
    homes.seed(1)
    assert list(homes.paths[1].glob("*.sqlite*")) == []
    homes.release()
