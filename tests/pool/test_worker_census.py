"""Processes below a worker: app-server, MCP servers, tool commands, and commands that have outlived their turns."""

from __future__ import annotations

from typing import Any

from worker_bench import Bench

from codex_pool.protocol import wire
from codex_pool.runtime.processes import Memory, ProcessId, TreeProcess
from codex_pool.worker.census import NONE_AFTER_S, SETTLE_S, Census, ProcessSnapshot

WORKER, APP_SERVER = 10, 11
MIB = 1 << 20


def process(pid: int, parent: int, session: int) -> TreeProcess:
    return TreeProcess(ProcessId(pid, pid * 100), parent, session)


APP = process(APP_SERVER, WORKER, APP_SERVER)


def look(*below: TreeProcess, memory: dict[int, int] | None = None, rss: bool = False) -> ProcessSnapshot:
    sizes = {ProcessId(pid, pid * 100): Memory(size * MIB, is_pss=not rss) for pid, size in (memory or {}).items()}
    return ProcessSnapshot([APP, *below], sizes, 0, 0)


class Counted:
    """A census with a clock, and turns by their numbers."""

    def __init__(self, *at_first: TreeProcess) -> None:
        self.census = Census(WORKER, APP_SERVER)
        self.now, self.begun, self.oldest = 50.0, 0, 1
        assert self.take(*at_first) == (0, 0, 0)

    def take(self, *below: TreeProcess, after_s: float = 0.0, **options: Any) -> tuple[int, int, int]:
        """Servers, left commands, commands."""
        figures = self.figures(*below, after_s=after_s, **options)
        return figures.servers, figures.left, figures.commands

    def figures(self, *below: TreeProcess, after_s: float = 0.0, **options: Any) -> wire.ProcessTree:
        self.now += after_s
        found = self.census.take(look(*below, **options), begun=self.begun, oldest=self.oldest, now=self.now)
        assert found is not None
        return found


SERVER = process(20, APP_SERVER, APP_SERVER)
COMMAND, BELOW_IT = process(30, APP_SERVER, 30), process(31, 30, 30)


def test_what_is_in_the_app_servers_session_is_a_server_and_a_command_is_not() -> None:
    assert Counted().take(SERVER, COMMAND, BELOW_IT) == (1, 0, 2)


def test_all_below_a_server_is_the_servers_whatever_session_it_makes() -> None:
    launcher, server = process(21, 20, APP_SERVER), process(22, 21, 22)
    assert Counted().take(SERVER, launcher, server) == (3, 0, 0)


def test_a_launcher_of_the_app_server_counts_as_the_app_server() -> None:
    native = process(12, APP_SERVER, APP_SERVER)
    counted = Counted(native)
    assert counted.take(native, process(20, 12, APP_SERVER), process(30, 12, 30)) == (1, 0, 1)
    counted = Counted(native)
    figures = counted.figures(native, memory={WORKER: 1, APP_SERVER: 2, 12: 4})
    assert figures.memory_bytes == 7 * MIB


def test_a_command_counts_once_its_turn_is_over() -> None:
    counted = Counted()
    counted.begun = counted.oldest = 1
    assert counted.take(COMMAND, BELOW_IT) == (0, 0, 2)
    assert counted.take(COMMAND, after_s=60) == (0, 0, 1), "a long command of a long turn"
    counted.begun, counted.oldest = 2, 2
    assert counted.take(COMMAND) == (0, 1, 0)
    # Its parent is gone, and it has come to the worker.
    assert counted.take(process(30, WORKER, 30)) == (0, 1, 0)
    assert counted.take() == (0, 0, 0)


def test_a_command_may_belong_to_any_turn_that_ran_when_it_was_seen() -> None:
    counted = Counted()
    counted.begun, counted.oldest = 3, 2
    counted.take(COMMAND)
    counted.begun, counted.oldest = 9, 3
    assert counted.take(COMMAND, after_s=60) == (0, 0, 1)
    counted.oldest = 4
    assert counted.take(COMMAND) == (0, 1, 0)


def test_a_turn_that_the_worker_hears_of_after_its_command_is_the_commands_all_the_same() -> None:
    counted = Counted()
    assert counted.take(COMMAND) == (0, 0, 1)
    counted.begun = counted.oldest = 1
    assert counted.take(COMMAND, after_s=SETTLE_S / 2) == (0, 0, 1)
    assert counted.take(COMMAND, after_s=SETTLE_S) == (0, 0, 1)


def test_a_command_without_any_turn_counts_after_a_moment() -> None:
    """Login shells for snapshots are over by then."""
    counted = Counted()
    assert counted.take(COMMAND, after_s=SETTLE_S / 2) == (0, 0, 1)
    assert counted.take(COMMAND, after_s=SETTLE_S) == (0, 1, 0)


def test_a_server_that_loses_its_parent_stays_a_server() -> None:
    counted = Counted()
    server = process(21, 20, 21)
    counted.take(SERVER, server)
    assert counted.take(process(21, WORKER, 21), after_s=60) == (1, 0, 0)


def test_a_pid_that_is_used_again_is_another_process() -> None:
    counted = Counted()
    counted.take(COMMAND)
    counted.take(COMMAND, after_s=60)
    again = TreeProcess(ProcessId(30, 1), APP_SERVER, 30)
    counted.begun = counted.oldest = 1
    assert counted.take(again) == (0, 0, 1)


