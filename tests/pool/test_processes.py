"""Processes by pid and start time: found, killed, swept - and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from codex_pool.runtime import processes
from codex_pool.runtime.processes import ProcessId

SLEEP = [sys.executable, "-c", "import time; time.sleep(1000)"]


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


def running(pid: int) -> bool:
    return processes.identify(pid) is not None


def exists(pid: int) -> bool:
    """Also as a zombie."""
    return Path(f"/proc/{pid}").exists()


def shell(tmp_path: Path, script: str) -> tuple[subprocess.Popen[bytes], Callable[[str], int]]:
    """A shell below this process; the second value reads a pid that the script wrote to a file."""

    def pid(name: str) -> int:
        path = tmp_path / name
        wait_for(lambda: path.exists() and path.read_text().strip())
        return int(path.read_text())

    return subprocess.Popen(["/bin/sh", "-c", script], cwd=tmp_path), pid


def test_a_process_is_known_by_pid_and_start_time() -> None:
    child = subprocess.Popen(SLEEP)
    known = processes.identify(child.pid)
    assert known is not None and known.pid == child.pid and known == processes.identify(child.pid)
    processes.kill(ProcessId(known.pid, known.start_ticks + 1))
    assert child.poll() is None, "another process of that pid is left alone"
    processes.kill(known)
    assert child.wait(10) == -signal.SIGKILL
    assert processes.identify(child.pid) is None
    processes.kill(known)


def test_a_zombie_is_not_running() -> None:
    child = subprocess.Popen(["/bin/true"])
    wait_for(lambda: processes.identify(child.pid) is None)
    assert exists(child.pid)
    child.wait()


def test_names_with_blanks_and_brackets_are_read(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([program, "1000"])
    wait_for(lambda: b") S 1 (" in Path(f"/proc/{child.pid}/stat").read_bytes())
    assert [process.pid for process in processes.descendants(os.getpid())] == [child.pid]
    child.kill()
    child.wait()


def test_descendants_are_parents_first(tmp_path: Path) -> None:
    child, pid = shell(tmp_path, "sh -c 'sleep 1000 & echo $! > inner; wait' & echo $! > middle; wait")
    found = [process.pid for process in processes.descendants(os.getpid())]
    inner, middle = pid("inner"), pid("middle")
    found = [process.pid for process in processes.descendants(os.getpid())]
    assert found.index(child.pid) < found.index(middle) < found.index(inner)
    assert [process.pid for process in processes.descendants(child.pid)] == [middle, inner]
    processes.sweep(os.getpid())
    child.wait()


def test_a_sweep_finds_sessions_of_their_own_and_orphans_and_leaves_no_zombie(tmp_path: Path) -> None:
    processes.become_subreaper()
    script = "setsid sh -c 'sleep 1000 & echo $! > inner; wait' & echo $! > own; sleep 1000 & echo $! > orphan; exit 0"
    child, pid = shell(tmp_path, script)
    pids = [pid(name) for name in ("inner", "own", "orphan")]
    child.wait()
    assert all(map(running, pids))
    swept = {process.pid for process in processes.sweep(os.getpid())}
    assert swept == set(pids)
    assert not any(map(exists, pids))


def test_a_sweep_ends_what_is_stopped_or_ignores_signals(tmp_path: Path) -> None:
    child, pid = shell(tmp_path, "trap '' TERM HUP INT; sh -c 'kill -STOP $$' & echo $! > stopped; wait")
    stopped = pid("stopped")
    wait_for(lambda: b") T" in Path(f"/proc/{stopped}/stat").read_bytes())
    processes.sweep(os.getpid())
    child.wait()
    assert not running(stopped) and not running(child.pid)


def test_a_sweep_spares_some_and_what_is_below_them(tmp_path: Path) -> None:
    spared, pid = shell(tmp_path, "sleep 1000 & echo $! > below; wait")
    below = pid("below")
    other = subprocess.Popen(SLEEP)
    assert [process.pid for process in processes.sweep(os.getpid(), spare=frozenset({spared.pid}))] == [other.pid]
    assert running(spared.pid) and running(below)
    processes.sweep(os.getpid())
    for child in (spared, other):
        child.wait()


def test_a_sweep_spares_what_is_born_below_the_spared_in_the_meantime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that lives starts processes while the leavings of a dead one are swept."""
    spared, pid = shell(tmp_path, "while [ ! -e go ]; do sleep 0.01; done; sleep 1000 & echo $! > born; wait")
    other = subprocess.Popen(SLEEP)
    scan = processes.descendants
    born: list[int] = []

    def scan_and_let_be_born(*args: object, **options: object) -> list[ProcessId]:
        found = scan(*args, **options)  # type: ignore[arg-type]
        if not born:
            (tmp_path / "go").touch()
            born.append(pid("born"))
        return found

    monkeypatch.setattr(processes, "descendants", scan_and_let_be_born)
    processes.sweep(os.getpid(), spare=frozenset({spared.pid}))
    assert running(born[0])
    monkeypatch.undo()
    processes.sweep(os.getpid())
    for child in (spared, other):
        child.wait()


