"""`codex-pool bridge` as a client sees it: an app-server on stdin and stdout that outlives what dies behind it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from differential import Server
from programs import environment
from test_pool_real import broker_of, status, wait_until

from codex_app_server import AppServerConfig
from codex_pool import Pool
from codex_pool.bridge import HIGH_BYTES

pytestmark = pytest.mark.real

LIMIT_S = 30.0
COMMAND = [sys.executable, "-m", "codex_pool_cli", "bridge"]
INITIALIZE = {"id": "initialize", "method": "initialize", "params": {"clientInfo": {"name": "c", "version": "1"}}}


@pytest.fixture
def pool(config: AppServerConfig, tmp_path: Path) -> Iterator[Pool]:
    with Pool(2, config, log_file=tmp_path / "pool.log") as pool:
        yield pool


class Client:
    """A client that speaks the app-server's protocol over stdin and stdout of a command."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._requests = 0
        assert "result" in self.ask(INITIALIZE)
        server.send({"method": "initialized"})

    def ask(self, message: dict[str, Any]) -> Any:
        self.server.send(message)
        return self.find(lambda each: "method" not in each and each["id"] == message["id"], f"answer to {message}")

    def request(self, method: str, **params: Any) -> Any:
        self._requests += 1
        answer = self.ask({"id": self._requests, "method": method, "params": params})
        assert "result" in answer, answer
        return answer["result"]

    def thread(self, **params: Any) -> str:
        return str(self.request("thread/start", **params)["thread"]["id"])

    def turn(self, thread: str, text: str) -> str:
        content = [{"type": "text", "text": text}]
        return str(self.request("turn/start", threadId=thread, input=content)["turn"]["id"])

    def find(self, fits: Callable[[Any], bool], what: str) -> Any:
        return self.server.wait_for(lambda: next(filter(fits, self.server.received), None), what)

    def ended(self, turn: str) -> Any:
        """The turn as its completion has it."""
        found = self.find(
            lambda each: each.get("method") == "turn/completed" and each["params"]["turn"]["id"] == turn,
            f"end of {turn}",
        )
        return found["params"]["turn"]

    def text_of(self, turn: str) -> str:
        """The deltas of a turn so far."""
        deltas = [each["params"] for each in self.server.received if each.get("method") == "item/agentMessage/delta"]
        return "".join(params["delta"] for params in deltas if params["turnId"] == turn)


@contextmanager
def bridged(work: Path, *arguments: str, home: Path | None = None) -> Iterator[Client]:
    server = Server([*COMMAND, *arguments], home=work, work=work, env=environment(home))
    try:
        yield Client(server)
    finally:
        server.close()


def test_a_client_works_in_its_own_directory(pool: Pool, tmp_path: Path) -> None:
    place = tmp_path / "of the client"
    place.mkdir()
    with bridged(place, "--connect", pool.endpoint) as client:
        assert client.request("thread/start")["cwd"] == str(place)
        turn = client.turn(client.thread(), "[[text 'one two' deltas=2]]")
        assert client.ended(turn)["status"] == "completed" and client.text_of(turn) == "one two"
        methods = {each.get("method", "") for each in client.server.received}
        assert not any(method.startswith(("pool/", "sdk/")) for method in methods)


def test_what_dies_behind_it_is_survived(pool: Pool, work: Path) -> None:
    with bridged(work, "--connect", pool.endpoint) as client:
        thread = client.thread()
        client.ended(client.turn(thread, "hello"))
        text = " ".join(str(number) for number in range(60))
        turn = client.turn(thread, f'[[text "{text}" deltas=60 pace_ms=40]]')
        client.find(lambda each: len(client.text_of(turn)) > 10, "deltas")
        os.kill(broker_of(pool), signal.SIGKILL)
        assert client.ended(turn)["status"] == "completed" and client.text_of(turn) == text
        turn = client.turn(thread, "[[hang 3]]")
        client.find(lambda each: client.text_of(turn), "deltas")
        (worker,) = [each for each in _status(pool)["workers"] if each["turns"]]
        os.kill(worker["appServerPid"], signal.SIGKILL)
        assert client.ended(turn)["status"] == "failed"
        error = client.find(lambda each: each.get("method") == "error", "an error")["params"]
        assert (error["threadId"], error["turnId"], error["willRetry"]) == (thread, turn, False)
        assert client.ended(client.turn(thread, "and on"))["status"] == "completed"
        assert client.server.close() == 0 and client.server.stderr == ""


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT])
def test_it_ends_as_an_app_server_does(number: int | None, pool: Pool, work: Path) -> None:
    with bridged(work, "--connect", pool.endpoint) as client:
        turn = client.turn(client.thread(), "[[text 'a b c d e f' deltas=6 pace_ms=150]]")
        client.find(lambda each: client.text_of(turn), "deltas")
        began = time.monotonic()
        assert client.server.close(number) == (-number if number == signal.SIGINT else 0)
        assert time.monotonic() - began < 2.0
        assert client.server.stderr == ""


