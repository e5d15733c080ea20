"""A null app-server: speaks the protocol, does no work. Answers at once, or as a scenario defines.

    python _null_app_server.py '{"deltas": 20}'

Standalone, stdlib only, so that it starts in milliseconds: run it by path. For what the real one will not do on
demand - answers that never come, errors, lines that are no lines - and as a load generator: a turn's notifications,
with the sizes of real ones, are written in one go.

The scenario, a JSON object; everything is optional:

    deltas        pieces of text in each turn                                             (default 3)
    pace_ms       pause between two pieces; 0 writes the turn at once                     (default 0)
    text          the turn's answer; in a paced turn each $NOW in it is the time of writing, in seconds of the Unix
                  epoch                                                                   (default "null ")
    order         "normal", or "early": the whole turn comes before the answer that names it
    side_by_side  N: a turn waits until N have been started; then the lines of all N are written at once, alternating,
                  each piece of a turn with a text of its own, and a millisecond for each round of the N
    on            method -> what happens instead of the usual answer, one of
                    {"result": ...}   {"error": {"code": ..., "message": ..., "data": ...}}
                    {"silent": true}              no answer
                    {"raw": ["line", ...]}        these lines, and then the usual answer
                    {"do": [STEP, ...]}           these steps, and then the usual answer
                    {"twice": true}               the usual answer, and the same once more
                    {"exit": CODE}                the process ends
                  or a list of them, one for each call in turn; the last one stays. Method "*" stands for every one that
                  is not named, but initialize
    ask           a request of the server to the client during each turn: {"method": ..., "params": {...}}; its answer
                  becomes the turn's text. With "when": TEXT only in turns whose input has that text
    hold          path: each turn waits before its end until this file exists, or it is interrupted
    end           "completed", "interrupted": turns end only by an interrupt, or "never"      (default "completed")
    open_item     true: a command of the turn runs while the turn waits                       (default false)
    when          text: the three members above are for turns whose input has it              (default all turns)
    rewrite       [[PATTERN, REPLACEMENT], ...]: regular expressions that are replaced in each line that is written, for
                  what another version of the protocol would send
    version       the version in the userAgent                                            (default "0.0.0")
    start         steps before anything is read
    signal        steps when SIGUSR1 comes, whatever is going on
    ignore        what does not end the process, of "stdin" (its end) and "SIGTERM"           (default none)
    generations   path: a file in which each start leaves its pid as a line; and "scenarios": a list, of which the n-th
                  process takes the n-th over its own members, the last one for all that follow

A step is an object with one member:

    {"stderr": N}       N bytes to stderr, in lines           {"bytes": TEXT}    these bytes (latin-1), no newline
    {"long": N}         a notification of N bytes             {"exit": CODE}     the process ends
    {"half": true}      half of a notification, no newline    {"close": true}    stdout is closed
    {"stop": true}      SIGSTOP to itself                     {"wait": PATH}     until this file exists
    {"become": {...}}   these members of the scenario are others from now on
    {"touch": PATH}     this file exists from now on: the steps before are done

$THREAD and $TURN in `bytes` are the ids of the turn that was started last; `long` and `half` belong to it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
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
POLL_S = 0.01
WORDS = (b"the", b"a", b"router", b"notification", b"of", b"side", b"-", b"\\n", b"interpreter", b"each", b"`x`")
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
        if "generations" in scenario:
            scenario = _of_this_generation(scenario)
        self._scenario = scenario
        self._deltas = int(scenario.get("deltas", 3))
        self._pace_s = float(scenario.get("pace_ms", 0)) / 1000
        self._text = str(scenario.get("text", "null "))
        self._calls: dict[str, int] = {}
        self._action: dict[str, Any] = {}
        self._count = 0
        self._write_lock = threading.Lock()
        self._interrupted: set[str] = set()
        self._latest = ("", "")
        # Threads with a turn that has not ended.
        self._active: set[str] = set()
        self._waiting: dict[str, tuple[str, str]] = {}
        self._side_by_side = int(scenario.get("side_by_side", 1))
        self._beside: list[tuple[str, str]] = []
        self._turn_lines = [self._encode(message) for message in self._turn(self._text)]
        # Equal lines once, so that making a long turn costs its reader no time.
        self._turn_runs = [(line, len(list(run))) for line, run in itertools.groupby(self._turn_lines)]

    def serve(self) -> None:
        """Answer stdin until it ends."""
        ignored = self._scenario.get("ignore", ())
        if "SIGTERM" in ignored:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if "signal" in self._scenario:
            # In a thread: the signal may come in the middle of a write.
            steps = self._scenario["signal"]
            signal.signal(
                signal.SIGUSR1, lambda *_: threading.Thread(target=self._do, args=(steps,), daemon=True).start()
            )
        self._do(self._scenario.get("start", ()))
        self._read()
        if "stdin" in ignored:
            threading.Event().wait()

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if "method" not in message:
                self._on_answer(message)
            elif "id" in message:
                self._on_request(message["id"], message["method"], message.get("params") or {})

    def _do(self, steps: Any) -> None:
        for step in steps:
            ((name, value),) = step.items()
            getattr(self, f"_do_{name}")(value)

    def _do_stderr(self, size: int) -> None:
        line = b"e" * 99 + b"\n"
        for _ in range(size // len(line) + 1):
            sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()

    def _do_long(self, size: int) -> None:
        head, tail = self._delta().split(b"$")
        self._write(head + b"x" * (size - len(head) - len(tail.rstrip())) + tail)

    def _do_half(self, _: Any) -> None:
        self._write(self._delta().split(b"$")[0])

    def _do_bytes(self, text: str) -> None:
        self._write(self._with_ids(text.encode("latin-1"), *self._latest, b"$THREAD", b"$TURN"))

    def _do_exit(self, code: int) -> None:
        os._exit(code)

    def _do_close(self, _: Any) -> None:
        # What other threads still write goes nowhere, instead of into whatever is opened next.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def _do_stop(self, _: Any) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def _do_wait(self, path: str) -> None:
        _wait_for(path)

    def _do_touch(self, path: str) -> None:
        open(path, "w").close()

    def _do_become(self, members: dict[str, Any]) -> None:
        self._calls = {}
        self._scenario = {**self._scenario, **members}

    def _delta(self) -> bytes:
        params = {"threadId": THREAD_MARK, "turnId": TURN_MARK, "itemId": "msg_null", "delta": "$"}
        return self._with_ids(self._encode({"method": "item/agentMessage/delta", "params": params}), *self._latest)

    def _on_request(self, request_id: Any, method: str, params: dict[str, Any]) -> None:
        action = self._scripted(method)
        for line in action.get("raw", ()):
            self._write(str(line).encode() + b"\n")
        self._do(action.get("do", ()))
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
            answer = self._encode({"id": request_id, "result": self._result(method, params)})
            self._write(answer * 2 if "twice" in action else answer)

    def _scripted(self, method: str) -> dict[str, Any]:
        on = self._scenario.get("on", {})
        key = method if method in on or method == "initialize" else "*"
        number = self._calls[key] = self._calls.get(key, 0) + 1
        action: Any = on.get(key, {})
        if isinstance(action, list):
            action = action[min(number, len(action)) - 1] if action else {}
        self._action = dict(action)
        return self._action

    def _result(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "initialize":
            return {
                "userAgent": f"null_app_server/{self._scenario.get('version', '0.0.0')}",
                "codexHome": "/",
                "platformFamily": "unix",
                "platformOs": "linux",
            }
        if method in ("thread/start", "thread/resume", "thread/fork"):
            thread_id = params.get("threadId") if method == "thread/resume" else self._new_id("0")
            thread = {**THREAD, "id": thread_id, "sessionId": thread_id, "ephemeral": bool(params.get("ephemeral"))}
            return {**SETTINGS, "thread": thread}
        if method == "turn/interrupt":
            self._interrupted.add(str(params.get("turnId")))
        if method == "thread/read":
            thread_id = str(params.get("threadId"))
            status = {"type": "active", "activeFlags": []} if thread_id in self._active else {"type": "idle"}
            return {"thread": {**THREAD, "id": thread_id, "sessionId": thread_id, "status": status}}
        if method == "config/read":
            return {"config": {}, "origins": {}}
        return {}

    def _start_turn(self, request_id: Any, params: dict[str, Any]) -> None:
        thread_id, turn_id = params.get("threadId"), self._new_id("1")
        if not isinstance(thread_id, str):
            message = "Invalid request: missing field `threadId`"
            self._write(self._encode({"id": request_id, "error": {"code": -32600, "message": message}}))
            return
        turn: dict[str, Any] = {
            "id": turn_id,
            "items": [],
            "itemsView": "notLoaded",
            "status": "inProgress",
            "error": None,
        }
        answer = self._encode({"id": request_id, "result": {"turn": turn}})
        if "twice" in self._action:
            answer *= 2
        self._latest = (thread_id, turn_id)
        said = json.dumps(params.get("input", ""))
        self._active.add(thread_id)
        waits = {key: self._scenario[key] for key in ("hold", "end", "open_item") if key in self._scenario}
        if self._scenario.get("when", "") not in said:
            waits = {}
        ask = self._scenario.get("ask")
        if ask is not None and ask.get("when", "") in said:
            self._waiting[turn_id] = (thread_id, turn_id)
            ask_params = {"threadId": thread_id, "turnId": turn_id, **ask.get("params", {})}
            self._write(answer + self._encode({"id": turn_id, "method": ask["method"], "params": ask_params}))
        elif self._pace_s or waits:
            self._write(answer)
            threading.Thread(target=self._slowly, args=(thread_id, turn_id, waits), daemon=True).start()
        elif self._side_by_side > 1:
            self._write(answer)
            self._beside.append(self._latest)
            if len(self._beside) == self._side_by_side:
                beside, self._beside = self._beside, []
                self._write(b"".join(self._alternating(beside)))
        else:
            early = self._scenario.get("order") == "early"
            events = [self._with_ids(line, thread_id, turn_id) * count for line, count in self._turn_runs]
            self._write(b"".join([*events, answer] if early else [answer, *events]))
            self._active.discard(thread_id)

    def _alternating(self, turns: list[tuple[str, str]]) -> Iterator[bytes]:
        """The lines of these turns, one of each in turn."""
        for place, line in enumerate(self._turn_lines):
            line = line.replace(b"1700000000000", b"%d" % (1700000000000 + place))
            line = line.replace(b'"delta":"', b'"delta":"%s %d ' % (WORDS[place % len(WORDS)], place))
            for thread_id, turn_id in turns:
                yield self._with_ids(line, thread_id, turn_id)

    def _on_answer(self, message: dict[str, Any]) -> None:
        waiting = self._waiting.pop(str(message.get("id")), None)
        if waiting is not None:
            outcome = json.dumps(message.get("result", message.get("error")))
            self._write(self._with_ids(b"".join(map(self._encode, self._turn(outcome))), *waiting))
            self._active.discard(waiting[0])

    def _slowly(self, thread_id: str, turn_id: str, waits: dict[str, Any]) -> None:
        open_item, hold, wanted_end = waits.get("open_item"), waits.get("hold"), waits.get("end", "completed")
        for line in self._turn_lines[:-1]:
            if turn_id in self._interrupted:
                break
            self._write(self._with_ids(line, thread_id, turn_id).replace(b"$NOW", b"%.6f" % time.time()))
            time.sleep(self._pace_s)
        if open_item:
            self._write(self._with_ids(self._encode(self._command("started")), thread_id, turn_id))
        while wanted_end != "completed" or (hold is not None and not os.path.exists(hold)):
            if wanted_end == "never":
                return
            if turn_id in self._interrupted:
                break
            time.sleep(POLL_S)
        end = self._turn_lines[-1]
        if turn_id in self._interrupted:
            end = end.replace(b'"status":"completed"', b'"status":"interrupted"')
        ended = self._encode(self._command("completed")) if open_item else b""
        self._active.discard(thread_id)
        self._write(self._with_ids(ended + end, thread_id, turn_id))

    def _command(self, what: str) -> dict[str, Any]:
        """The notification that a command of a turn was started or completed, with placeholders for its ids."""
        item = {
            "type": "commandExecution",
            "id": "cmd_null",
            "command": "sleep",
            "commandActions": [],
            "cwd": "/",
            "status": "inProgress" if what == "started" else "completed",
        }
        at = {f"{what}AtMs": 3}
        params = {"item": item, "threadId": THREAD_MARK, "turnId": TURN_MARK, **at}
        return {"method": f"item/{what}", "params": params, "emittedAtMs": 1700000000000}

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
        # With the pid: several of them in a pool must not make the same.
        self._count += 1
        return f"00000000-000{kind}-7000-8000-{os.getpid():06x}{self._count:06x}"

    @staticmethod
    def _with_ids(
        data: bytes,
        thread_id: str,
        turn_id: str,
        thread_mark: bytes = THREAD_MARK.encode(),
        turn_mark: bytes = TURN_MARK.encode(),
    ) -> bytes:
        return data.replace(thread_mark, thread_id.encode()).replace(turn_mark, turn_id.encode())

    @staticmethod
    def _encode(message: dict[str, Any]) -> bytes:
        return json.dumps(message, separators=(",", ":")).encode() + b"\n"

    def _write(self, data: bytes) -> None:
        for pattern, replacement in self._scenario.get("rewrite", ()):
            data = re.sub(pattern.encode(), replacement.encode(), data)
        with self._write_lock:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def _of_this_generation(scenario: dict[str, Any]) -> dict[str, Any]:
    """The scenario with the members for a process that is started as this one was: first, second, ..."""
    with open(scenario["generations"], "a+") as starts:
        starts.write(f"{os.getpid()}\n")
        starts.flush()
        starts.seek(0)
        number = starts.read().split().index(str(os.getpid()))
    scenarios = scenario.get("scenarios") or [{}]
    return {**scenario, **scenarios[min(number, len(scenarios) - 1)]}


def _wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(POLL_S)


if __name__ == "__main__":
    NullAppServer(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}).serve()
