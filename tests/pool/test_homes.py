"""SQLite homes: every slot has one of its own, kept, and a new one begins as a copy of a warm one."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from codex_pool.supervisor.sqlite_homes import SqliteHomes


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
    homes.close()


def test_two_pools_on_one_home_never_share_and_freed_homes_are_taken_again(tmp_path: Path) -> None:
    first = SqliteHomes(tmp_path, 2)
    second = SqliteHomes(tmp_path, 2)
    assert [path.name for path in second.paths] == ["2", "3"]
    first.close()
    third = SqliteHomes(tmp_path, 3)
    assert [path.name for path in third.paths] == ["0", "1", "4"]
    for homes in (first, second, third):
        homes.close()


def test_a_cold_home_is_seeded_from_a_warm_one(tmp_path: Path) -> None:
    homes = SqliteHomes(tmp_path, 2)
    write(homes.paths[0] / "state_5.sqlite", "warm", wal=True)
    write(homes.paths[0] / "logs_2.sqlite", "logs")
    homes.take(1)
    assert read(homes.paths[1] / "state_5.sqlite") == ["warm"]
    assert read(homes.paths[1] / "logs_2.sqlite") == ["logs"]
    assert [path for path in homes.paths[1].iterdir() if path.suffix == ".partial"] == []
    homes.close()


def test_seeding_copies_what_a_running_app_server_has_written(tmp_path: Path) -> None:
    homes = SqliteHomes(tmp_path, 2)
    database = homes.paths[0] / "state.sqlite"
    write(database, "old", wal=True)
    with closing(sqlite3.connect(database)) as running:
        running.execute("insert into t values ('in the log')")
        running.commit()
        homes.take(1)
        assert read(homes.paths[1] / "state.sqlite") == ["old", "in the log"]
    homes.close()


def test_a_warm_home_is_left_alone_and_the_first_of_all_starts_cold(tmp_path: Path) -> None:
    homes = SqliteHomes(tmp_path, 2)
    homes.take(0)
    assert list(homes.paths[0].glob("*.sqlite")) == []
    write(homes.paths[0] / "state.sqlite", "mine")
    write(homes.paths[1] / "state.sqlite", "other")
    homes.take(1)
    assert read(homes.paths[1] / "state.sqlite") == ["other"]
    homes.close()


def test_a_database_that_cannot_be_copied_only_means_a_cold_start(tmp_path: Path) -> None:
    homes = SqliteHomes(tmp_path, 2)
    (homes.paths[0] / "state.sqlite").write_bytes(b"not a database, but long enough to look like one" * 100)
    (tmp_path / "a file").write_text("no directory")
    homes.take(1)
    assert [path.name for path in homes.paths[1].iterdir()] == ["codex-pool.lock"]
    homes.close()


def test_a_seed_that_breaks_off_leaves_no_half_warm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home counts as warm by its databases: half of them copied would never be completed."""
    homes = SqliteHomes(tmp_path, 2)
    write(homes.paths[0] / "a.sqlite", "a")
    (homes.paths[0] / "b.sqlite").write_bytes(b"broken" * 1000)
    homes.take(1)
    assert list(homes.paths[1].glob("*.sqlite*")) == []
    homes.close()


def test_a_slot_that_is_recycled_goes_on_with_a_copy_and_its_old_home_is_the_next_spare(tmp_path: Path) -> None:
    homes = SqliteHomes(tmp_path, 2)
    first, other = homes.take(0), homes.take(1)
    write(first / "state.sqlite", "one", wal=True)
    second = homes.take(0)
    assert second not in (first, other) and read(second / "state.sqlite") == ["one"]
    homes.give_back(first)
    assert homes.paths == [second, other]
    with closing(sqlite3.connect(second / "state.sqlite")) as running:
        running.execute("insert into t values ('two')")
        running.commit()
        third = homes.take(0)
    assert third == first and read(first / "state.sqlite") == ["one", "two"], "a stale spare is copied anew"
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3
    homes.close()


def test_a_spare_takes_nothing_over_from_its_last_use(tmp_path: Path) -> None:
    """A log that is left of another database would be played into the copy."""
    homes = SqliteHomes(tmp_path, 1)
    first = homes.take(0)
    write(first / "state.sqlite", "one")
    second = homes.take(0)
    (second / "state.sqlite-wal").write_bytes(b"of another")
    (second / "state.sqlite-shm").write_bytes(b"of another")
    homes.give_back(second)
    assert homes.paths == [first], "the worker that goes on has the slot's home"
    assert homes.take(0) == second and read(second / "state.sqlite") == ["one"]
    assert not (second / "state.sqlite-shm").exists()
    homes.close()


def test_a_slot_whose_worker_has_died_keeps_its_home(tmp_path: Path) -> None:
    homes = SqliteHomes(tmp_path, 1)
    for _ in range(3):
        path = homes.take(0)
        assert path == tmp_path / "0"
        homes.give_back(path)
    homes.close()


def test_the_next_pool_takes_the_homes_that_were_used_last(tmp_path: Path) -> None:
    for number, used_at in enumerate((100, 300, 200)):
        home = tmp_path / str(number)
        home.mkdir()
        write(home / "state.sqlite", str(number))
        os.utime(home / "state.sqlite", (used_at, used_at))
    homes = SqliteHomes(tmp_path, 2)
    assert [path.name for path in homes.paths] == ["1", "2"]
    homes.close()


def test_a_home_stays_claimed_while_a_worker_holds_its_lock(tmp_path: Path) -> None:
    """The worker of a pool that was killed may live a moment longer."""
    homes = SqliteHomes(tmp_path, 1)
    held = os.dup(homes.lock_of(homes.take(0)))
    homes.close()
    others = SqliteHomes(tmp_path, 1)
    assert [path.name for path in others.paths] == ["1"]
    others.close()
    fcntl.flock(held, fcntl.LOCK_UN)
    os.close(held)