def test_a_sweep_ends_what_forks_faster_than_it_looks(tmp_path: Path) -> None:
    child, pid = shell(tmp_path, "i=0; while [ $i -lt 300 ]; do setsid sleep 1000 & echo $i > n$i; i=$((i+1)); done")
    pid("n3")
    processes.sweep(os.getpid(), timeout_s=10)
    child.wait()
    assert processes.descendants(os.getpid()) == []


def test_orphans_that_have_ended_are_reaped_and_own_children_are_not(tmp_path: Path) -> None:
    """A subreaper that does not would collect a zombie for each background command of a tool."""
    processes.become_subreaper()
    own = subprocess.Popen(["/bin/true"])
    child, pid = shell(tmp_path, "(echo $$ > x; true) & sleep 0.05 & echo $! > orphan; exit 0")
    orphan = pid("orphan")
    child.wait()
    wait_for(lambda: not running(orphan) and not running(own.pid))
    assert exists(orphan)
    processes.reap_orphans(frozenset({own.pid}))
    assert not exists(orphan) and exists(own.pid)
    assert own.wait() == 0


def test_a_process_whose_first_thread_has_ended_is_swept_whole() -> None:
    """The leader is a zombie already, while another thread holds the process's files and their locks."""
    code = (
        "import ctypes, platform, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print('up', flush=True)\n"
        "ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[platform.machine()], 0)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"up\n"
        stat = Path(f"/proc/{child.pid}/stat")
        deadline = time.monotonic() + 10
        while b") Z" not in stat.read_bytes():
            assert time.monotonic() < deadline
        swept = processes.sweep(os.getpid())
    assert child.pid in [process.pid for process in swept]
    assert not stat.exists()
    child.wait()


def test_a_tree_is_ended_from_outside_what_its_parts_start_meanwhile_included(tmp_path: Path) -> None:
    """The tree is stopped first, or it would start the next while the last is sought; then what it adopts is found."""
    code = (
        "from codex_pool.runtime import processes\nimport os, subprocess\n"
        "processes.become_subreaper()\n"
        "subprocess.Popen(['/bin/sh', '-c', '(setsid sleep 1000 &) ; echo $$ > up; sleep 1000'])\n"
        "while True: subprocess.Popen(['sleep', '1000']); open('n', 'a').write('.'); __import__('time').sleep(0.002)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_for(lambda: (tmp_path / "up").exists() and (tmp_path / "n").exists())
    root = processes.identify(child.pid)
    assert root is not None
    assert processes.end_tree(root, 10.0)
    assert child.wait(10) == -signal.SIGKILL
    assert processes.descendants(os.getpid()) == []
    assert not processes.end_tree(root, 10.0)


def test_the_memory_of_a_process() -> None:
    code = "import time; held = b'x' * 50_000_000; print('up', flush=True); time.sleep(1000)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    known = processes.identify(child.pid)
    assert known is not None and child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"up\n"
    assert 50_000_000 < (processes.resident_bytes(known) or 0) < 200_000_000
    assert processes.resident_bytes(ProcessId(known.pid, known.start_ticks + 1)) is None
    child.kill()
    child.wait()
    assert processes.resident_bytes(known) is None


def test_memory_is_pss_where_the_kernel_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    me = processes.identify(os.getpid())
    assert me is not None
    pss, rss = processes.memory(me), processes.resident_bytes(me)
    assert pss is not None and pss.is_pss and rss is not None and 0 < pss.size_bytes <= rss * 1.1
    assert processes.memory(ProcessId(me.pid, me.start_ticks + 1)) is None

    def refuses(path: str, *arguments: str) -> object:
        if path.endswith("smaps_rollup"):
            raise PermissionError(path)
        return open(path, *arguments)

    monkeypatch.setattr(processes, "open", refuses, raising=False)
    resident = processes.memory(me)
    assert resident is not None and not resident.is_pss and resident.size_bytes > pss.size_bytes / 2


@pytest.mark.parametrize("has_children_files", [True, False])
def test_a_tree_has_parents_and_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_children_files: bool
) -> None:
    if not has_children_files:
        monkeypatch.setattr(os.path, "exists", lambda path: False)
    # A thread that has started a child and ended leaves it to the others.
    code = (
        "import subprocess, threading, time\n"
        "def run():\n"
        "    own = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "    open('own', 'w').write(str(own.pid))\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join(); time.sleep(1000)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_for(lambda: (tmp_path / "own").exists() and (tmp_path / "own").read_text())
    own = int((tmp_path / "own").read_text())
    known = processes.identify(child.pid)
    below = {each.id.pid: each for each in processes.tree(os.getpid())}
    assert below[child.pid].id == known and below[child.pid].parent == os.getpid()
    assert (below[own].parent, below[own].session) == (child.pid, own)
    assert [*below].index(child.pid) < [*below].index(own)
    assert below[child.pid].session == os.getsid(0)
    processes.sweep(os.getpid())
    assert processes.tree(child.pid) == []
    child.wait()
