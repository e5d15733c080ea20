"""A null app-server: speaks the protocol, does no work. Answers at once, or as a scenario says.

    python null_app_server.py '{"deltas": 20}'

Stands by itself, stdlib only, so that it starts in milliseconds: run it by path. For what the real one will not do on
demand - answers that never come, errors, lines that are no lines - and as a load generator: a turn's notifications,
with the sizes of real ones, are written in one go.

The scenario, a JSON object; everything is optional:

    deltas        pieces of text in each turn                                             (default 3)
    pace_ms       pause between two pieces; 0 writes the turn at once                     (default 0)
    text          the turn's answer                                                       (default "null ")
    order         "normal", or "early": the whole turn comes before the answer that names it
    on            method -> what happens instead of the usual answer, one of
                    {"result": ...}   {"error": {"code": ..., "message": ..., "data": ...}}
                    {"silent": true}              no answer
                    {"raw": ["line", ...]}        these lines, and then the usual answer
                    {"exit": CODE}                the process ends
                  or a list of them, one for each call in turn; the last one stays
    ask           a request of the server to the client during each turn: {"method": ..., "params": {...}}; its answer
                  becomes the turn's text
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

THREAD: dict[str, Any] = {
    "id": "",
    "sessionId": "",
    "preview": "",
    "ephemeral": False,
    "historyMode": "paginated",
    "modelProvider": "null",
    "model": "null-model",
    "createdAt": 1700000000,
    "updatedAt": 1700000000,
    "status": {"type": "idle"},
    "path": None,
    "cwd": "/",
    "cliVersion": "0.0.0",
    "source": "vscode",
    "gitInfo": None,
    "projectId": None,
    "name": None,
    "turns": [],
}
SETTINGS: dict[str, Any] = {
    "model": "null-model",
    "modelProvider": "null",
    "serviceTier": None,
    "cwd": "/",
    "instructionSources": [],
    "approvalPolicy": "never",
    "approvalsReviewer": "user",
    "sandbox": {"type": "readOnly", "networkAccess": False},
    "reasoningEffort": None,
}
# Placeholders of the length of real ids, so that the lines of a turn are made once and only the ids replaced.
THREAD_MARK = "T" * 36
TURN_MARK = "U" * 36
USAGE = {
    "totalTokens": 27,
    "inputTokens": 6,
    "cachedInputTokens": 0,
    "cacheWriteInputTokens": 0,
    "outputTokens": 21,
    "reasoningOutputTokens": 0,
}


class NullAppServer:
    """See the module's docstring."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        self._scenario = scenario
        self._deltas = int(scenario.get("deltas", 3))
        self._pace_s = float(scenario.get("pace_ms", 0)) / 1000
        self._text = str(scenario.get("text", "null "))
        self._calls: dict[str, int] = {}
        self._action: dict[str, Any] = {}
        self._count = 0
        self._write_lock = threading.Lock()
        self._interrupted: set[str] = set()
        self._waiting: dict[str, tuple[str, str]] = {}
        self._turn_lines = [self._encode(message) for message in self._turn(self._text)]
        self._turn_bytes = b"".join(self._turn_lines)

    def serve(self) -> None:
        """Answer stdin until it ends."""
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if "method" not in message:
                self._on_answer(message)
            elif "id" in message:
                self._on_request(message["id"], message["method"], message.get("params") or {})

    def _on_request(self, request_id: Any, method: str, params: dict[str, Any]) -> None:
        for line in self._scripted(method).get("raw", ()):
            self._write(str(line).encode() + b"\n")
        action = self._action
        if "exit" in action:
            sys.exit(int(action["exit"]))
        if "silent" in action:
            return
        if "error" in action:
            self._write(self._encode({"id": request_id, "error": action["error"]}))
        elif "result" in action:
            self._write(self._encode({"id": request_id, "result": action["result"]}))
        elif method == "turn/start":
            self._start_turn(request_id, params)
        else:
            self._write(self._encode({"id": request_id, "result": self._result(method, params)}))

    def _scripted(self, method: str) -> dict[str, Any]:
        number = self._calls[method] = self._calls.get(method, 0) + 1
        action: Any = self._scenario.get("on", {}).get(method, {})
        if isinstance(action, list):
            action = action[min(number, len(action)) - 1] if action else {}
        self._action = dict(action)
        return self._action

    def _result(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "initialize":
            return {
                "userAgent": "null_app_server/0.0.0",
                "codexHome": "/",
                "platformFamily": "unix",
                "platformOs": "linux",
            }
        if method in ("thread/start", "thread/resume", "thread/fork"):
            thread_id = params.get("threadId") if method == "thread/resume" else self._new_id("0")
            thread = {**THREAD, "id": thread_id, "sessionId": thread_id, "ephemeral": bool(params.get("ephemeral"))}
            return {**SETTINGS, "thread": thread}
        if method == "turn/interrupt":
            self._interrupted.add(params["turnId"])
        return {}

    def _start_turn(self, request_id: Any, params: dict[str, Any]) -> None:
        thread_id, turn_id = params["threadId"], self._new_id("1")
        turn: dict[str, Any] = {
            "id": turn_id,
            "items": [],
            "itemsView": "notLoaded",
            "status": "inProgress",
            "error": None,
        }
        answer = self._encode({"id": request_id, "result": {"turn": turn}})
        ask = self._scenario.get("ask")
        if ask is not None:
            self._waiting[turn_id] = (thread_id, turn_id)
            ask_params = {"threadId": thread_id, "turnId": turn_id, **ask.get("params", {})}
            self._write(answer + self._encode({"id": turn_id, "method": ask["method"], "params": ask_params}))
        elif self._pace_s:
            self._write(answer)
            threading.Thread(target=self._paced, args=(thread_id, turn_id), daemon=True).start()
        else:
            events = self._with_ids(self._turn_bytes, thread_id, turn_id)
            early = self._scenario.get("order") == "early"
            self._write(events + answer if early else answer + events)

    def _on_answer(self, message: dict[str, Any]) -> None:
        waiting = self._waiting.pop(str(message.get("id")), None)
        if waiting is not None:
            outcome = json.dumps(message.get("result", message.get("error")))
            self._write(self._with_ids(b"".join(map(self._encode, self._turn(outcome))), *waiting))

    def _paced(self, thread_id: str, turn_id: str) -> None:
        for line in self._turn_lines[:-1]:
            if turn_id in self._interrupted:
                break
            self._write(self._with_ids(line, thread_id, turn_id))
            time.sleep(self._pace_s)
        end = self._turn_lines[-1]
        if turn_id in self._interrupted:
            end = end.replace(b'"status":"completed"', b'"status":"interrupted"')
        self._write(self._with_ids(end, thread_id, turn_id))

    def _turn(self, text: str) -> list[dict[str, Any]]:
        """The notifications of one turn, with placeholders for its ids."""
        ids = {"threadId": THREAD_MARK, "turnId": TURN_MARK}
        turn: dict[str, Any] = {
            "id": TURN_MARK,
            "items": [],
            "itemsView": "notLoaded",
            "status": "inProgress",
            "error": None,
        }
        item = {"type": "agentMessage", "id": "msg_null", "text": "", "phase": None, "memoryCitation": None}
        whole = {**item, "text": text * max(1, self._deltas) if self._deltas and text == self._text else text}
        delta = {**ids, "itemId": "msg_null", "delta": text}
        usage = {"total": USAGE, "last": USAGE, "modelContextWindow": 258400}
        completed = {**turn, "status": "completed", "startedAt": 1700000000, "completedAt": 1700000001, "durationMs": 9}
        messages: list[tuple[str, dict[str, Any]]] = [
            ("turn/started", {"threadId": THREAD_MARK, "turn": turn}),
            ("item/started", {"item": item, **ids, "startedAtMs": 1}),
            *[("item/agentMessage/delta", delta)] * self._deltas,
            ("item/completed", {"item": whole, **ids, "completedAtMs": 2}),
            ("thread/tokenUsage/updated", {**ids, "tokenUsage": usage}),
            ("turn/completed", {"threadId": THREAD_MARK, "turn": completed}),
        ]
        return [{"method": method, "params": params, "emittedAtMs": 1700000000000} for method, params in messages]

    def _new_id(self, kind: str) -> str:
        self._count += 1
        return f"00000000-000{kind}-7000-8000-{self._count:012x}"

    @staticmethod
    def _with_ids(data: bytes, thread_id: str, turn_id: str) -> bytes:
        return data.replace(THREAD_MARK.encode(), thread_id.encode()).replace(TURN_MARK.encode(), turn_id.encode())

    @staticmethod
    def _encode(message: dict[str, Any]) -> bytes:
        return json.dumps(message, separators=(",", ":")).encode() + b"\n"

    def _write(self, data: bytes) -> None:
        with self._write_lock:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    NullAppServer(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}).serve()