def test_a_long_answer_comes_whole(pool: Pool, work: Path) -> None:
    with bridged(work, "--connect", pool.endpoint) as client:
        thread = client.thread()
        client.ended(client.turn(thread, "[[text chars=10000000 deltas=2]]"))
        turns = client.request("thread/read", threadId=thread, includeTurns=True)["thread"]["turns"]
        assert len(turns[0]["items"][1]["text"]) == 10_000_000


def test_a_client_that_does_not_read_costs_little_memory_and_gets_all_later(pool: Pool, work: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--connect", pool.endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(None)
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        send = _sender(process)
        send(INITIALIZE)
        send({"method": "initialized"})
        send({"id": 1, "method": "thread/start", "params": {}})
        thread = next(each for line in process.stdout if (each := json.loads(line)).get("id") == 1)["result"]["thread"]
        content = [{"type": "text", "text": "[[text chars=24000000 deltas=240]]"}]
        send({"id": 2, "method": "turn/start", "params": {"threadId": thread["id"], "input": content}})
        wait_until(lambda: _status(pool)["turns"]["completed"] == 1, "the end of the turn")
        before = _memory_bytes(process.pid)
        # Requests are not read either: more than pipes hold of them.
        assert before < 4 * HIGH_BYTES + 64 * 1024 * 1024
        messages = []
        for line in process.stdout:
            messages.append(json.loads(line))
            if messages[-1].get("method") == "turn/completed":
                break
        items = [each["params"]["item"] for each in messages if each.get("method") == "item/completed"]
        assert [len(item["text"]) for item in items if item["type"] == "agentMessage"] == [24_000_000]
    finally:
        process.stdin.close()
        assert process.wait(LIMIT_S) == 0
        process.stdout.close()


def _sender(process: subprocess.Popen[bytes]) -> Callable[[Any], None]:
    def send(message: Any) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()

    return send


def _memory_bytes(pid: int) -> int:
    resident = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(resident) * resource.getpagesize()


def test_without_a_reader_it_goes_on_until_its_input_ends(pool: Pool, work: Path) -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*COMMAND, "--connect", pool.endpoint], stdin=subprocess.PIPE, stdout=writer, env=environment(None)
    )
    os.close(writer)
    os.close(reader)
    assert process.stdin is not None
    send = _sender(process)
    send(INITIALIZE)
    send({"method": "initialized"})
    send({"id": 1, "method": "thread/start", "params": {}})
    try:
        wait_until(lambda: _status(pool)["threads"] == 1, "its thread")
        assert process.poll() is None
    finally:
        process.stdin.close()
        assert process.wait(LIMIT_S) == 0


def test_a_pool_that_is_gone_for_good_is_one_line(work: Path, home: Path) -> None:
    with bridged(work, "--workers", "1", home=home) as client:
        assert client.ended(client.turn(client.thread(), "hello"))["status"] == "completed"
        supervisor = next(
            int(path.name)
            for path in Path("/proc").iterdir()
            if path.name.isdigit() and _parent_of(path) == client.server.pid
        )
        os.kill(supervisor, signal.SIGKILL)
        code = client.server.wait()
        assert code == 3
        lines = [line for line in client.server.stderr.splitlines() if line.startswith("codex-pool: ")]
        assert len(lines) == 1 and f"supervisor pid {supervisor}" in lines[0], client.server.stderr


def _status(pool: Pool) -> Any:
    with pool.connect() as codex:
        return status(codex)


def _parent_of(path: Path) -> int:
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_wrong_usage_is_refused(work: Path) -> None:
    for arguments, words in (
        (["--connect", "nowhere"], "not of the form"),
        (["--connect", "default", "--workers", "1"], "cannot go with --connect"),
        (["--connect", "tcp://127.0.0.1:1"], "lets in only clients with a key"),
    ):
        done = subprocess.run([*COMMAND, *arguments], cwd=work, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 2 and words in done.stderr and done.stdout == "", done
    done = subprocess.run([*COMMAND, "--connect", "default"], cwd=work, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 3 and "start one with: codex-pool serve" in done.stderr


def test_it_loads_nothing_heavy() -> None:
    script = "import sys, codex_pool_cli.bridge, codex_pool.bridge, codex_pool_cli.via_pool\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert not {"pydantic", "asyncio", "rich", "jinja2"} & {*done.stdout.split()}


def test_a_working_directory_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(directory)
    argv = [sys.executable, "-m", "codex_pool_cli", "bridge", "--connect", f"ipc://{tmp_path}/none.sock"]
    done = subprocess.run(argv, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "is not UTF-8" in done.stderr
