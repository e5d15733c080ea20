"""The pool on the real binary: many turns at once, and everything that can die."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zmq

from codex_app_server import (
    AppServerConfig,
    Codex,
    JsonRpcError,
    Thread,
    ThreadLostError,
    TransportClosedError,
    TurnFailedError,
    TurnHandle,
)
from codex_app_server.results import TurnCollector
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool, PoolStartError, aconnect, connect
from codex_pool.protocol import wire
from codex_pool.runtime import processes

pytestmark = pytest.mark.real

LIMIT_S = 20.0
GONE_LIMIT_S = 10.0


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = LIMIT_S) -> Any:
    """Ask again until it is true; its value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def token(prefix: str = "token") -> str:
    return f"{prefix}-{secrets.token_hex(6)}"


def status(codex: Codex) -> dict[str, Any]:
    result: dict[str, Any] = codex.client.request("pool/status")
    return result


def rows(codex: Codex) -> list[dict[str, Any]]:
    workers: list[dict[str, Any]] = status(codex)["workers"]
    return workers


def all_ready(codex: Codex, *, restarts: int = 0) -> list[dict[str, Any]]:
    """The workers, once all are ready and so many have been replaced."""

    def ready() -> list[dict[str, Any]]:
        found = rows(codex)
        good = all(row["state"] == "ready" for row in found) and sum(row["restarts"] for row in found) >= restarts
        return found if good else []

    found: list[dict[str, Any]] = wait_until(ready, "all workers ready")
    return found


def text_of(turn: TurnHandle) -> str:
    """The text of a turn, out of its deltas; every notification must be of this turn."""
    parts = []
    for notification in turn.stream():
        params = notification.params
        turn_id = params.get("turnId") or params.get("turn", {}).get("id")
        assert turn_id in (None, turn.id), notification.method
        if notification.method == "item/agentMessage/delta":
            parts.append(params["delta"])
    return "".join(parts)


def methods_of(turn: TurnHandle) -> list[str]:
    return [notification.method for notification in turn.stream()]