def test_memory_of_commands_is_apart_while_their_turn_runs() -> None:
    counted = Counted()
    counted.begun = counted.oldest = 1
    memory = {WORKER: 1, APP_SERVER: 2, 20: 4, 30: 8, 31: 16}
    counted.take(SERVER, COMMAND, BELOW_IT)
    figures = counted.figures(SERVER, COMMAND, BELOW_IT, memory=memory)
    assert (figures.memory_bytes, figures.command_memory_bytes, figures.is_pss) == (7 * MIB, 24 * MIB, True)
    figures = counted.figures(SERVER, COMMAND, after_s=60, memory=memory)
    assert figures.command_memory_bytes == 8 * MIB, "what has ended since its memory was read has none"
    counted.begun, counted.oldest = 1, 2
    figures = counted.figures(SERVER, COMMAND, memory=memory, rss=True)
    assert (figures.memory_bytes, figures.command_memory_bytes, figures.is_pss) == (15 * MIB, 0, False)


def test_a_look_without_the_app_server_tells_nothing() -> None:
    counted = Counted()
    counted.take(SERVER)
    assert counted.census.take(ProcessSnapshot([], {}, 0, 0), begun=0, oldest=1, now=1.0) is None
    assert counted.take(SERVER) == (1, 0, 0)


def test_what_a_thread_brings_is_known_once_its_servers_have_settled() -> None:
    census, now = Census(WORKER, APP_SERVER), 50.0

    def take(after_s: float, *below: TreeProcess, loads: int, threads: int) -> tuple[int, int, int | None]:
        nonlocal now
        now += after_s
        found = census.take(ProcessSnapshot([APP, *below], {}, loads, threads), begun=0, oldest=1, now=now)
        assert found is not None
        return found.settled, found.young, found.each

    assert take(0, loads=0, threads=0) == (0, 0, None)
    launcher, started = process(20, APP_SERVER, APP_SERVER), process(21, 20, APP_SERVER)
    assert take(9, launcher, loads=1, threads=1) == (0, 1, None), "more may come"
    # A server settles with its launcher.
    assert take(SETTLE_S, launcher, started, loads=2, threads=2) == (2, 1, 2)
    assert take(SETTLE_S, launcher, started, loads=2, threads=2) == (2, 0, 1)
    # One thread was archived.
    assert take(SETTLE_S, launcher, started, loads=2, threads=1) == (2, 0, 2)


def test_that_threads_bring_nothing_is_known_soon() -> None:
    census = Census(WORKER, APP_SERVER)
    for now, loads, each in ((50.0, 0, None), (50.0, 1, None), (50.0 + NONE_AFTER_S, 1, 0)):
        found = census.take(ProcessSnapshot([APP], {}, loads, loads), begun=0, oldest=1, now=now)
        assert found is not None and found.each == each


def test_threads_that_were_archived_bring_nothing_any_more() -> None:
    census = Census(WORKER, APP_SERVER)
    for now, loads, threads, young in ((50.0, 0, 0, 0), (50.5, 40, 3, 3), (51.0, 80, 0, 0), (53.5, 80, 0, 0)):
        found = census.take(ProcessSnapshot([APP], {}, loads, threads), begun=0, oldest=1, now=now)
        assert found is not None and found.young == young


# In the worker.


def test_the_broker_is_told_with_the_threads_that_were_loaded_since() -> None:
    bench = Bench(counts=True).start()
    assert bench.new_broker().tree == wire.ProcessTree()
    bench.apply(bench.core.process_snapshot(look(), bench.now))
    bench.thread("t1")
    seen_at = bench.core.processes.thread_counts
    assert seen_at == (1, 1)
    bench.thread("t2")
    bench.apply(bench.core.process_snapshot(ProcessSnapshot([APP, SERVER], {}, *seen_at), bench.now))
    assert bench.routed(wire.ProcessTree)[-1] == wire.ProcessTree(1, threads=1, young=1, fresh=1)
    bench.thread("t3")
    holdings = bench.new_broker()
    assert holdings.tree is not None and holdings.tree.fresh == 2
    for name in ("t1", "t2", "t3"):
        bench.dispatch("thread/archive", {"threadId": name})
        bench.answer(bench.request("thread/archive"), {})
    holdings = bench.new_broker()
    assert holdings.tree is not None and holdings.tree.fresh == 0, "they have taken their servers with them"


def test_a_worker_without_figures_says_so() -> None:
    assert Bench().start().new_broker().tree is None


def test_commands_are_told_from_what_turns_have_left() -> None:
    bench = Bench(counts=True).start()
    bench.thread("t1")
    bench.apply(bench.core.process_snapshot(look(), bench.now))
    bench.turn("u1")
    bench.apply(bench.core.process_snapshot(look(COMMAND), bench.now))
    bench.tick(30)
    bench.apply(bench.core.process_snapshot(look(COMMAND), bench.now))
    assert bench.routed(wire.ProcessTree)[-1].commands == 1
    bench.complete("u1")
    bench.turn("u2")
    bench.apply(bench.core.process_snapshot(look(COMMAND), bench.now))
    assert (bench.routed(wire.ProcessTree)[-1].commands, bench.routed(wire.ProcessTree)[-1].left) == (0, 1)
