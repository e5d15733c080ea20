"""Histories of threads: which requests need no loaded thread, and the copy between databases."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import broker_bench
import pytest
import worker_bench
from session_ids import sid

from codex_pool.protocol import thread_records, wire
from codex_pool.worker import thread_history
from codex_pool.worker.effects import FillHistory, ToAppServer

# As codex 0.163 makes them, with fewer columns.
SCHEMA = """
CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY);
CREATE TABLE thread_turns (
    thread_id TEXT NOT NULL, turn_id TEXT NOT NULL, rollout_ordinal INTEGER NOT NULL, PRIMARY KEY (thread_id, turn_id)
);
CREATE UNIQUE INDEX idx_thread_turns_page ON thread_turns(thread_id, rollout_ordinal);
CREATE TABLE thread_items (
    thread_id TEXT NOT NULL, item_id TEXT NOT NULL, item_json TEXT NOT NULL, PRIMARY KEY (thread_id, item_id)
);
CREATE TABLE thread_history_projection_state (
    thread_id TEXT PRIMARY KEY, next_rollout_byte_offset INTEGER NOT NULL, next_rollout_ordinal INTEGER NOT NULL
);
CREATE TRIGGER cleanup AFTER DELETE ON thread_history_projection_state
BEGIN
    DELETE FROM thread_items WHERE thread_id = OLD.thread_id;
