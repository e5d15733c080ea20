"""Records sessions of real clients as scripts for `differential`.

    python session_recorder.py stdio LOG COMMAND...          a client that starts its server: this is the server
    python session_recorder.py unix LOG LISTEN CONNECT       one that connects by WebSocket to a Unix socket
    python session_recorder.py script LOG NAME HOME WORK     makes tests/data/differential/NAME.json of a log

The first two pass everything on, and append each message to LOG. In a script ids of threads and turns become bindings,
directories placeholders, and what the client sent comes after what it had received by then.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data" / "differential"
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# What a client may wait for before it goes on. Of others it depends on the moment how many have come.
_LANDMARKS = re.compile(r"turn/(started|completed)|item/(started|completed)|.*requestApproval|serverRequest/resolved")
# What a client does at some point of a turn's text.
_IN_MID_TURN = frozenset({"turn/interrupt", "turn/steer"})
_DELTA = "item/agentMessage/delta"


class Log:
    def __init__(self, path: str) -> None:
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._lock = threading.Lock()

    def add(self, side: str, connection: int, line: bytes) -> None:
        entry = {"from": side, "connection": connection, "message": json.loads(line)}
        with self._lock:
            self._file.write(json.dumps(entry) + "\n")


def record_stdio(log: Log, command: list[str]) -> int:
    """Pass lines on between stdin, a server, and stdout."""
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None and server.stdout is not None

    def requests() -> None:
        for line in sys.stdin.buffer:
            log.add("client", 1, line)
            server.stdin.write(line)
            server.stdin.flush()
        server.stdin.close()

    threading.Thread(target=requests, daemon=True).start()
    for line in server.stdout:
        log.add("server", 1, line)
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    return server.wait()


def record_unix(log: Log, listen: str, connect: str) -> None:
    """Pass bytes on between connections to one socket and to another, until it is ended."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(listen)
        listener.listen()
        for number in range(1, 1000):
            client, _ = listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(connect)
            for side, one, other in (("client", client, server), ("server", server, client)):
                threading.Thread(target=_pass_on, args=(log, side, number, one, other), daemon=True).start()


def _pass_on(log: Log, side: str, number: int, one: socket.socket, other: socket.socket) -> None:
    frames = _Frames()
    while chunk := one.recv(65536):
        # Before it is passed on, so that the answer comes later in the log.
        for message in frames.feed(chunk):
            log.add(side, number, message)
        other.sendall(chunk)
    other.shutdown(socket.SHUT_WR)


class _Frames:
    """The text messages in one direction of a WebSocket connection, behind its HTTP head."""

    def __init__(self) -> None:
        self._data = b""
        self._in_head = True
        self._parts = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        self._data += chunk
        if self._in_head:
            _, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            self._data, self._in_head = rest, False
        while (frame := self._frame()) is not None:
            final, opcode, payload = frame
            if opcode in (0, 1):
                self._parts += payload
                if final:
                    message, self._parts = self._parts, b""
                    yield message

    def _frame(self) -> tuple[bool, int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        size, at = data[1] & 0x7F, 2
        extended = {126: 2, 127: 8}.get(size, 0)
        if len(data) < at + extended:
            return None
        if extended:
            size, at = int.from_bytes(data[at : at + extended], "big"), at + extended
        mask = data[at : at + 4] if data[1] & 0x80 else b""
        at += len(mask)
        if len(data) < at + size:
            return None
        payload = data[at : at + size]
        if mask:
            payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
        self._data = data[at + size :]
        return bool(data[0] & 0x80), data[0] & 0x0F, payload


def script_of(entries: list[dict[str, Any]], client: str, places: dict[str, str]) -> dict[str, Any]:
    """A script made of the log of one connection."""
    steps: list[dict[str, Any]] = []
    bindings: dict[str, Any] = {}
    names: dict[str, str] = {}
    seen: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    awaited: dict[str, int] = {}
    new_answers: list[Any] = []

    def text_of(value: Any) -> Any:
        text = json.dumps(value)
        for name, path in places.items():
            text = text.replace(path, f"${{{name}}}")
        for found in dict.fromkeys(_UUID.findall(text)):
            if found not in names:
                binding = _made(found, entries) or _binding_of(found, seen)
                if binding is None:
                    # One that the client has made, or an id that stands in no message: as it is.
                    continue
                names[found] = f"id{len(names) + 1}"
                bindings[names[found]] = binding
            text = text.replace(found, f"${{{names[found]}}}")
        return json.loads(text)

    for entry in entries:
        message = entry["message"]
        if entry["from"] == "server":
            seen.append(message)
            if "method" not in message:
                new_answers.append(message["id"])
            elif _LANDMARKS.fullmatch(message["method"]):
                counts[message["method"]] = counts.get(message["method"], 0) + 1
            continue
        fresh = {method: count for method, count in counts.items() if awaited.get(method) != count}
        if new_answers or fresh:
            steps.append({"await": {"answers": new_answers, "messages": fresh}})
            awaited, new_answers = dict(counts), []
        if "method" in message:
            if message["method"] in _IN_MID_TURN:
                turn = message["params"].get("turnId", message["params"].get("expectedTurnId"))
                deltas = [each for each in seen if each.get("method") == _DELTA and each["params"]["turnId"] == turn]
                if deltas:
                    steps.append({"await": {"messages": {_DELTA: len(deltas)}, "turn": text_of(turn)}})
            steps.append({"send": text_of(message)})
            continue
        asked = next(each for each in seen if "method" in each and each.get("id") == message["id"])
        method = asked["method"]
        number = [each for each in seen if each.get("method") == method].index(asked) + 1
        steps.append({"answer": method, "number": number, "result": text_of(message["result"])})
    if new_answers or counts != awaited:
        steps.append({"await": {"answers": new_answers, "messages": counts}})
    return {"client": client, "bindings": bindings, "steps": steps}


def _made(value: str, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The answer to the request that has made a thread or a turn, wherever in the log it is."""
    for entry in entries:
        result = entry["message"].get("result") if entry["from"] == "server" else None
        for kind in ("thread", "turn"):
            made = result.get(kind) if isinstance(result, dict) else None
            if isinstance(made, dict) and made.get("id") == value:
                return {"answer": entry["message"]["id"], "path": ["result", kind, "id"]}
    return None


def _binding_of(value: str, seen: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The place where a value was first received."""
    counts: dict[str, int] = {}
    for message in seen:
        method = message.get("method")
        if method is not None:
            counts[method] = counts.get(method, 0) + 1
        path = _path_to(value, message)
        if path is not None:
            where = {"answer": message["id"]} if method is None else {"message": method, "number": counts[method]}
            return {**where, "path": path}
    return None


def _path_to(value: str, message: Any) -> list[Any] | None:
    if isinstance(message, dict | list):
        for key, each in message.items() if isinstance(message, dict) else enumerate(message):
            if each == value:
                return [key]
            if (path := _path_to(value, each)) is not None:
                return [key, *path]
    return None


def main() -> None:
    what, path, *arguments = sys.argv[1:]
    if what == "stdio":
        sys.exit(record_stdio(Log(path), arguments))
    if what == "unix":
        record_unix(Log(path), *arguments)
    name, home, work, *connection = arguments
    entries = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    entries = [each for each in entries if each["connection"] == int(connection[0] if connection else 1)]
    places = {"home": os.path.realpath(home), "work": os.path.realpath(work)}
    info = next(
        each["message"]["params"]["clientInfo"] for each in entries if each["message"].get("method") == "initialize"
    )
    script = script_of(entries, f"{info['name']} {info['version']}", places)
    (DATA / f"{name}.json").write_text(json.dumps(script, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