def sleeping(mark: str) -> list[int]:
    """Pids of the `sleep` commands with this argument, wherever in the system."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0") if entry.isdigit() else []
            if mark.encode() in words and b"sleep" in words[0]:
                found.append(int(entry))
    return found


def broker_of(pool: Pool) -> int:
    assert pool.supervisor_pid is not None
    (broker,) = [
        process.pid
        for process in processes.descendants(pool.supervisor_pid)
        if b"codex_pool.broker" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    ]
    return broker


@dataclass
class Shared:
    model: LoopbackModel
    pool: Pool
    work: Path


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    """A pool of two for the tests that kill nothing."""
    root = Path(tempfile.mkdtemp(prefix="cp-shared-", dir="/tmp"))
    below = set(processes.descendants(os.getpid()))
    (root / "work").mkdir()
    with LoopbackModel() as model:
        write_loopback_home(root / "home", model.base_url)
        config = AppServerConfig(cwd=root / "work", env={"CODEX_HOME": str(root / "home")})
        endpoint = f"ipc://{root / 'run' / 's.sock'}"
        with Pool(2, config, turns_per_worker=32, endpoint=endpoint, log_file=root / "log") as pool:
            yield Shared(model, pool, root / "work")
        assert not [path for path in root.rglob("*") if path.is_socket()]
        assert set(processes.descendants(os.getpid())) <= below
    shutil.rmtree(root)


@pytest.fixture
def codex(shared: Shared) -> Iterator[Codex]:
    with shared.pool.connect() as codex:
        yield codex


# Many turns.


def test_turns_of_one_client_run_at_once_and_each_stream_holds_only_its_own(shared: Shared, codex: Codex) -> None:
    texts = [" ".join([token()] * 10) for _ in range(8)]
    turns = [codex.thread_start().turn(f'[[text "{text}" deltas=20 pace_ms=60]]') for text in texts]
    with ThreadPoolExecutor(len(turns)) as executor:
        assert list(executor.map(text_of, turns, timeout=LIMIT_S)) == texts
    records = [record for record in shared.model.requests if any(text in record.prompt for text in texts)]
    assert len(records) == 8
    ended = [record.ended_at for record in records if record.ended_at is not None]
    assert max(record.received_at for record in records) < min(ended), "they ran side by side"
    held = codex.client.held
    assert not any(held.values()), held


def test_clients_do_not_see_each_others_turns(shared: Shared) -> None:
    def client(number: int) -> tuple[list[str], list[str], str]:
        with shared.pool.connect(name=f"client {number}") as codex:
            mine = [" ".join([token(f"client{number}")] * 5) for _ in range(3)]
            turns = [codex.thread_start().turn(f'[[text "{text}" deltas=10 pace_ms=20]]') for text in mine]
            texts = [text_of(turn) for turn in turns]
            rest = []
            with contextlib.suppress(TimeoutError):
                while (notification := codex.client.next_notification(0.05)) is not None:
                    rest.append(notification.method + json.dumps(notification.params))
            return mine, texts, "".join(rest)

    with ThreadPoolExecutor(4) as executor:
        for number, (mine, texts, rest) in enumerate(executor.map(client, range(4), timeout=LIMIT_S)):
            assert texts == mine
            for other in range(4):
                assert other == number or f"client{other}-" not in rest, rest


def test_a_turn_that_ends_at_once_is_whole(codex: Codex) -> None:
    thread = codex.thread_start()
    for _ in range(15):
        text = token()
        methods, turn = [], thread.turn(f'[[text "{text}" deltas=1]]')
        final = None
        for notification in turn.stream():
            methods.append(notification.method)
            if notification.method == "item/completed" and notification.params["item"]["type"] == "agentMessage":
                final = notification.params["item"]["text"]
        assert methods[0] == "pool/turn/assigned" and methods[-1] == "turn/completed" and final == text


def test_asyncio_clients_too(shared: Shared) -> None:
    async def run() -> list[str | None]:
        codex = await shared.pool.aconnect()
        async with codex:

            async def one(text: str) -> str | None:
                thread = await codex.thread_start()
                return (await thread.run(f'[[text "{text}"]]')).final_response

            return await asyncio.wait_for(asyncio.gather(*(one(text) for text in texts)), LIMIT_S)

    texts = [token() for _ in range(8)]
    assert asyncio.run(run()) == texts


def test_steering_reaches_the_model(shared: Shared, codex: Codex) -> None:
    steered = token("steered")
    turn = codex.thread_start().turn(f'[[text "{token()} and more" deltas=20 pace_ms=50]]')
    shared.model.wait_for(lambda record: record.deltas_sent and record.turn_id == turn.id)
    turn.steer(steered)
    turn.run()
    record = shared.model.wait_for(lambda record: any(steered in text for text in record.user_texts))
    assert record.turn_id == turn.id


def test_an_interrupt_closes_the_connection_to_the_model(shared: Shared, codex: Codex) -> None:
    prompt = f"{token()} [[hang 3]]"
    turn = codex.thread_start().turn(prompt)
    shared.model.wait_for(lambda record: record.prompt == prompt and record.outcome == "hanging")
    turn.interrupt()
    assert turn.run().status == "interrupted"
    shared.model.wait_for(lambda record: record.prompt == prompt and record.outcome == "disconnected")


def test_an_interrupt_right_after_the_start(shared: Shared, codex: Codex) -> None:
    for _ in range(5):
        turn = codex.thread_start().turn(f"{token()} [[hang]]")
        turn.interrupt()
        assert turn.run().status == "interrupted"


def test_64_turns_at_once_are_spread_and_threads_stay_where_they_are(shared: Shared, codex: Codex) -> None:
    mark = token()
    with ThreadPoolExecutor(16) as executor:
        threads = list(executor.map(lambda _: codex.thread_start(), range(64), timeout=LIMIT_S))
        turns = list(executor.map(lambda thread: thread.turn(f"{mark} [[hang]]"), threads, timeout=LIMIT_S))
        shared.model.wait_for(lambda record: mark in record.prompt and record.outcome == "hanging", LIMIT_S, count=64)
        assert status(codex)["turns"]["running"] == 64
        assert [row["turns"] for row in rows(codex)] == [32, 32]
        list(executor.map(lambda turn: turn.interrupt(), turns, timeout=LIMIT_S))
        assigned = {}
        for turn in turns:
            notifications = list(turn.stream())
            assert notifications[-1].params["turn"]["status"] == "interrupted"
            assigned[turn.thread_id] = notifications[0].params["worker"]
    assert set(assigned.values()) == {row["worker"] for row in rows(codex)}
    for thread in threads[:6]:
        first = next(thread.turn(f'[[text "{mark}"]]').stream())
        assert first.params["worker"] == assigned[thread.id]
    wait_until(lambda: status(codex)["turns"]["running"] == 0, "nothing runs any more")


def test_turns_beyond_the_places_wait_and_turns_of_a_thread_follow_each_other(shared: Shared, codex: Codex) -> None:
    """Turns follow each other whoever starts them: two starts at once would be one turn to the app-server."""
    thread = codex.thread_start()
    thread.run("first")
    text = token()
    with shared.pool.connect() as other, ThreadPoolExecutor(1) as executor:
        same = other.thread_resume(thread.id)
        hanging = thread.turn(f"{token()} [[hang]]")
        second = executor.submit(same.run, f'[[text "{text}"]]')
        wait_until(lambda: status(codex)["turns"]["queued"] == 1 or second.done(), "the second waits")
        assert not second.done()
        assert not any(text in record.prompt for record in shared.model.requests)
        hanging.interrupt()
        assert second.result(LIMIT_S).final_response == text


def test_another_client_goes_on_with_a_thread(shared: Shared) -> None:
    first, second = token("first"), token("second")
    with shared.pool.connect() as one:
        thread = one.thread_start()
        thread.run(f'[[text "{first}"]]')
    with shared.pool.connect() as other:
        assert other.thread_resume(thread.id).run(f'[[text "{second}"]]').final_response == second
    record = shared.model.wait_for(lambda record: second in record.prompt)
    assert any(first in text for text in record.user_texts)


def test_200_threads_at_once_are_all_answered(shared: Shared) -> None:
    """Pipelined straight to an app-server, some of them would never be."""

    async def run() -> tuple[list[str], int]:
        codex = await aconnect(shared.pool.endpoint)
        async with codex:
            starts = asyncio.gather(*(codex.thread_start(ephemeral=True) for _ in range(200)))
            most = 0
            while not starts.done():
                found = await codex.client.request("pool/status")
                most = max([most, *(row["inFlight"] for row in found["workers"])])
                await asyncio.wait([starts], timeout=0.2)
            return [thread.id for thread in await starts], most

    ids, most = asyncio.run(asyncio.wait_for(run(), 60))
    assert len(set(ids)) == 200 and most <= 64


# Who may connect, and what is said.


def test_connecting_to_nothing_says_how_to_start_a_daemon(tmp_path: Path) -> None:
    with pytest.raises(TransportClosedError, match=f"no pool at ipc://{tmp_path}/no.sock.*codex-pool serve"):
        connect(f"ipc://{tmp_path}/no.sock")


def test_an_endpoint_that_is_taken_names_its_holder(shared: Shared, config: AppServerConfig, codex: Codex) -> None:
    with pytest.raises(PoolStartError, match=f"already running .*pid {shared.pool.supervisor_pid}"):
        Pool(1, config, endpoint=shared.pool.endpoint).start()
    assert codex.thread_start().run("still there").status == "completed"


def test_garbage_on_the_sockets_does_not_disturb_a_running_turn(shared: Shared, codex: Codex) -> None:
    text = " ".join([token()] * 20)
    turn = codex.thread_start().turn(f'[[text "{text}" deltas=40 pace_ms=25]]')
    path = shared.pool.endpoint.removeprefix("ipc://")
    frames = [
        [b""],
        [b"\x01\x92\xa5hello\xa1\xff"],
        [os.urandom(300)],
        [os.urandom(100)] * 50,
        [wire.encode(wire.Hello("", "x"))],
        [wire.encode(wire.Register(0, "w9", 1, 1))],
        [wire.encode(wire.Register(0, "w9", 1, 1)), b"{}", b"\xff"],
        [wire.encode(wire.TurnEnded(turn.thread_id, turn.id, "failed"))],
        [wire.encode(wire.Answered(1, True))],
        [wire.encode(wire.ToSessions([]))],
        [b"\x02" + os.urandom(70_000)],
    ]
    context = zmq.Context()
    try:
        for target in (path, path.removesuffix(".sock") + ".w"):
            dealer = context.socket(zmq.DEALER)
            dealer.connect(f"ipc://{target}")
            for message in frames:
                dealer.send_multipart(message)
            dealer.close(linger=1000)
            for junk in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096)):
                with socket.socket(socket.AF_UNIX) as raw:
                    raw.connect(target)
                    with contextlib.suppress(OSError):
                        raw.sendall(junk)
    finally:
        context.term()
    assert text_of(turn) == text
    assert [row["state"] for row in rows(codex)] == ["ready", "ready"]


def test_requests_that_an_app_server_could_not_read_cost_nothing(shared: Shared) -> None:
    """Sent on, they would never be answered, or end the app-server's reading."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    try:
        dealer.connect(shared.pool.endpoint)
        dealer.send(wire.encode(wire.Hello(token("raw"), "raw")))
        lines = [
            b'{"id":1,"method":"thread/start","params":{"cwd":"\xff"}}',
            b'{"id":1,"method":"thread/start",\n"params":{\n}}',
            b'{"id":1,"method":"thread/start","params":{"a":' + b"[" * 200 + b"]" * 200 + b"}}",
            b'{"id":1,"method":"thread/start","params":[]}',
            b'{"id":1,"method":"thread/start","params":{"cwd":"\\ud800 "}}',
        ]
        for line in lines:
            dealer.send_multipart([wire.encode(wire.Call()), line])
        dealer.send_multipart([wire.encode(wire.Call()), b'{"id":2,"method":"thread/start","params":{}}'])
        answers: list[dict[str, Any]] = []
        deadline = time.monotonic() + LIMIT_S
        while not any(answer.get("result") for answer in answers):
            assert dealer.poll(max(0, int((deadline - time.monotonic()) * 1000))), "no answer"
            head, *bodies = dealer.recv_multipart()
            if isinstance(wire.decode_to_client(head), wire.Lines):
                answers += [answer for answer in map(json.loads, bodies[0].split(b"\n")) if "method" not in answer]
        dealer.send(wire.encode(wire.Bye()))
    finally:
        dealer.close(linger=1000)
        context.term()
    assert [("error" in answer, answer["id"]) for answer in answers[:5]] == [(True, 1)] * 4 + [(True, None)]
    assert answers[5]["id"] == 2
    with shared.pool.connect() as codex:
        assert all(row["restarts"] == 0 for row in all_ready(codex))


