"""Files that a pool keeps on disk for itself: made again when removed, and tried again when they cannot be."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from broker_bench import Bench

from codex_pool.auth.ownership import Row, Store
from codex_pool.broker import sessions
from codex_pool.broker.checkpoint import CheckpointFile
from codex_pool.broker.checkpoint_writer import WHAT, CheckpointWriter, with_unsaved
from codex_pool.broker.effects import Suspect
from codex_pool.broker.listeners import Listener, Listeners
from codex_pool.broker.ownership_writer import WRITES, OwnershipWriter
from codex_pool.daemon import status_text
from codex_pool.protocol import endpoints, wire
from codex_pool.protocol.endpoints import EndpointError
from codex_pool.runtime import endpoint_name
from codex_pool.runtime.problems import RETRY_FIRST_S, RETRY_MAX_S, Problems, shown
from codex_pool.supervisor.bookkeeping import Bookkeeping
from codex_pool.supervisor.lock import EndpointLock, EndpointTakenError
from codex_pool.supervisor.recheck import STEPS, EndpointFiles, steps

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/p.lock")


class Log(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def problems(log: Log) -> Problems:
    return Problems(log)


@pytest.fixture
def path(runtime_directory: Path) -> Path:
    """Path of a socket, in a directory that is short enough for one."""
    directory = runtime_directory / "d"
    directory.mkdir(mode=0o700)
    return directory / "p.sock"


# What cannot be done.


def test_a_failure_is_tried_again_with_backoff_and_logged_once(problems: Problems, log: Log) -> None:
    now, waits = 100.0, []
    for _ in range(6):
        problems.failed("list", "/p: full", now)
        due = now
        while not problems.is_due("list", due):
            due += 0.25
        waits.append(due - now)
        now = due
    assert waits == [RETRY_FIRST_S, 2 * RETRY_FIRST_S, 4 * RETRY_FIRST_S, RETRY_MAX_S, RETRY_MAX_S, RETRY_MAX_S]
    assert shown(problems.rows(), now) == [
        {"what": "list", "message": "/p: full", "tries": 6, "forMs": round(1000 * (now - 100.0))}
    ]
    problems.failed("list", "/p: read-only", now)
    problems.solved("list", now)
    problems.solved("list", now)
    assert [line.split(";")[0] for line in log] == [
        "list: /p: full",
        "list: /p: read-only",
        f"list: done after 7 failed tries in {now - 100:.1f} s",
    ]
    assert problems.rows() == [] and problems.is_due("list", now)


def test_status_shows_what_cannot_be_done() -> None:
    row = {"what": "list of processes", "message": "/p: No space left on device", "tries": 1, "forMs": 61_000}
    (line,) = status_text.problems({"problems": [row], "workers": []})
    assert line == "list of processes: /p: No space left on device; 1 try in 1 min 01 s"
    # A client with a key is not told.
    assert status_text.problems({"workers": []}) == []
    bench = Bench()
    bench.register("w0")
    bench.core.problems([{**row, "since": bench.now - 2.0}])
    assert bench.status()["problems"] == [{**row, "forMs": 2000}]


# What is made again.


def test_a_step_needs_those_before_it() -> None:
    assert steps(EndpointFiles(True, True, True, True)) == []
    assert steps(EndpointFiles(True, True, False, True)) == ["pid in the lock"]
    assert steps(EndpointFiles(True, True, True, False)) == ["list of processes"]
    assert steps(EndpointFiles(True, False, True, True)) == list(STEPS[1:])
    assert steps(EndpointFiles(False, False, True, True)) == list(STEPS)


@pytest.fixture
def held(path: Path) -> Iterator[EndpointLock]:
    lock = EndpointLock(path)
    yield lock
    lock.release()


@pytest.fixture
def state(held: EndpointLock, problems: Problems, log: Log) -> Bookkeeping:
    return Bookkeeping(held, problems, log)


def entries(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def empty(path: Path) -> None:
    for entry in path.parent.iterdir():
        entry.unlink()


def test_nothing_is_touched_while_all_is_as_it_was_left(path: Path, state: Bookkeeping, log: Log) -> None:
    before = {entry.name: entry.stat() for entry in path.parent.iterdir()}
    state.look(1.0)
    assert {entry.name: entry.stat() for entry in path.parent.iterdir()} == before and log == []


@pytest.mark.parametrize("what", ["directory", "files", "lock", "list", "lock replaced", "lock a directory"])
def test_what_was_removed_is_made_again(what: str, path: Path, state: Bookkeeping, log: Log) -> None:
    lock = path.with_suffix(".lock")
    if what in ("directory", "files"):
        empty(path)
    if what == "directory":
        path.parent.rmdir()
    if what == "list":
        path.with_suffix(".processes").unlink()
    elif what.startswith("lock"):
        lock.unlink()
    if what == "lock replaced":
        lock.write_text("1\n")
    if what == "lock a directory":
        lock.mkdir()
    state.look(1.0)
    assert state.holds and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [name for name in entries(path) if "aside" not in name] == ["p.lock", "p.processes"]
    assert ("aside" in "".join(entries(path))) == (what == "lock a directory")
    assert lock.read_text() == f"{os.getpid()}\n" and '"supervisor"' in path.with_suffix(".processes").read_text()
    (line,) = log
    assert "was removed or changed; it is made again" in line
    with open(lock) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for entry in path.parent.glob("*.aside-*"):
        entry.rmdir()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOENT])
@pytest.mark.parametrize("method", ["make_directory", "lock_again", "write_pid", "remember"])
def test_what_cannot_be_made_again_ends_nothing_and_is_tried_again(
    error: int,
    method: str,
    path: Path,
    held: EndpointLock,
    state: Bookkeeping,
    problems: Problems,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    empty(path)
    path.parent.rmdir()
    with monkeypatch.context() as failing:
        failing.setattr(held, method, fail)
        state.remember([(os.getpid(), "worker")], 1.0)
        state.look(1.5)
    assert state.holds == (method in ("write_pid", "remember"))
    (row,) = problems.rows()
    assert row["tries"] == 1 and os.strerror(error) in row["message"] and str(path.parent) in row["message"]
    state.look(3.0)
    assert state.holds and problems.rows() == [] and entries(path) == ["p.lock", "p.processes"]
    assert '"worker"' in path.with_suffix(".processes").read_text()


def test_a_lock_that_another_has_taken_meanwhile_is_left_to_it(
    path: Path, state: Bookkeeping, problems: Problems
) -> None:
    """Such as a pool in another container with the same directory, for which there is no second proof."""
    lock = path.with_suffix(".lock")
    empty(path)
    with open(lock, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write("77\n")
        other.flush()
        state.look(1.0)
        assert not state.holds and lock.read_text() == "77\n"
        (row,) = problems.rows()
        assert "already running" in row["message"] and "pid 77" in row["message"]
    state.look(3.0)
    assert state.holds and problems.rows() == []


def test_at_the_end_nothing_of_another_pool_is_removed(path: Path) -> None:
    lock = EndpointLock(path)
    empty(path)
    for name in ("p.lock", "p.processes"):
        (path.parent / name).write_text("another's")
    lock.release()
    assert entries(path) == ["p.lock", "p.processes"]


def test_a_pool_starts_though_nothing_can_be_written(path: Path, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    def full(*_: object) -> int:
        raise FULL

    with monkeypatch.context() as failing:
        failing.setattr(os, "pwrite", full)
        failing.setattr(EndpointLock, "remember", full)
        lock = EndpointLock(path)
    assert lock.look() == EndpointFiles(True, True, False, False)
    assert endpoints.is_held(path), "its name says so"
    Bookkeeping(lock, Problems(log), log).look(1.0)
    assert lock.look() == EndpointFiles(True, True, True, True)
    lock.release()
    assert not endpoints.is_held(path.with_name("other.sock"))


# The second proof.


@pytest.mark.parametrize("removed", ["lock", "files", "directory"])
def test_a_second_does_not_take_an_endpoint_whose_files_were_removed(
    removed: str, path: Path, held: EndpointLock
) -> None:
    path.with_suffix(".lock").unlink()
    if removed != "lock":
        empty(path)
    if removed == "directory":
        path.parent.rmdir()
        path.parent.mkdir(mode=0o700)
    with pytest.raises(EndpointTakenError, match=f"supervisor pid {os.getpid()}"):
        EndpointLock(path, limit_s=0.1)
    assert endpoint_name.holder(path) == os.getpid() and endpoints.is_held(path)
    assert held.look().lock is False, "and the second has left nothing that the first could not lock"
    held.lock_again()


def test_a_name_is_let_go_with_the_lock(path: Path) -> None:
    EndpointLock(path).release()
    assert endpoint_name.holder(path) is None
    EndpointLock(path).release()


def test_many_who_look_at_a_name_do_not_fill_it_up(path: Path, held: EndpointLock) -> None:
    for _ in range(3 * endpoint_name.BACKLOG):
        found = endpoint_name.holder(path)
        assert found in (os.getpid(), 0), "0: it is held, by whom cannot be told"
    held.look()
    assert endpoint_name.holder(path) == os.getpid()


def test_who_listens_on_the_socket_keeps_the_endpoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check without names: the broker of a pool whose lock was removed."""
    monkeypatch.setattr(endpoint_name, "_name_of", lambda path: None)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(EndpointTakenError, match=rf"process \(pid {os.getpid()}\) listens on ipc://{path}"):
            EndpointLock(path, limit_s=0.1)
    # The file of a dead one says nothing.
    EndpointLock(path).release()
    path.unlink()


