"""The endpoint's lock: one pool at a time, and what a killed one has left is swept by the next."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codex_pool.runtime import processes
from codex_pool.supervisor.lock import EndpointLock, EndpointTakenError

SLEEP = [sys.executable, "-c", "import time; time.sleep(1000)"]
# A pool's supervisor: takes the lock, starts two processes, writes them down, says so, and waits to be killed.
HOLDER = """
import subprocess, sys, time
from pathlib import Path
from codex_pool.supervisor.lock import EndpointLock
lock = EndpointLock(Path(sys.argv[1]))
inherit = (lock.fd,) if "inherit" in sys.argv else ()
script = "setsid sleep 1000 & sleep 1000 & wait"
children = [subprocess.Popen(["/bin/sh", "-c", script], pass_fds=inherit, stdout=subprocess.DEVNULL) for _ in range(2)]
lock.remember([(children[0].pid, "worker w0"), (children[1].pid, "broker")])
print(*[child.pid for child in children], flush=True)
time.sleep(1000)
"""


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.sock"


@pytest.fixture
def swept_up() -> Iterator[None]:
    """End what a test has left, which is for this test to do."""
    yield
    processes.sweep(os.getpid())


def holder(path: Path, *words: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A pool that holds the endpoint, and the pids of what it has started."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), *words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    process.stdout.close()
    assert len(pids) == 2
    # Each shell has its two commands.
    wait_for(lambda: all(len(processes.descendants(pid)) == 2 for pid in pids))
    return process, pids


def test_a_second_is_refused_and_names_the_first(path: Path) -> None:
    first = EndpointLock(path)
    with pytest.raises(EndpointTakenError, match=f"already running on ipc://{path} .supervisor pid {os.getpid()}."):
        EndpointLock(path)
    first.release()
    EndpointLock(path).release()


def test_what_was_started_is_written_down_for_its_user_only(path: Path) -> None:
    lock = EndpointLock(path)
    child = subprocess.Popen(SLEEP)
    lock.remember([(child.pid, "worker w0")])
    found = path.with_suffix(".processes")
    assert stat.S_IMODE(found.stat().st_mode) == 0o600
    ticks = [identity.start_ticks for pid in (os.getpid(), child.pid) if (identity := processes.identify(pid))]
    assert [json.loads(line) for line in found.read_text().splitlines()] == [
        {"pid": os.getpid(), "start_ticks": ticks[0], "what": "supervisor"},
        {"pid": child.pid, "start_ticks": ticks[1], "what": "worker w0"},
    ]
    child.kill()
    child.wait()
    lock.release()
    assert [entry.name for entry in path.parent.iterdir()] == ["s.lock"]


@pytest.mark.usefixtures("swept_up")
@pytest.mark.parametrize("stopped", [False, True])
def test_the_next_sweeps_what_a_killed_one_has_left(path: Path, stopped: bool) -> None:
    """A stopped worker does not see its death pipe, and keeps all that is below it."""
    process, pids = holder(path)
    below = [below.pid for pid in pids for below in processes.descendants(pid)]
    if stopped:
        os.kill(pids[0], signal.SIGSTOP)
    process.kill()
    process.wait()
    assert all(map(processes.identify, [*pids, *below]))
    lock = EndpointLock(path)
    assert lock.swept == [f"worker w0 (pid {pids[0]})", f"broker (pid {pids[1]})"]
    wait_for(lambda: not any(map(processes.identify, [*pids, *below])))
    lock.release()


@pytest.mark.usefixtures("swept_up")
def test_a_broker_that_is_stopped_does_not_keep_the_endpoint(path: Path) -> None:
    process, pids = holder(path, "inherit")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait()
    began = time.monotonic()
    lock = EndpointLock(path)
    assert len(lock.swept) == 2 and time.monotonic() - began < 3
    lock.release()


@pytest.mark.usefixtures("swept_up")
def test_nothing_of_a_living_pool_is_swept(path: Path) -> None:
    process, pids = holder(path)
    with pytest.raises(EndpointTakenError, match=f"pid {process.pid}"):
        EndpointLock(path)
    assert all(map(processes.identify, [process.pid, *pids]))
    # A stopped one lives.
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(EndpointTakenError, match=f"pid {process.pid}"):
        EndpointLock(path)
    assert all(map(processes.identify, [process.pid, *pids]))
    process.kill()
    process.wait()


@pytest.mark.usefixtures("swept_up")
def test_nothing_of_another_endpoint_is_swept(path: Path) -> None:
    process, pids = holder(path.with_name("other.sock"))
    process.kill()
    process.wait()
    lock = EndpointLock(path)
    assert lock.swept == [] and all(map(processes.identify, pids))
    lock.release()


def test_a_pid_that_belongs_to_another_by_now_is_left_alone(path: Path) -> None:
    child = subprocess.Popen(SLEEP)
    known = processes.identify(child.pid)
    assert known is not None
    lines = [
        {"pid": known.pid, "start_ticks": known.start_ticks - 1, "what": "supervisor"},
        {"pid": known.pid, "start_ticks": known.start_ticks - 1, "what": "worker w0"},
    ]
    path.with_suffix(".processes").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lock = EndpointLock(path)
    assert lock.swept == [] and child.poll() is None
    child.kill()
    child.wait()
    lock.release()


@pytest.mark.parametrize("text", ["", "\n\n", "{}\n", '{"pid": "1"}\n', '[1]\nnot json\n\x00\n{"pid":1,"start'])
def test_a_list_that_makes_no_sense_harms_nobody(path: Path, text: str) -> None:
    path.with_suffix(".processes").write_text(text)
    lock = EndpointLock(path)
    assert lock.swept == []
    lock.release()


def test_a_lock_that_the_dead_still_hold_is_waited_for(path: Path) -> None:
    """The broker of a killed pool lives a moment longer, to remove its sockets."""
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.write(fd, b"%d\n" % gone.pid)
    fcntl.flock(fd, fcntl.LOCK_EX)
    taken: list[EndpointLock] = []
    thread = threading.Thread(target=lambda: taken.append(EndpointLock(path)))
    thread.start()
    thread.join(0.2)
    assert not taken
    os.close(fd)
    thread.join(10)
    assert path.with_suffix(".lock").read_text() == f"{os.getpid()}\n"
    taken[0].release()
    fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.pwrite(fd, b"%d\n" % gone.pid, 0)
    with pytest.raises(EndpointTakenError):
        EndpointLock(path, limit_s=0.2)
    os.close(fd)