def test_the_live_processes_hold_no_more_than_they_need(shared: Shared, codex: Codex) -> None:
    """pydantic and asyncio cost memory and start-up in each of them; the supervisor has no ZeroMQ."""

    def mapped(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text()

    supervisor = shared.pool.supervisor_pid
    assert supervisor is not None
    workers = {row["pid"] for row in rows(codex)}
    broker = broker_of(shared.pool)
    for pid in (*workers, broker):
        maps = mapped(pid)
        assert "zmq" in maps and "msgspec" in maps, "the way of looking works"
        assert "pydantic" not in maps and "_asyncio" not in maps
    assert "zmq" not in mapped(supervisor) and "pydantic" not in mapped(supervisor)
    script = "import sys, importlib; importlib.import_module(sys.argv[1]); print(*sorted(sys.modules))"
    forbidden = {
        "codex_pool.worker.loop": {"pydantic", "asyncio"},
        "codex_pool.broker.loop": {"pydantic", "asyncio", "nacl"},
        "codex_pool.ingress.loop": {"pydantic", "asyncio", "zmq"},
        "codex_pool.supervisor.loop": {"pydantic", "asyncio", "zmq", "nacl"},
    }
    for module, unwanted in forbidden.items():
        run = subprocess.run([sys.executable, "-c", script, module], capture_output=True, text=True, check=True)
        loaded = {name.partition(".")[0] for name in run.stdout.split()}
        assert not loaded & unwanted


# Death.


@pytest.fixture
def danger(tmp_path: Path, model: LoopbackModel, work: Path) -> AppServerConfig:
    """A home in which threads are not sandboxed unless they say so."""
    home = tmp_path / "danger"
    write_loopback_home(home, model.base_url, sandbox_mode="danger-full-access")
    return AppServerConfig(cwd=work, env={"CODEX_HOME": str(home)})


@contextlib.contextmanager
def running_pool(config: AppServerConfig, tmp_path: Path, workers: int = 2) -> Iterator[Pool]:
    """A pool whose log is shown when the test fails."""
    log = tmp_path / "pool.log"
    try:
        with Pool(workers, config, log_file=log) as pool:
            yield pool
    except BaseException:
        print(log.read_text() if log.exists() else "no log")
        raise


def lost(turn: TurnHandle) -> str:
    """Read a turn that must end lost; the message."""
    collected = list(turn.stream())
    assert [notification.method for notification in collected[-2:]] == ["pool/turn/ended", "turn/completed"]
    assert [n.params["kind"] for n in collected if n.method == "pool/turn/ended"] == ["lost"]
    collector = TurnCollector(turn.id)
    for notification in collected:
        collector.add(notification)
    with pytest.raises(TurnFailedError) as caught:
        collector.result()
    assert caught.value.kind == "lost" and caught.value.safe_to_retry is False
    return str(caught.value)


@pytest.mark.parametrize("victim", ["appServerPid", "pid"])
def test_a_death_in_mid_turn(victim: str, config: AppServerConfig, model: LoopbackModel, tmp_path: Path) -> None:
    """Every client hears of its turns at once; other workers do not notice; the thread lives on elsewhere."""
    with running_pool(config, tmp_path) as pool, pool.connect() as one, pool.connect() as two:
        history = token("history")
        threads: list[Thread] = []
        homes: dict[str, str] = {}
        for codex in (one, two, one, two):
            thread = codex.thread_start()
            first = next(iter(list(thread.turn(f'[[text "{history}"]]').stream())))
            homes[thread.id] = first.params["worker"]
            threads.append(thread)
        assert len(set(homes.values())) == 2
        # One thread of each client on the worker that dies, one on the other.
        row = next(row for row in rows(one) if row["worker"] == homes[threads[0].id])
        doomed = [thread for thread in threads if homes[thread.id] == row["worker"]]
        mark = token()
        turns = {thread.id: thread.turn(f"{mark} [[hang 2]]") for thread in threads}
        model.wait_for(lambda record: mark in record.prompt and record.outcome == "hanging", count=4)
        killed_at = time.monotonic()
        os.kill(row[victim], signal.SIGKILL)
        for thread in doomed:
            assert "died" in lost(turns.pop(thread.id))
        assert time.monotonic() - killed_at < 5, "the sentinel tells it, no heartbeat"
        for turn in turns.values():
            turn.interrupt()
            assert turn.run().status == "interrupted"
        after = token("after")
        assert doomed[0].run(f'[[text "{after}"]]').final_response == after
        record = model.wait_for(lambda record: after in record.prompt)
        assert any(history in text for text in record.user_texts)
        found = all_ready(one, restarts=1)
        assert row["worker"] not in {other["worker"] for other in found}
        assert status(one)["turns"]["lost"] == len(doomed)
        assert not any(one.client.held.values()) and not any(two.client.held.values())


@pytest.mark.parametrize("broker_too", [False, True], ids=["worker", "worker and broker"])
def test_an_idle_worker_dies_and_its_threads_come_back_as_they_were(
    broker_too: bool, danger: AppServerConfig, model: LoopbackModel, tmp_path: Path, work: Path
) -> None:
    with running_pool(danger, tmp_path) as pool, pool.connect() as codex:
        history = token("history")
        stored = codex.thread_start(sandbox="workspace-write", model="other-model")
        worker = next(stored.turn(f'[[text "{history}"]]').stream()).params["worker"]
        wait_until(lambda: status(codex)["turns"]["running"] == 0, "the turn is over")
        stored.set_name("my name")
        row = next(row for row in rows(codex) if row["worker"] == worker)
        here: dict[str, Thread] = {}
        for kind, options in {"ephemeral": {"ephemeral": True}, "turnless": {}}.items():
            # Threads are spread: take the first that comes to the worker that will die.
            for _ in range(4):
                before = next(r["threads"] for r in rows(codex) if r["worker"] == worker)
                thread = codex.thread_start(**options)  # type: ignore[arg-type]
                if next(r["threads"] for r in rows(codex) if r["worker"] == worker) > before:
                    here[kind] = thread
                    break
        assert set(here) == {"ephemeral", "turnless"}
        here["ephemeral"].run(f'[[text "{token()}"]]')
        if broker_too:
            os.kill(broker_of(pool), signal.SIGKILL)
        os.kill(row["pid"], signal.SIGKILL)
        wait_until(lambda: worker not in {r.get("worker") for r in rows(codex)}, "the death is known")
        read = stored.read(include_turns=True).thread
        assert read.name == "my name" and history in read.model_dump_json()
        outside = Path("/var/tmp") / token("outside")
        command = f"echo in > inside.txt; echo out > {outside}"
        try:
            stored.run(f'[[tool_call "{command}"]] [[text "done"]]')
            assert (work / "inside.txt").exists(), "workspace-write"
            assert not outside.exists(), "not danger-full-access, which is the default here"
        finally:
            outside.unlink(missing_ok=True)
        record = model.wait_for(lambda record: command in record.prompt)
        assert record.model == "other-model" and any(history in text for text in record.user_texts)
        for thread in here.values():
            with pytest.raises(ThreadLostError) as caught:
                thread.run("hello?")
            assert thread.id in str(caught.value)
        all_ready(codex, restarts=1)
        assert codex.thread_start().run("again").status == "completed"


@pytest.mark.parametrize("end", ["app-server", "worker", "close", "supervisor"])
def test_tool_commands_leave_no_process(
    end: str, danger: AppServerConfig, model: LoopbackModel, tmp_path: Path
) -> None:
    """Unsandboxed commands have sessions of their own, and outlive an app-server by themselves."""
    marks = [f"1000.{secrets.randbelow(10**9):09}" for _ in range(3)]
    command = f"setsid sleep {marks[0]} & (sleep {marks[1]} &) ; sleep {marks[2]}"
    with running_pool(danger, tmp_path, workers=1) as pool:
        codex = pool.connect()
        try:
            turn = codex.thread_start().turn(f'[[tool_call "{command}"]] [[text "never"]]')
            wait_until(lambda: all(sleeping(mark) for mark in marks), "the commands run")
            (row,) = rows(codex)
            assert pool.supervisor_pid is not None
            if end == "close":
                pool.close()
            else:
                victims = {"app-server": row["appServerPid"], "worker": row["pid"], "supervisor": pool.supervisor_pid}
                os.kill(victims[end], signal.SIGKILL)
            wait_until(lambda: not any(map(sleeping, marks)), "no command is left", GONE_LIMIT_S)
            if end in ("app-server", "worker"):
                lost(turn)
                all_ready(codex, restarts=1)
            else:
                wait_until(
                    lambda: not any(map(processes.identify, (row["pid"], row["appServerPid"]))),
                    "all gone",
                    GONE_LIMIT_S,
                )
                with pytest.raises(TransportClosedError):
                    methods_of(turn)
                with pytest.raises(TransportClosedError):
                    codex.thread_start()
        finally:
            codex.close()


CLIENT = """
import sys
from codex_pool import connect
codex = connect(sys.argv[1], name="doomed")
thread = codex.thread_start()
turns = [thread.turn(prompt) for prompt in sys.argv[2:3]]
turns += [codex.thread_start().turn(prompt) for prompt in sys.argv[3:]]
print("running", flush=True)
input()
"""


@pytest.mark.slow
def test_the_turns_of_a_killed_client_are_interrupted(shared: Shared, codex: Codex) -> None:
    prompts = [f"{token()} [[hang 1]]", f"{token()} [[hang]]"]
    argv = [sys.executable, "-c", CLIENT, shared.pool.endpoint, *prompts]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None and client.stdout.readline() == b"running\n"
        for prompt in prompts:
            shared.model.wait_for(lambda record, prompt=prompt: record.prompt == prompt and record.running)
        assert "doomed" in status(codex)["clients"]
        client.kill()
    for prompt in prompts:
        shared.model.wait_for(
            # It has its time to come back.
            lambda record, prompt=prompt: record.prompt == prompt and record.outcome == "disconnected",
            timeout_s=40,
        )
    wait_until(lambda: status(codex)["turns"]["running"] == 0, "nothing runs any more")
    assert "doomed" not in status(codex)["clients"]


def test_clients_that_go_while_their_turns_start_leave_nothing(shared: Shared, codex: Codex) -> None:
    """Without a word for the turn that has no name yet."""
    mark = token()
    before = status(codex)["turns"]
    for _ in range(6):
        client = shared.pool.connect()
        thread = client.thread_start()
        starter = threading.Thread(target=lambda t=thread: _suppressed(t.turn, f"{mark} [[hang]]"), daemon=True)
        starter.start()
        client.close()
        starter.join(LIMIT_S)
    wait_until(lambda: status(codex)["turns"]["running"] == 0 and status(codex)["turns"]["queued"] == 0, "nothing runs")
    wait_until(lambda: not [r for r in shared.model.active if mark in r.prompt], "the model is left in peace")
    assert status(codex)["turns"]["failed"] == before["failed"]


def _suppressed(function: Callable[..., object], *args: object) -> None:
    with contextlib.suppress(TransportClosedError, JsonRpcError):
        function(*args)


def test_a_binary_that_dies_at_once_is_reported_with_its_last_words(home: Path, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    binary = tmp_path / "codex"
    binary.write_text(f"#!/bin/sh\necho start >> {starts}\necho 'fatal: the moon is in the way' >&2\nexit 3\n")
    binary.chmod(0o755)
    config = AppServerConfig(codex_bin=binary, env={"CODEX_HOME": str(home)})
    began = time.monotonic()
    with pytest.raises(PoolStartError, match="the moon is in the way") as caught:
        Pool(2, config).start()
    assert time.monotonic() - began < 15
    assert "exit code 3" in str(caught.value)
    assert caught.value.stderr_lines[-1] == "fatal: the moon is in the way"
    assert len(starts.read_text().split()) <= 4, "no storm of restarts"


def test_an_app_server_that_dies_again_and_again_does_not_spin(config: AppServerConfig, tmp_path: Path) -> None:
    with running_pool(config, tmp_path, workers=1) as pool, pool.connect() as codex:
        seen = []
        for count in itertools.count(1):
            (row,) = all_ready(codex, restarts=count - 1)
            seen.append(time.monotonic())
            if count == 4:
                break
            os.kill(row["appServerPid"], signal.SIGKILL)
            wait_until(lambda name=row["worker"]: rows(codex)[0].get("worker") != name, "it is replaced")
        assert codex.thread_start().run("well?").status == "completed"
        log = (tmp_path / "pool.log").read_text()
        assert len(re.findall(r"is ready \(pid", log)) == 4


def test_a_pool_can_be_started_again(config: AppServerConfig) -> None:
    pool = Pool(1, config)
    for _ in range(2):
        with pool, pool.connect() as codex:
            assert codex.thread_start().run("hello").status == "completed"
        assert pool.failure is None