END;
"""


def database_of(home: Path, schema: str = SCHEMA) -> sqlite3.Connection:
    home.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(home / "thread_history_1.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript(schema)
    return connection


def write(home: Path, thread_id: str, turns: int) -> None:
    with contextlib.closing(sqlite3.connect(home / "thread_history_1.sqlite", isolation_level=None)) as connection:
        for number in range(turns):
            connection.execute("INSERT INTO thread_turns VALUES (?, ?, ?)", (thread_id, f"u{number}", number))
            connection.execute("INSERT INTO thread_items VALUES (?, ?, ?)", (thread_id, f"i{number}", "{}"))
        state = (thread_id, 100 * turns, turns)
        connection.execute("INSERT INTO thread_history_projection_state VALUES (?, ?, ?)", state)


def rows(home: Path, thread_id: str) -> list[int]:
    """Count the rows of each table that are of the thread."""
    with contextlib.closing(sqlite3.connect(home / "thread_history_1.sqlite")) as connection:
        tables = ("thread_turns", "thread_items", "thread_history_projection_state")
        ask = "SELECT count(*) FROM {} WHERE thread_id = ?"
        return [connection.execute(ask.format(name), (thread_id,)).fetchone()[0] for name in tables]


@pytest.fixture
def homes(tmp_path: Path) -> list[Path]:
    """Three SQLite homes of slots, and the CODEX_HOME."""
    slots = [tmp_path / "codex-pool" / "sqlite" / str(number) for number in range(3)]
    for home in (*slots, tmp_path):
        database_of(home).close()
    return [*slots, tmp_path]


@pytest.mark.parametrize("source", [1, 2, 3])
def test_a_history_is_copied_from_where_it_is(homes: list[Path], source: int) -> None:
    write(homes[source], "t1", 3)
    write(homes[source], "t2", 1)
    assert thread_history.fill(homes[0], "t1") == 300
    assert rows(homes[0], "t1") == [3, 3, 1] and rows(homes[0], "t2") == [0, 0, 0]
    assert thread_history.fill(homes[0], "t1") == 0


def test_the_one_that_knows_most_is_taken_over_what_is_old(homes: list[Path]) -> None:
    for number, turns in enumerate((2, 1, 5, 4)):
        write(homes[number], "t1", turns)
    assert thread_history.fill(homes[0], "t1") == 300
    assert rows(homes[0], "t1") == [5, 5, 1]
    assert thread_history.fill(homes[2], "t1") == 0, "it is ahead of all others"


def test_databases_of_another_codex_are_left_alone(homes: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "codex-pool" / "sqlite" / "7"
    database_of(other, SCHEMA.replace("item_json TEXT NOT NULL", "item TEXT NOT NULL")).close()
    write(other, "t1", 3)
    assert thread_history.fill(homes[0], "t1") == 0
    assert rows(homes[0], "t1") == [0, 0, 0]


def test_without_a_database_there_is_nothing_to_fill(tmp_path: Path) -> None:
    home = tmp_path / "codex-pool" / "sqlite" / "0"
    home.mkdir(parents=True)
    assert thread_history.try_fill(str(home), "t1") == ""
    (home / "thread_history_1.sqlite").write_text("not a database")
    assert thread_history.try_fill(str(home), "t1") == ""


def test_a_database_is_made_where_the_app_server_has_not_needed_one(homes: list[Path], tmp_path: Path) -> None:
    home = tmp_path / "codex-pool" / "sqlite" / "5"
    home.mkdir()
    with contextlib.closing(sqlite3.connect(homes[1] / "thread_history_1.sqlite", isolation_level=None)) as source:
        source.execute("INSERT INTO _sqlx_migrations VALUES (8)")
    write(homes[1], "t1", 2)
    write(homes[1], "t2", 2)
    assert thread_history.fill(home, "t9") == 0 and list(home.iterdir()) == [], "only for a thread that is somewhere"
    assert thread_history.fill(home, "t1") == 200
    assert rows(home, "t1") == [2, 2, 1] and rows(home, "t2") == [0, 0, 0]
    assert [path.name for path in home.iterdir()] == ["thread_history_1.sqlite"]
    with contextlib.closing(sqlite3.connect(home / "thread_history_1.sqlite")) as made:
        assert made.execute("SELECT version FROM _sqlx_migrations").fetchall() == [(8,)]


def test_a_damaged_database_is_no_source(homes: list[Path]) -> None:
    (homes[1] / "thread_history_1.sqlite").write_text("not a database")
    write(homes[2], "t1", 1)
    assert thread_history.fill(homes[0], "t1") == 100


def test_a_database_that_is_busy_is_left_as_it_was(homes: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_history, "LOCK_S", 0.01)
    write(homes[0], "t1", 1)
    write(homes[1], "t1", 3)
    with contextlib.closing(sqlite3.connect(homes[0] / "thread_history_1.sqlite", isolation_level=None)) as busy:
        busy.execute("BEGIN IMMEDIATE")
        problem = thread_history.try_fill(str(homes[0]), "t1")
        assert "locked" in problem and str(homes[0]) in problem
    assert rows(homes[0], "t1") == [1, 1, 1]


def test_a_copy_that_takes_too_long_is_given_up(homes: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_history, "LIMIT_S", -1.0)
    monkeypatch.setattr(thread_history, "_STEPS", 1)
    write(homes[1], "t1", 50)
    assert "interrupted" in thread_history.try_fill(str(homes[0]), "t1")
    assert rows(homes[0], "t1") == [0, 0, 0]


# The worker.


@pytest.fixture
def worker() -> worker_bench.Bench:
    bench = worker_bench.Bench().start()
    bench.thread("t1")
    return bench


def fills(bench: worker_bench.Bench, method: str, **params: object) -> list[str]:
    """The threads that are filled before this request is sent to the app-server."""
    line = worker_bench.encode({"id": "x", "method": method, "params": params})
    effects = bench.core.broker_message(wire.Dispatch(900, sid("s1")), [line], bench.now)
    kinds = [type(each) for each in effects]
    assert ToAppServer in kinds and FillHistory not in kinds[kinds.index(ToAppServer) :]
    bench.apply(effects)
    return [each.thread_id for each in effects if isinstance(each, FillHistory)]


@pytest.mark.parametrize("method", sorted(thread_records.READS_HISTORY))
def test_the_history_of_a_thread_that_is_not_here_is_filled(worker: worker_bench.Bench, method: str) -> None:
    assert fills(worker, method, threadId="t9") == ["t9"]


def test_a_thread_is_filled_where_its_turns_are_read(worker: worker_bench.Bench) -> None:
    assert fills(worker, "thread/read", threadId="t9", includeTurns=True) == ["t9"]
    worker.answer(worker.request("thread/read"), {})
    assert fills(worker, "thread/read", threadId="t9") == []


def test_a_thread_that_is_here_is_not_filled(worker: worker_bench.Bench) -> None:
    assert fills(worker, "thread/turns/list", threadId="t1") == []


def test_a_thread_that_is_about_to_be_loaded_is_not_filled(worker: worker_bench.Bench) -> None:
    worker.dispatch("thread/resume", {"threadId": "t9"})
    assert fills(worker, "thread/turns/list", threadId="t9") == []


# The broker.


@pytest.mark.parametrize("method", sorted(thread_records.READS_HISTORY))
def test_reading_a_stored_thread_that_no_worker_has_loads_it_nowhere(method: str) -> None:
    bench = broker_bench.Bench(slots=2)
    first = bench.register("w0", 0)
    bench.register("w1", 1)
    bench.hello()
    assert bench.thread("t1") is first
    bench.lose(first)
    ((name, head),) = bench.dispatches(bench.call(method, {"threadId": "t1"}))
    assert name == "w1" and head.adopt is None
    assert bench.core.state.threads["t1"].worker is None
    # The next turn loads it, as ever.
    ((_, head),) = bench.dispatches(bench.call("turn/start", {"threadId": "t1"}))
    assert head.adopt is not None


@pytest.mark.parametrize("method", ["thread/turns/list", "thread/items/list"])
def test_a_read_whose_worker_dies_is_answered_by_another(method: str) -> None:
    bench = broker_bench.Bench(slots=2)
    first = bench.register("w0", 0)
    second = bench.register("w1", 1)
    bench.hello()
    bench.thread("t1")
    call = bench.call(method, {"threadId": "t1"})
    bench.lose(first)
    ((name, head),) = bench.dispatches(call)
    assert name == "w1"
    bench.answer(second, head.call)
    assert "result" in bench.answers[call][0]


def test_a_read_that_workers_die_of_is_given_up() -> None:
    bench = broker_bench.Bench(slots=4)
    bench.hello()
    workers = [bench.register(f"w{number}", number) for number in range(5)]
    bench.hello()
    call = bench.call("thread/turns/list", {"threadId": "t9"})
    for _ in range(4):
        ((name, _),) = bench.dispatches(call)
        bench.lose(bench.workers[name])
    assert bench.error(call)["code"] == broker_bench.TURN_LOST and workers


def test_reading_a_thread_that_was_lost_fails_as_before() -> None:
    bench = broker_bench.Bench(slots=1)
    worker = bench.register()
    bench.hello()
    bench.thread("t1", ephemeral=True)
    bench.lose(worker)
    bench.register("w1")
    assert bench.error(bench.call("thread/turns/list", {"threadId": "t1"}))["code"] == broker_bench.THREAD_LOST


def test_reading_a_thread_of_a_worker_that_drains_leaves_it_there() -> None:
    bench = broker_bench.Bench(slots=2)
    worker = bench.register("w0", 0)
    bench.register("w1", 1)
    bench.hello()
    for name in ("t1", "t2", "t3"):
        bench.thread(name)
    assert bench.turn("t3")[0] is worker, "so that it has not drained at once"
    bench.drain(worker)
    ((name, _),) = bench.dispatches(bench.call("thread/items/list", {"threadId": "t1"}))
    assert name == "w0" and worker.releases == {}
