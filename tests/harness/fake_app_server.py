"""A scripted app-server, for what the real one does not do on demand. Runs as a program of its own.

Its argument is a JSON list of steps, taken one after the other; `initialize` is answered by itself. A step waits for
the message that it needs; what came meanwhile is kept. After the last step it reads on until its stdin is closed.

    ["answer", METHOD, RESULT]   answer the oldest open request of METHOD; a string "$1" in RESULT is its id
    ["error", METHOD, ERROR]     the same with an error object
    ["take", METHOD]             wait for a message of METHOD and leave it unanswered
    ["seen", METHOD]             wait for a message of METHOD and keep it for a later step
    ["told", ID]                 wait for the answer to our own request ID, and send it on as notification fake/told
    ["send", MESSAGE]            write a message
    ["raw", TEXT]                write a line as it is (latin-1)
    ["at_once", [STEP, ...]]     the same steps, but everything they write is one write
    ["times", N, [STEP, ...]]    the steps N times; "$n" in a string is the number, from 0
    ["stderr", TEXT]             write a line to stderr
    ["holder"]                   start a child in our process group that holds our stdout open, and tell its pid
    ["close_stdout"] ["exit", CODE]

What it writes may hold $big, 200,000 letters, and $deep, as many arrays in each other.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

Step = list[Any]
BIG = 200_000


def config(*steps: Step, **fields: Any) -> Any:
    """An AppServerConfig that starts this program with these steps."""
    from codex_app_server import AppServerConfig

    return AppServerConfig(
        launch_args_override=(sys.executable, "-S", "-E", os.path.abspath(__file__), json.dumps(steps)), **fields
    )


# Messages, for tests and scripts.


def turn(id: str, status: str = "inProgress", **fields: Any) -> dict[str, Any]:
    return {"id": id, "items": [], "status": status, **fields}


def started(id: str) -> Step:
    return ["answer", "turn/start", {"turn": turn(id)}]


def delta(thread: str, turn_id: str, text: str) -> Step:
    params = {"threadId": thread, "turnId": turn_id, "itemId": "item", "delta": text}
    return ["send", {"method": "item/agentMessage/delta", "params": params}]


def message(thread: str, turn_id: str, text: str, phase: str | None = None) -> Step:
    item = {"type": "agentMessage", "id": "item", "text": text, "phase": phase}
    params = {"item": item, "threadId": thread, "turnId": turn_id, "completedAtMs": 1}
    return ["send", {"method": "item/completed", "params": params}]


def completed(thread: str, turn_id: str, status: str = "completed", **fields: Any) -> Step:
    params = {"threadId": thread, "turn": turn(turn_id, status, **fields)}
    return ["send", {"method": "turn/completed", "params": params}]


class Server:
    def __init__(self) -> None:
        self.lines = sys.stdin.buffer
        self.kept: list[dict[str, Any]] = []
        self.out: list[bytes] | None = None

    def write(self, data: bytes) -> None:
        data = data.replace(b"$big", b"x" * BIG).replace(b"$deep", b"[" * BIG + b"]" * BIG)
        if self.out is not None:
            self.out.append(data)
            return
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]

    def send(self, message: dict[str, Any]) -> None:
        self.write(json.dumps(message).encode() + b"\n")

    def wait(self, key: str, value: Any) -> dict[str, Any]:
        for message in self.kept:
            if message.get(key) == value and (key == "method" or "method" not in message):
                self.kept.remove(message)
                return message
        while True:
            line = self.lines.readline()
            if not line:
                os._exit(0)
            message = json.loads(line)
            if message.get("method") == "initialize":
                result = {"userAgent": "fake/0.0.0", "codexHome": "/", "platformFamily": "unix", "platformOs": "linux"}
                self.send({"id": message["id"], "result": result})
            elif message.get(key) == value and (key == "method" or "method" not in message):
                return message
            else:
                self.kept.append(message)

    def run(self, steps: list[Step]) -> None:
        for name, *arguments in steps:
            getattr(self, f"do_{name}")(*arguments)

    def do_answer(self, method: str, result: Any) -> None:
        id = self.wait("method", method)["id"]
        self.send({"id": id, "result": replaced(result, "$1", str(id))})

    def do_error(self, method: str, error: Any) -> None:
        self.send({"id": self.wait("method", method)["id"], "error": error})

    def do_take(self, method: str) -> None:
        self.wait("method", method)

    def do_seen(self, method: str) -> None:
        self.kept.insert(0, self.wait("method", method))

    def do_told(self, id: Any) -> None:
        answer = self.wait("id", id)
        self.send({"method": "fake/told", "params": answer})

    def do_send(self, message: dict[str, Any]) -> None:
        self.send(message)

    def do_raw(self, text: str) -> None:
        self.write(text.encode("latin-1") + b"\n")

    def do_at_once(self, steps: list[Step]) -> None:
        self.out = []
        self.run(steps)
        data, self.out = b"".join(self.out), None
        self.write(data)

    def do_times(self, times: int, steps: list[Step]) -> None:
        for number in range(times):
            self.run(replaced(steps, "$n", str(number)))

    def do_stderr(self, text: str) -> None:
        os.write(2, text.encode() + b"\n")

    def do_holder(self) -> None:
        import subprocess

        child = subprocess.Popen(["sleep", "60"])
        self.send({"method": "fake/holder", "params": {"pid": child.pid}})

    def do_close_stdout(self) -> None:
        os.close(1)

    def do_exit(self, code: int) -> None:
        os._exit(code)


def replaced(value: Any, mark: str, by: str) -> Any:
    return json.loads(json.dumps(value).replace(mark, by))


if __name__ == "__main__":
    server = Server()
    server.run(json.loads(sys.argv[1]))
    server.wait("method", "never sent")
