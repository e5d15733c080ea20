"""The worker as a process, with a null app-server below it and a ROUTER of the test's own as its broker."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from session_ids import sid

import codex_app_server.testing._null_app_server as null_app_server
from codex_pool.protocol import packs, sockets, wire
from codex_pool.worker.arguments import WorkerArguments

LIMIT_S = 20.0


class Broker:
    """A ROUTER that writes down what workers say. `restart` is another one in its place."""

    def __init__(self, path: Path) -> None:
        self.endpoint = f"ipc://{path}"
        self._context = zmq.Context()
        self.socket = sockets.router(self._context, self.endpoint)
        self.got: list[tuple[str, list[bytes]]] = []

    def restart(self) -> None:
        self.stop()
        self.got.clear()
        self.socket = sockets.router(self._context, self.endpoint)

    def stop(self) -> None:
        self.socket.close(linger=0)

    def close(self) -> None:
        self.stop()
        self._context.term()

    def send(self, identity: str, head: wire.Head, *bodies: bytes) -> None:
        self.socket.send_multipart([identity.encode(), wire.encode(head), *bodies])

    def dispatch(self, identity: str, number: int, id: str, method: str, *, again: bool = False, **params: Any) -> None:
        line = msgspec.json.encode({"id": id, "method": method, "params": params})
        self.send(identity, wire.Dispatch(number, sid("s1"), again=again), line)

    def wait(self, found: Callable[[str, list[bytes]], Any], limit_s: float = LIMIT_S) -> Any:
        """Return what `found` makes of a message, once that is something; messages before it are passed over."""
        deadline = time.monotonic() + limit_s
        while True:
            while self.got:
                identity, frames = self.got.pop(0)
                result = found(identity, frames)
                if result:
                    return result
            left_s = deadline - time.monotonic()
            assert left_s > 0 and self.socket.poll(left_s * 1000), "it never came"
            identity_frame, route, *frames = self.socket.recv_multipart()
            messages = packs.unpacked(frames) if frames else [frames]
            self.got += [(identity_frame.decode(), [route, *message]) for message in messages]

    def registered(self) -> tuple[str, wire.WorkerState]:
        def found(identity: str, frames: list[bytes]) -> Any:
            if isinstance(wire.decode_from_worker(frames[0]), wire.Register):
                return identity, wire.decode_worker_state(frames[2])
            return None

        registered: tuple[str, wire.WorkerState] = self.wait(found)
        return registered

    def answer(self, number: int) -> dict[str, Any]:
        """The answer to a call; what came before it is there for whoever waits next."""
        before: list[tuple[str, list[bytes]]] = []

        def found(identity: str, frames: list[bytes]) -> Any:
            route = wire.decode_from_worker(frames[0])
            if isinstance(route, wire.Answered) and route.call == number:
                return json.loads(frames[2])
            before.append((identity, frames))
            return None

        answer: dict[str, Any] = self.wait(found)
        self.got[:0] = before
        return answer

    def events(self, until: str) -> list[tuple[wire.Events, list[dict[str, Any]]]]:
        """Events up to the one with a notification of this method."""
        seen: list[tuple[wire.Events, list[dict[str, Any]]]] = []

        def found(_: str, frames: list[bytes]) -> bool:
            head = wire.decode_to_client(frames[1]) if len(frames) > 1 else None
            if not isinstance(head, wire.Events):
                return False
            lines = [json.loads(line) for body in frames[2:] for line in body.split(b"\n") if line]
            seen.append((head, lines))
            return any(line["method"] == until for line in lines)

        self.wait(found)
        return seen


class WorkerProcess:
    """A worker with a null app-server of this scenario."""

    def __init__(
        self, endpoint: str, scenario: dict[str, Any], *, python: list[str] | None = None, **options: Any
    ) -> None:
        argv = [sys.executable, "-S", "-E", str(null_app_server.__file__), json.dumps(scenario)]
        arguments = WorkerArguments(0, "w0", endpoint, argv, None, {}, {"clientInfo": {"name": "x"}}, **options)
        self.process = subprocess.Popen(
            [sys.executable, *(python or ["-m", "codex_pool.worker"])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(arguments) + b"\n")
        self.app_server_pid = self.wait("ready")["app_server_pid"]

    def wait(self, event: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """Return the next report of this kind."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + limit_s
        while True:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no report {event!r}"
            line = self.process.stdout.readline()
            assert line, "the worker has ended"
            record: dict[str, Any] = json.loads(line)
            if record["event"] == event:
                return record

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def stop(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(LIMIT_S)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def broker(runtime_directory: Path) -> Iterator[Broker]:
    path = runtime_directory / "w"
    broker = Broker(path)
    yield broker
    broker.close()
    path.unlink(missing_ok=True)


@pytest.fixture
def start(broker: Broker) -> Iterator[Callable[..., WorkerProcess]]:
    started: list[WorkerProcess] = []

    def start(scenario: dict[str, Any], **options: Any) -> WorkerProcess:
        started.append(WorkerProcess(broker.endpoint, scenario, **options))
        return started[-1]

    yield start
    for worker in started:
        worker.stop()


def test_a_new_broker_finds_all_as_it_was_and_nothing_is_done_twice(
    broker: Broker, start: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    worker = start({"hold": str(hold), "deltas": 5})
    identity, holdings = broker.registered()
    assert identity == "w0" and holdings == wire.WorkerState([], tree=wire.ProcessTree())
    broker.dispatch(identity, 1, "a", "thread/start")
    thread_id = broker.answer(1)["result"]["thread"]["id"]
    broker.dispatch(identity, 2, "b", "turn/start", threadId=thread_id)
    turn_id = broker.answer(2)["result"]["turn"]["id"]
    (first, _), *_ = broker.events("item/agentMessage/delta")
    assert first.after == 0

    broker.restart()
    worker.tell('{"broker": "new"}')
    identity, holdings = broker.registered()
    assert identity == "w0/1"
    assert [record.thread_id for record in holdings.records] == [thread_id]
    (running,) = holdings.turns
    assert (running.thread_id, running.turn_id, running.sessions) == (thread_id, turn_id, [sid("s1")])
    assert [call.request_id for call in holdings.calls] == ['"a"', '"b"']
    broker.send(identity, wire.SessionResumed(sid("s1"), [wire.Position(turn_id, first.last)]))
    broker.dispatch(identity, 1, "b", "turn/start", again=True, threadId=thread_id)
    assert broker.answer(1)["result"]["turn"]["id"] == turn_id, "the same turn, not another one"
    broker.send(identity, wire.SessionResumed(sid("s1"), [wire.Position(turn_id, first.last)]))
    events = broker.events("item/agentMessage/delta")
    hold.touch()
    events += broker.events("turn/completed")
    last = first.last
    for head, _ in events:
        if head.after > last:
            # Sent before the worker heard that the session is back: it comes again in its place.
            continue
        # Both times that the session came back it was sent the same again.
        assert head.after in (last, first.last)
        last = head.last
    assert (
        events[-1][0].ended
        and last == events[-1][0].last
        and sum(line["method"] == "turn/completed" for _, lines in events for line in lines) == 1
    )
    assert worker.wait("load")["turns"] <= 1


def test_a_beat_goes_to_the_new_broker_too_and_shows_that_the_loop_turns(
    broker: Broker, start: Callable[..., WorkerProcess]
) -> None:
    worker = start({})
    broker.registered()

    def beat(identity: str, frames: list[bytes]) -> wire.Progress | None:
        head = wire.decode_from_worker(frames[0])
        return head if isinstance(head, wire.Progress) else None

    first = broker.wait(beat)
    broker.restart()
    worker.tell('{"broker":"new"}')
    second = broker.wait(beat)
    third = broker.wait(beat)
    fourth = broker.wait(beat)
    assert first.loops <= second.loops <= third.loops <= fourth.loops and first.loops < fourth.loops


def test_a_line_of_the_supervisor_that_says_nothing_is_survived(
    broker: Broker, start: Callable[..., WorkerProcess]
) -> None:
    worker = start({})
    identity, _ = broker.registered()
    for line in ("", "{", "[]", '{"broker":"old"}', "7"):
        worker.tell(line)
    broker.dispatch(identity, 1, "a", "thread/start")
    assert broker.answer(1)["result"]["thread"]


def test_events_are_drained_while_no_broker_is_there(
    broker: Broker, start: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """The app-server writes far more than any pipe or socket holds, and is not held up."""
    hold = tmp_path / "hold"
    worker = start({"deltas": 20_000, "text": "x" * 200, "hold": str(hold)})
    identity, _ = broker.registered()
    broker.dispatch(identity, 1, "a", "thread/start")
    thread_id = broker.answer(1)["result"]["thread"]["id"]
    broker.dispatch(identity, 2, "b", "turn/start", threadId=thread_id)
    broker.answer(2)
    broker.stop()
    hold.touch()
    while worker.wait("load")["turns"] == 0:
        pass
    broker.restart()
    worker.tell('{"broker":"new"}')
    identity, holdings = broker.registered()
    assert holdings.turns == [] and len(holdings.ended) == 1, "it has ended though nobody acknowledged anything"
    broker.send(identity, wire.SessionResumed(sid("s1"), []))
    last = 0
    while True:
        frames = broker.wait(lambda _, frames: frames if len(frames) > 1 and b"events" in frames[1][:12] else None)
        head = wire.decode_to_client(frames[1])
        assert isinstance(head, wire.Events) and head.after == last
        last = head.last
        if head.ended:
            break
        broker.send(identity, wire.Acked(sid("s1"), [wire.Position(head.turn_id, last)]))
    assert last == 20_006


def test_an_error_in_the_core_ends_the_worker_with_its_last_events(
    broker: Broker, start: Callable[..., WorkerProcess]
) -> None:
    """The report has the names of what came last, and nothing of the messages."""
    program = """if True:
        import sys
        from codex_pool.worker import core
        from codex_pool.worker.event_log import InvariantError
        class BrokenCore(core.WorkerCore):
            def _session_gone(self, session, *, keep):
                raise InvariantError("broken by the test")
        core.WorkerCore = BrokenCore
        from codex_pool.worker.__main__ import main
        sys.exit(main())
    """
    worker = start({}, python=["-c", program])
    identity, _ = broker.registered()
    broker.dispatch(identity, 1, "a", "model/list", secret="s3cret")
    broker.send(identity, wire.SessionGone(sid("s1")))
    report = worker.wait("exit")
    assert report["reason"].startswith("the worker has failed: InvariantError: broken by the test (")
    names = [event.split(" s ", 1)[1] for event in report["events"]]
    assert names[-1] == "SessionGone"
    at = names.index("Dispatch")
    assert names[at : at + 3] == ["Dispatch", "queued model/list 1", "sent model/list 1"]
    assert not any("s3cret" in event for event in report["events"])
