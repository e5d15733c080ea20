"""Objects of sessions under any order of events: each command is answered once, and nothing is held at the end."""

from __future__ import annotations

import base64
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from session_ids import sid
from worker_bench import Bench

from codex_pool.protocol import wire
from codex_pool.worker.subscription import Limits

BEGIN = {
    "command/exec": "processId",
    "process/spawn": "processHandle",
    "fs/watch": "watchId",
    "fuzzyFileSearch/sessionStart": "sessionId",
}
END = {
    "command/exec": "command/exec/terminate",
    "process/spawn": "process/kill",
    "fs/watch": "fs/unwatch",
    "fuzzyFileSearch/sessionStart": "fuzzyFileSearch/sessionStop",
}
SAYS = {
    "command/exec": "command/exec/outputDelta",
    "process/spawn": "process/outputDelta",
    "fs/watch": "fs/changed",
    "fuzzyFileSearch/sessionStart": "fuzzyFileSearch/sessionUpdated",
}
SESSIONS, NAMES = ("s1", "s2"), ("a", "b/c")

WHAT = ("begin", "end", "answer", "say", "exit", "ack", "back", "gone", "broker", "tick", "rebind", "unbind", "ends")

steps = st.lists(
    st.tuples(
        st.sampled_from([*WHAT, "begin", "begin", "answer", "answer", "say"]),
        st.sampled_from(sorted(BEGIN)),
        st.sampled_from(SESSIONS),
        st.sampled_from(NAMES),
        st.integers(0, 5),
    ),
    max_size=60,
)


class Machine:
    """A worker, and an app-server that behaves as codex does."""

    def __init__(self) -> None:
        self.bench = Bench(limits=Limits(300, 600, 600, 1500, 20_000)).start()
        # What the app-server has: objects by kind and id, and the requests of running commands.
        self.has: dict[tuple[str, str], int] = {}
        self.commands: dict[tuple[str, str], int] = {}

    def step(self, what: str, method: str, session: str, name: str, number: int) -> None:
        bench = self.bench
        match what:
            case "begin":
                params: dict[str, Any] = {BEGIN[method]: name, "path": "/p", "roots": []}
                if method == "command/exec" and number == 0:
                    del params["processId"]
                bench.dispatch(method, params, session=session)
            case "end":
                bench.dispatch(END[method], {BEGIN[method]: name}, session=session)
            case "answer" if bench.open:
                self.answer(sorted(bench.open)[number % len(bench.open)])
            case "say" if self.has:
                kind, wire_id = sorted(self.has)[number % len(self.has)]
                data = base64.b64encode(b"x" * 100).decode()
                bench.notify(SAYS[kind], **{BEGIN[kind]: wire_id, "deltaBase64": data})
            case "exit" if self.has:
                self.exit(sorted(self.has)[number % len(self.has)])
            case "ack":
                bench.ack()
            case "back":
                bench.back(session)
            case "gone":
                bench.gone(session)
            case "broker":
                bench.apply(bench.core.new_broker(bench.now))
            case "tick":
                bench.tick(1.0)
            case "rebind" | "unbind" if method in ("fs/watch", "fuzzyFileSearch/sessionStart"):
                kind = "watch" if method == "fs/watch" else "search"
                head = wire.Rebind if what == "rebind" else wire.Unbind
                line = b'{"id":1,"method":"%s","params":{"path":"/p"}}' % method.encode()
                bench.apply(bench.core.broker_message(head(sid(session), kind, name), [line], bench.now))
            case "ends":
                bench.apply(bench.core.broker_message(wire.EndProcesses("why"), [], bench.now))

    def answer(self, request_id: int) -> None:
        message = self.bench.open[request_id]
        method, params = message["method"], message["params"]
        if method in BEGIN:
            key = method, params.get(BEGIN[method], "")
            if key in self.has and method != "fuzzyFileSearch/sessionStart":
                if self.commands.get(key) != request_id:
                    self.bench.answer(request_id, error="duplicate")
            elif method == "command/exec":
                # It begins, and is answered when it ends.
                self.has[key] = self.commands[key] = request_id
            else:
                self.has[key] = 0
                self.bench.answer(request_id, {})
            return
        kind = next((kind for kind, end in END.items() if end == method), "")
        if not kind:
            self.bench.answer(request_id, {})
            return
        key = kind, params[BEGIN[kind]]
        if kind in ("fs/watch", "fuzzyFileSearch/sessionStart"):
            self.has.pop(key, None)
            self.bench.answer(request_id, {})
        elif key in self.has:
            self.bench.answer(request_id, {})
            self.exit(key)
        else:
            self.bench.answer(request_id, error="no active process")

    def exit(self, key: tuple[str, str]) -> None:
        kind, wire_id = key
        if kind == "command/exec":
            del self.has[key]
            self.bench.answer(self.commands.pop(key), {"exitCode": 0})
        elif kind == "process/spawn":
            del self.has[key]
            self.bench.notify("process/exited", processHandle=wire_id, exitCode=0, stderr="")

    def finish(self) -> None:
        """All sessions end, and the app-server answers all that it can."""
        for session in SESSIONS:
            self.bench.gone(session)
        for _ in range(20):
            for request_id in sorted(self.bench.open):
                if request_id in self.bench.open:
                    self.answer(request_id)
            self.bench.tick(1.0)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_each_command_is_answered_once_and_nothing_is_held_at_the_end(steps: list[Any]) -> None:
    machine = Machine()
    bench = machine.bench
    for step in steps:
        machine.step(*step)
    for session in SESSIONS:
        # What a session reads of a stream has no hole, nothing after its end, and one answer at most.
        for name, stream in [key for key in bench.events if key[0] == session]:
            lines = [line for _, lines in bench.events[name, stream] for line in lines]
            answers = [place for place, line in enumerate(lines) if "method" not in line]
            names = {str(line["params"].get(field)) for line in lines if "params" in line for field in BEGIN.values()}
            assert names <= {*NAMES, "None"}, "the ids of the app-server are its own business"
            assert len({lines[place]["id"] for place in answers}) <= 1
    machine.finish()
    left = [message for message in bench.open.values() if message["method"] != "thread/loaded/list"]
    assert not machine.has and not left, (machine.has, left)
    held = {name: count for name, count in bench.core.held.items() if name.startswith("bound")}
    assert not any(held.values()), held
    assert bench.core.held["calls"] == 0
