"""One cell of the table, driven: a pool in the wanted phase, the fault, what the caller sees, and that nobody else did.

    starting   one worker; its app-server waits at a gate, then the fault, then the gate is opened
    idle       two workers; the caller's thread has had a turn; a turn of a bystander runs on the other worker
    mid-turn   the same with a turn of the caller running, which waits at the gate before its end
    draining   the same with the worker of that turn being recycled: it takes nothing new and waits for the turn

What somebody sees is one string: `completed`, `interrupted`, or `KIND: MESSAGE`, where KIND is `lost`, `stalled` or
`failed` of a turn, and the exception's name of everything else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from codex_app_server import AppServerConfig, Codex, Thread, TurnFailedError, TurnHandle
from codex_app_server.testing import null_app_server
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool
from codex_pool.protocol import wire
from codex_pool.runtime import processes

from .clients import RawClient, half_a_frame, victim
from .gateway import Caller, drive_gateway
from .table import Cell, Run, Todo

INJECT = Path(__file__).parent / "inject"
LIMIT_S = 60.0
CLOSE_LIMIT_S = 40.0
# A pool that is not ready gives up after 90 s, and has then to be ended.
START_LIMIT_S = 150.0

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP, "SIGTERM": signal.SIGTERM}
LONG_LINE_BYTES = 100 * 1024 * 1024
FLOOD_BYTES = 50 * 1024 * 1024
IDS = '"threadId":"$THREAD","turnId":"$TURN","itemId":"i"'
BAD_UTF8 = f'{{"method":"item/agentMessage/delta","params":{{{IDS},"delta":"\xff"}}}}\n'
BUSY = {"error": {"code": -32001, "message": "Server overloaded; retry later.", "data": None}}

# What a null app-server does when it gets SIGUSR1.
APP_SERVER_STEPS: dict[str, list[dict[str, Any]]] = {
    "exit 0": [{"exit": 0}],
    "stdout closed": [{"close": True}],
    "stderr flood": [{"stderr": FLOOD_BYTES}],
    "100 MB line": [{"long": LONG_LINE_BYTES}],
    "half a line": [{"half": True}],
    "bad UTF-8": [{"bytes": BAD_UTF8}],
    "duplicate response id": [{"become": {"on": {"*": {"twice": True}}}}],
    "-32001 storm": [{"become": {"on": {"*": [BUSY] * 6 + [{}]}}}],
    "turn never completed": [{"become": {"end": "never", "open_item": False}}],
    "requests never answered": [{"become": {"on": {"*": {"silent": True}}}}],
}
# What one of our own processes does when it is told through its FIFO.
OWN_STEPS: dict[str, list[list[Any]]] = {
    "exit 0": [["exit", 0]],
    "stdout closed": [["close", 1]],
    "stderr flood": [["flood", [2, FLOOD_BYTES, 100]]],
    "100 MB line": [["flood", [1, LONG_LINE_BYTES, 0]], ["write", [1, "\n"]]],
    "half a line": [["write", [1, '{"event":"sl']]],
    "bad UTF-8": [["write", [1, '{"event":"\xff"}\n']]],
}
# These are armed before the turn that meets them.
ARMED_BEFORE = ("duplicate response id", "-32001 storm", "turn never completed")
# A worker is worn after so many finished turns: those of the caller's thread before the one that holds it.
RECYCLE_TURNS = 2


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Ask again until it is true; its value."""
    deadline = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.02)