# Directories.


def test_directories_above_are_made_private_too(runtime_directory: Path) -> None:
    path = runtime_directory / "a" / "b"
    endpoints.make_private(path)
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent)] == [0o700, 0o700]


def test_a_directory_is_not_made_again_where_others_could_replace_it(tmp_path: Path) -> None:
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o777)
    with pytest.raises(EndpointError, match=f"others could replace it in {above}"):
        endpoints.make_again(above / "new" / "d")
    assert list(above.iterdir()) == []
    above.chmod(0o1777)
    endpoints.make_again(above / "new" / "d")
    assert stat.S_IMODE((above / "new" / "d").stat().st_mode) == 0o700


# The broker's sockets.


class FakeSocket:
    """Binds a socket in place of one that is there, as ZeroMQ does. `error` is what it raises instead."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bound: list[socket.socket] = []
        self.error: OSError | None = None

    def bind(self) -> None:
        if self.error is not None:
            raise self.error
        self.path.unlink(missing_ok=True)
        self.bound.append(socket.socket(socket.AF_UNIX))
        self.bound[-1].bind(str(self.path))
        self.bound[-1].listen()


@pytest.fixture
def listener(path: Path) -> Iterator[FakeSocket]:
    listener = FakeSocket(path)
    yield listener
    for each in listener.bound:
        each.close()


@pytest.fixture
def listeners(path: Path, listener: FakeSocket, problems: Problems, log: Log) -> Iterator[Listeners]:
    listeners = Listeners([Listener("clients' socket", path, listener.bind)], problems, log)
    yield listeners
    listeners.remove()
    assert not path.is_socket()


@pytest.mark.parametrize("instead", ["nothing", "a file", "a directory", "a dead socket", "another's socket"])
def test_a_socket_is_bound_again_whatever_is_in_its_place(
    instead: str, path: Path, listeners: Listeners, listener: FakeSocket, log: Log
) -> None:
    listeners.bind()
    listeners.look(1.0)
    assert len(listener.bound) == 1 and log == []
    path.unlink()
    other = socket.socket(socket.AF_UNIX)
    if instead == "a file":
        path.write_text("somebody's")
    elif instead == "a directory":
        path.mkdir()
    elif instead.endswith("socket"):
        other.bind(str(path))
        other.listen()
    if instead == "a dead socket":
        other.close()
    listeners.look(2.0)
    assert len(listener.bound) == 2 and endpoints.why_unreachable(path) is None
    said = {
        "nothing": "its file was removed",
        "a dead socket": "another socket was there, of no process that listens",
        "another's socket": f"another socket was there, of process {os.getpid()}",
    }
    (line,) = log
    assert said.get(instead, "what was there instead is") in line
    kept = list(path.parent.glob("*.aside-*"))
    assert len(kept) == (instead in ("a file", "a directory"))
    other.close()


def test_a_socket_that_cannot_be_bound_is_tried_again(
    path: Path, listeners: Listeners, listener: FakeSocket, problems: Problems
) -> None:
    listeners.bind()
    path.unlink()
    listener.error = FULL
    listeners.look(2.0)
    listeners.look(2.5)
    (row,) = problems.rows()
    assert row["message"] == "cannot listen on /run/p.lock: No space left on device" and row["tries"] == 1
    listener.error = None
    listeners.look(3.5)
    assert problems.rows() == [] and listeners.is_bound("clients' socket")


def test_nothing_is_bound_at_an_endpoint_that_is_not_held(
    path: Path, listeners: Listeners, listener: FakeSocket, problems: Problems
) -> None:
    listeners.bind()
    path.unlink()
    listeners.holds = False
    listeners.look(2.0)
    assert len(listener.bound) == 1 and "does not hold" in problems.rows()[0]["message"]
    listeners.holds = True
    listeners.look(4.0)
    assert len(listener.bound) == 2 and problems.rows() == []


def test_at_the_start_of_a_pool_what_is_not_a_socket_is_refused_and_left(path: Path, listeners: Listeners) -> None:
    path.write_text("somebody's")
    with pytest.raises(EndpointError, match=f"{path} exists and is not a socket; move it away"):
        listeners.bind()
    assert path.read_text() == "somebody's"


def test_the_socket_of_another_is_not_removed_at_the_end(path: Path, listeners: Listeners) -> None:
    listeners.bind()
    path.unlink()
    path.write_text("somebody's")
    listeners.remove()
    assert path.read_text() == "somebody's"


def test_workers_that_cannot_come_to_the_next_broker_are_not_suspected() -> None:
    bench = Bench(expect=["w0"], checkpoint=[])
    for _ in range(3):
        bench.now += sessions.BARRIER_S - 1
        bench.core.unreachable(bench.now)
        assert not any(isinstance(effect, Suspect) for effect in bench.core.tick(bench.now))
    bench.now += sessions.BARRIER_S + 1
    assert any(isinstance(effect, Suspect) for effect in bench.core.tick(bench.now))


# The record of threads.


class Saved:
    """A checkpoint of threads `t1`, ... and what was reported of it."""

    def __init__(self, path: Path, problems: Problems) -> None:
        self.file = CheckpointFile(f"ipc://{path}")
        self.threads: dict[str, wire.ThreadRecord] = {}
        self.reports: list[dict[str, Any]] = []
        self.checkpoint = CheckpointWriter(
            self.file, lambda: list(self.threads.values()), problems, self.reports.append
        )
        self.checkpoint.look(0.0)

    def change(self, now: float, thread_id: str, **fields: Any) -> None:
        record = self.threads[thread_id] = wire.ThreadRecord(thread_id, False, **fields)
        self.checkpoint.keep({thread_id: record}, now)

    def next(self) -> list[wire.ThreadRecord] | None:
        """The threads that the next broker begins with."""
        unsaved: dict[str, Any] = {}
        for report in self.reports:
            if report["event"] == "saved":
                unsaved.clear()
            else:
                unsaved |= report["threads"]
        return with_unsaved(self.file.read(), unsaved)


@pytest.fixture
def saved(path: Path, problems: Problems) -> Iterator[Saved]:
    saved = Saved(path, problems)
    yield saved
    saved.file.remove()


@pytest.mark.parametrize("which", ["keep", "write"])
def test_threads_that_cannot_be_written_down_are_not_lost(
    which: str, saved: Saved, problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.change(1.0, "t1", sandbox="read-only")
    saved.change(1.0, "t2", sandbox="wide")
    with monkeypatch.context() as failing:

        def full(*_: object, **__: object) -> bool:
            raise FULL

        for method in ("keep", "write") if which == "keep" else ("write",):
            failing.setattr(saved.file, method, full)
        if which == "write":
            saved.file.path.unlink()
            saved.checkpoint.look(2.0)
        saved.change(2.0, "t2", sandbox="narrow")
        saved.change(2.1, "t3")
        del saved.threads["t1"]
        saved.checkpoint.keep({"t1": None}, 2.2)
        assert [row["what"] for row in problems.rows()] == [WHAT]
        found = saved.next()
        assert found is not None and [(record.thread_id, record.sandbox) for record in found] == [
            ("t2", "narrow"),
            ("t3", ""),
        ], "neither as they were nor forgotten"
    saved.checkpoint.look(4.0)
    assert problems.rows() == [] and saved.reports[-1] == {"event": "saved"}
    assert saved.next() == list(saved.threads.values())


def test_a_record_whose_file_was_removed_is_written_again(saved: Saved, problems: Problems) -> None:
    saved.change(1.0, "t1")
    saved.file.path.unlink()
    saved.checkpoint.look(2.0)
    saved.change(2.5, "t2")
    assert saved.next() == list(saved.threads.values()) and problems.rows() == []


def test_records_come_back_from_the_supervisor_as_they_were() -> None:
    record = wire.ThreadRecord("t1", False, turns=2, sandbox='{"type":"readOnly"}', name="n")
    told = msgspec.json.decode(msgspec.json.encode({"t1": record, "t2": None}))
    assert with_unsaved(None, told) == [record] and with_unsaved(None, {}) is None and with_unsaved([], {}) == []


# Ownership.


def test_writes_of_ownership_that_failed_are_shown_until_writes_work_again(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that could not be given to its client is not tried again: that writes work is found out without it."""

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    keeper = OwnershipWriter(tmp_path / "home", tmp_path / "keys", log)
    poll = select.poll()
    poll.register(keeper.descriptor, select.POLLIN)
    try:
        assert keeper.open() == []
        with monkeypatch.context() as failing:
            failing.setattr(Store, "write", full)
            keeper.write(1, [Row(thread_id="t1", owner="o")])
            assert poll.poll(10_000)
            (done,) = keeper.done()
            assert done.number == 1 and done.problem == "database or disk is full"
        (row,) = keeper.problems.rows()
        assert row["what"] == WRITES and "database or disk is full" in row["message"]
        keeper.look(row["since"] + RETRY_FIRST_S)
        assert poll.poll(10_000)
        assert keeper.done() == [] and keeper.problems.rows() == [] and keeper.news() == []
    finally:
        keeper.close()