def seen(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Return what a caller sees of a call."""
    try:
        result = function(*arguments, **options)
    except TurnFailedError as error:
        return f"{error.kind}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return str(getattr(result, "status", "answered"))


class World:
    """A pool of null app-servers, or of real ones on a loopback model, with what is needed to hurt it."""

    def __init__(self, cell: Cell, run: Run, root: Path) -> None:
        self.cell, self.run, self.root = cell, run, root
        self.gate, self.armed, self.starts = root / "gate", root / "armed", root / "starts"
        self.log = root / "pool.log"
        self.chaos = root / "chaos"
        for path in (self.chaos, root / "work"):
            path.mkdir()
        # Of a client that starts the pool is as in the phase idle.
        self.starting = cell.phase == "starting" and cell.target != "client"
        self.executor = ThreadPoolExecutor(8)
        self.report: dict[str, str] = {}
        self.starts.touch()
        # Of the gateway; paths of sockets have 107 characters at most.
        self._directory = tempfile.TemporaryDirectory(prefix="cg-") if cell.target == "gateway" else None
        self.socket = Path(self._directory.name) / "g.sock" if self._directory is not None else None

        self.environ = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(INJECT), os.environ.get("PYTHONPATH")])),
            "CHAOS_DIRECTORY": str(self.chaos),
            "CODEX_HOME": str(root / "home"),
        }

    @contextmanager
    def pool(self) -> Iterator[Pool]:
        """The pool, not started."""
        if self.run.real:
            with LoopbackModel() as model:
                write_loopback_home(self.root / "home", model.base_url)
                config = AppServerConfig(cwd=self.root / "work", env=self.environ)
                yield from self._pool(config)
        else:
            config = null_app_server(**self._scenario())
            config.env, config.cwd = self.environ, self.root / "work"
            yield from self._pool(config)

    def _pool(self, config: AppServerConfig) -> Iterator[Pool]:
        options = dict(self.run.pool)
        if self.cell.phase == "draining":
            options["recycle_turns"] = RECYCLE_TURNS
        if self.socket is not None:
            options["listen_unix"] = self.socket
        pool = Pool(1 if self.starting else 2, config, log_file=self.log, **options)
        try:
            yield pool
        finally:
            self.gate.touch()
            began = time.monotonic()
            pool.close()
            took_s = time.monotonic() - began
            self.executor.shutdown(wait=True)
            if self._directory is not None:
                self._directory.cleanup()
            assert took_s < CLOSE_LIMIT_S, f"closing the pool took {took_s:.1f} s"

    def _scenario(self) -> dict[str, Any]:
        fault, target = self.cell.fault, self.cell.target
        scenario: dict[str, Any] = {
            **({"deltas": 10, "pace_ms": 10, "text": "$NOW "} if target == "gateway" else {}),
            "hold": str(self.gate),
            "when": "wait",
            "generations": str(self.starts),
            "signal": [*self._steps(), {"touch": str(self.armed)}],
        }
        first: dict[str, Any] = {}
        if self.starting:
            first["start"] = [{"wait": str(self.gate)}]
            if target == "app-server":
                match fault:
                    case "duplicate response id":
                        first["on"] = {"initialize": {"twice": True}}
                    case "-32001 storm":
                        first["on"] = {"initialize": BUSY}
                    case "requests never answered":
                        first["on"] = {"initialize": {"silent": True}}
                    case _:
                        first["start"] += self._steps()
        return {**scenario, "scenarios": [first, {}], **self.run.scenario}

    def _steps(self) -> list[dict[str, Any]]:
        """Return what a null app-server does to be at fault."""
        steps = APP_SERVER_STEPS.get(self.cell.fault, [])
        if self.cell.fault == "half a line" and self.cell.phase != "idle":
            return [*steps, {"exit": 0}]
        return steps

    # Who and where.

    def pid(self, pool: Pool, row: dict[str, Any] | None) -> int:
        """The target's."""
        assert pool.supervisor_pid is not None
        match self.cell.target:
            case "supervisor":
                return pool.supervisor_pid
            case "broker" | "gateway":
                return self._below(pool, f"codex_pool.{self.cell.target}".encode())
            case "worker":
                return int(row["pid"]) if row is not None else self._below(pool, b"codex_pool.worker")
            case "app-server":
                if row is not None:
                    return int(row["appServerPid"])
                return int(wait_until(lambda: self.starts.read_text().split(), "the app-server starts")[0])
        raise AssertionError(self.cell.target)

    def _below(self, pool: Pool, words: bytes) -> int:
        def find() -> int | None:
            assert pool.supervisor_pid is not None
            for process in processes.descendants(pool.supervisor_pid):
                with suppress(OSError):
                    if words in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                        return process.pid
            return None

        return int(wait_until(find, f"a process {words!r}"))

    # The fault.

    def inject(self, pool: Pool, row: dict[str, Any] | None) -> None:
        """Do it; on return it is done, or under way where it ends or stops the process."""
        fault, target = self.cell.fault, self.cell.target
        pid = self.pid(pool, row)
        if fault in SIGNALS:
            os.kill(pid, SIGNALS[fault])
        elif target == "app-server":
            if self.cell.phase == "starting":
                return  # It stands in the scenario of the first one to start.
            os.kill(pid, signal.SIGUSR1)
            self._wait_done(pid)
        elif fault == "requests never answered":
            wait_until(lambda: (self.chaos / f"{pid}.fifo").exists(), "the process can be hurt")
            os.kill(pid, signal.SIGUSR2)
        else:
            self._tell(pid, [*OWN_STEPS[fault], ["touch", str(self.armed)]])
            self._wait_done(pid)

    @staticmethod
    def wait(condition: Callable[[], Any], what: str) -> None:
        """Ask again until it is true."""
        wait_until(condition, what)

    def _wait_done(self, pid: int) -> None:
        wait_until(lambda: self.armed.exists() or processes.identify(pid) is None, "the fault, or the end of it")

    def _tell(self, pid: int, steps: list[list[Any]]) -> None:
        fifo = self.chaos / f"{pid}.fifo"

        def opened() -> int | None:
            with suppress(OSError):
                return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            return None

        descriptor = wait_until(opened, "the process listens to its FIFO")
        try:
            os.write(descriptor, "".join(json.dumps(step) + "\n" for step in steps).encode())
        finally:
            os.close(descriptor)

    # Turns.

    def turn(self, thread: Thread, *, hang: bool = False) -> tuple[TurnHandle, Future[str]]:
        """A turn that runs until the gate is opened, on the real binary some seconds; and what will be seen of it."""
        handle = thread.turn("[[hang 2]]" if hang else "[[text chars=100 deltas=20 pace_ms=200]] wait")
        first = threading.Event()
        result: Future[str] = self.executor.submit(self._follow, handle, first)
        assert first.wait(LIMIT_S), "the turn runs"
        return handle, result

    @staticmethod
    def _follow(handle: TurnHandle, first: threading.Event) -> str:
        def read() -> Any:
            from codex_app_server.results import TurnCollector

            collector = TurnCollector(handle.id)
            for notification in handle.stream():
                if notification.method == "item/agentMessage/delta":
                    first.set()
                collector.add(notification)
            return collector.result()

        try:
            return seen(read)
        finally:
            first.set()

    def history(self, thread: Thread) -> str:
        """A turn that ends at once; the worker that ran it."""
        worker = ""
        for notification in thread.turn("hello").stream():
            if notification.method == "pool/turn/assigned":
                worker = notification.params["worker"]
        return worker


def status(codex: Codex) -> dict[str, Any]:
    found: dict[str, Any] = codex.client.request("pool/status")
    return found


def rows(codex: Codex) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = status(codex)["workers"]
    return found


def row_of(codex: Codex, worker: str) -> dict[str, Any]:
    return next(row for row in rows(codex) if row.get("worker") == worker)


def draining(codex: Codex) -> list[str]:
    return [row["worker"] for row in status(codex)["draining"]]


def present(codex: Codex) -> set[str | None]:
    """The workers that the pool has, those that drain too."""
    return {row.get("worker") for row in rows(codex)} | set(draining(codex))


def drive(cell: Cell, root: Path) -> dict[str, str]:
    """Drive a cell; what was seen, by who or what. Raises AssertionError where it is not what the table says."""
    run = cell.verdict.run if isinstance(cell.verdict, Todo) else cell.verdict
    assert isinstance(run, Run)
    world = World(cell, run, root)
    try:
        with world.pool() as pool:
            if cell.target == "client":
                _with_a_client(world, pool)
            elif world.starting:
                _starting(world, pool)
            elif world.socket is not None:
                pool.start()
                drive_gateway(world, pool, world.socket, seen)
            else:
                _running(world, pool)
            _check(world, pool)
    except BaseException:
        print(f"{cell}\nseen: {json.dumps(world.report, indent=2)}", file=sys.stderr)
        print(world.log.read_text(errors="replace")[-6000:] if world.log.exists() else "no log", file=sys.stderr)
        raise
    return world.report


def _starting(world: World, pool: Pool) -> None:
    start = world.executor.submit(seen, pool.start)
    wait_until(lambda: pool.supervisor_pid is not None, "the supervisor is there")
    # Everything is there and waits for the app-server.
    wait_until(lambda: world.starts.read_text().split() or start.done(), "the app-server starts")
    world.inject(pool, None)
    world.gate.touch()
    world.report["start"] = start.result(START_LIMIT_S)
    if world.report["start"] == "answered":
        with pool.connect() as codex:
            world.report["then"] = seen(codex.thread_start().run, "after")
            world.report["restarts"] = str(sum(row["restarts"] for row in rows(codex)))
        if world.socket is not None:
            world.report["then"] = Caller(world.socket).run("after")


def _running(world: World, pool: Pool) -> None:
    cell, run = world.cell, world.run
    pool.start()
    with pool.connect(name="caller") as caller, pool.connect(name="bystander") as bystander:
        thread, other = caller.thread_start(), bystander.thread_start()
        worker, other_worker = world.history(thread), world.history(other)
        assert worker != other_worker
        row = row_of(caller, worker)
        _, others = world.turn(other)
        turn: Future[str] | None = None
        if cell.phase == "draining":
            world.history(thread)
        if cell.target == "app-server" and cell.fault in ARMED_BEFORE:
            world.inject(pool, row)
        if cell.phase != "idle":
            # Before anything is given up: the successor of a worn worker is not there yet.
            _, turn = world.turn(thread, hang=run.hang)
        if cell.phase == "draining":
            wait_until(lambda: worker in draining(caller), "the worker drains")
        if cell.target != "app-server" or cell.fault not in ARMED_BEFORE:
            world.inject(pool, row)
        if run.request is not None:
            params = {"thread_id": thread.id, "name": "a name"}
            world.report["request"] = seen(
                caller.client.request, "thread/name/set", params, timeout_s=run.request_timeout_s
            )
        if run.open_gate_first:
            world.gate.touch()
        if turn is not None:
            world.report["turn"] = turn.result(LIMIT_S)
        if run.restarts and cell.target in ("app-server", "worker"):
            wait_until(lambda: worker not in present(caller), "its death is known")
        if run.failure is not None:
            # Else the bystander's turn might end before the pool does.
            assert pool.wait_ended(LIMIT_S)
        world.gate.touch()
        world.report["bystander"] = others.result(LIMIT_S)
        world.report["then"] = seen(thread.run, "after")
        if world.report["then"] == "completed":
            if cell.phase == "draining" and run.drains:
                wait_until(lambda: worker not in present(caller), "it has drained, or died")
            wait_until(lambda: all(row["state"] == "ready" for row in rows(caller)), "all workers are ready again")
            world.report["restarts"] = str(sum(row["restarts"] for row in rows(caller)))


def _with_a_client(world: World, pool: Pool) -> None:
    """A client at fault, beside a bystander whose turn runs; what the pool makes of it."""
    cell, report = world.cell, world.report
    pool.start()
    with pool.connect(name="bystander") as bystander:
        other = bystander.thread_start()
        world.history(other)
        _, others = world.turn(other)
        if cell.fault in SIGNALS or cell.fault == "exit 0":
            with victim(pool.endpoint, cell.phase, {**os.environ, **world.environ}) as process:
                if cell.phase == "draining":
                    wait_until(lambda: draining(bystander), "its worker drains")
                if cell.fault in SIGNALS:
                    process.send_signal(SIGNALS[cell.fault])
                else:
                    world._tell(process.pid, OWN_STEPS["exit 0"])
                wait_until(lambda: "victim" not in status(bystander)["clients"], "its session is over")
                report["victim"] = "gone"
                if cell.phase in ("mid-turn", "draining"):
                    wait_until(lambda: status(bystander)["turns"]["interrupted"] == 1, "its turn is interrupted")
                    report["turn"] = "interrupted"
        else:
            _raw_client(world, pool, bystander)
        wait_until(lambda: status(bystander)["turns"]["running"] == 1, "only the bystander's turn runs")
        world.gate.touch()
        report["bystander"] = others.result(LIMIT_S)
        report["then"] = seen(other.run, "after")
        report["restarts"] = str(sum(row["restarts"] for row in rows(bystander)))


def _raw_client(world: World, pool: Pool, bystander: Codex) -> None:
    """Send what no client of ours would write."""
    cell, report = world.cell, world.report
    if cell.phase == "starting":
        if cell.fault == "half a line":
            with half_a_frame(pool.endpoint.removeprefix("ipc://")):
                report["victim"] = seen(lambda: pool.connect(name="after it").close())
        return
    with RawClient(pool.endpoint) as raw:
        thread_id = raw.request("thread/start", {})["result"]["thread"]["id"]
        start = {"threadId": thread_id, "input": [{"type": "text", "text": "ask me, and wait"}]}
        turn_id = None
        if cell.phase == "mid-turn":
            turn_id = raw.request("turn/start", start)["result"]["turn"]["id"]
        match cell.fault:
            case "100 MB line":
                params = {"threadId": thread_id, "name": "x" * LONG_LINE_BYTES}
                report["victim"] = "answered" if "result" in raw.request("thread/name/set", params) else "refused"
            case "half a line":
                raw.send(wire.Call(), b'{"id":"half","method":"thread/na')
                line = raw.line(lambda line: "error" in line, "an error")
                report["victim"] = f"error {line['error']['code']}: {line['error']['message']}"
            case "bad UTF-8":
                raw.send(wire.Call(), b'{"id":"bad","method":"thread/name/set","params":{"name":"\xff"}}')
                line = raw.line(lambda line: "error" in line, "an error")
                report["victim"] = f"error {line['error']['code']}: {line['error']['message']}"
            case "duplicate response id" | "-32001 storm" | "requests never answered":
                ask = raw.line(lambda line: line.get("method") == "item/commandExecution/requestApproval", "a question")
                if cell.fault == "requests never answered":
                    return  # It goes without an answer.
                answers = [{"result": {"decision": decision}} for decision in ("accept", "decline")]
                if cell.fault == "-32001 storm":
                    answers = [{"error": {"code": -32001, "message": "busy"}}] * 50
                for answer in answers:
                    raw.send(wire.Call(), json.dumps({"id": ask["id"], **answer}).encode())
                items = raw.line(lambda line: line.get("method") == "item/completed", "the turn's message")
                report["victim"] = items["params"]["item"]["text"]
        if turn_id is not None and "ask" not in world.run.scenario:
            raw.request("turn/interrupt", {"threadId": thread_id, "turnId": turn_id})
        if turn_id is not None:
            end = raw.line(lambda line: line.get("method") == "turn/completed", "the turn's end")
            report["turn"] = end["params"]["turn"]["status"]


def _check(world: World, pool: Pool) -> None:
    run, report = world.run, world.report
    expected = {
        "start": run.start if world.starting else None,
        "request": run.request,
        "turn": run.turn,
        "then": run.then,
        "bystander": run.bystander if not world.starting else None,
        "restarts": None if run.restarts is None else str(run.restarts),
        "victim": run.victim,
    }
    if run.failure is not None:
        assert pool.wait_ended(LIMIT_S)
        report["failure"], expected["failure"] = str(pool.failure), run.failure
    for what, pattern in expected.items():
        if pattern is not None:
            assert what in report, f"{what} was not seen"
            assert re.match(pattern, report[what], re.DOTALL), f"{what}: {report[what]!r} is not {pattern!r}"
    for words in run.log:
        said = re.compile(words)
        # What ends a process by the ladder takes a moment.
        wait_until(lambda said=said: said.search(world.log.read_text(errors="replace")), f"the log says {words!r}", 15)
