"""Sessions of clients, replayed against one real app-server and against a pool, and all that came back compared.

A script (tests/data/differential/*.json) is what a client has sent, in order, with what it had received before:

    {"send": MESSAGE}                               a request or a notification
    {"answer": METHOD, "number": N, "result": ...}  the answer to the Nth request of this method by the server
    {"await": {"answers": [ID, ...], "messages": {METHOD: COUNT}, "turn": TURN}}    messages of TURN, if it is given

In strings of messages `${work}` and `${home}` are directories of the replay, and `${NAME}` is a value of `bindings`:
found at `path` in the answer to the request `answer`, or in the message number `number` of the method `message`.

`compare` puts what was received into groups - the answer to each request, what belongs to each thread, and the rest by
method - and compares each group in its order. Ids, times, paths and counts of tokens are made equal before; deltas of
one item that follow each other are one.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

LIMIT_S = 30.0
# How long what a script waits for may take. A message that does not come is a difference, and the script goes on.
PATIENCE_S = 8.0
# Nothing more comes once nothing has come for so long.
QUIET_S = 1.2
DATA = Path(__file__).parents[1] / "data" / "differential"

Message = dict[str, Any]


class Server:
    """An app-server, or what claims to be one, on stdin and stdout; all that it writes is kept."""

    def __init__(self, argv: list[str], *, home: Path, work: Path, env: dict[str, str]) -> None:
        self.places = {"home": str(home), "work": str(work)}
        self.received: list[Message] = []
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=work, env=env
        )
        self._stderr = b""
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._read_stderr)]
        for thread in self._threads:
            thread.start()

    def send(self, message: Message | str) -> None:
        """Write a message; a string is a line as it is."""
        assert self._process.stdin is not None
        line = message if isinstance(message, str) else json.dumps(message)
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def await_(self, found: Any) -> Any:
        """Wait until `found()` is not None, and return it; None if that takes too long."""
        with self._changed:
            self._changed.wait_for(lambda: found() is not None or self._process.poll() is not None, PATIENCE_S)
            return found()

    def wait_for(self, found: Any, what: str) -> Any:
        """Wait until `found()` is not None, and return it; fail if that takes too long."""
        value = self.await_(found)
        tail = [json.dumps(each)[:200] for each in self.received[-12:]]
        assert value is not None, f"no {what}; the last messages: {tail}; stderr: {self._stderr[-2000:]!r}"
        return value

    def wait_until_quiet(self) -> None:
        """Wait until nothing has come for QUIET_S."""
        until = time.monotonic() + LIMIT_S
        count = -1
        while count != len(self.received) and time.monotonic() < until:
            count = len(self.received)
            with self._changed:
                self._changed.wait_for(lambda count=count: len(self.received) != count, QUIET_S)

    def wait(self) -> int:
        """Wait until it has ended by itself: its exit code."""
        code = self._process.wait(LIMIT_S)
        for thread in self._threads:
            thread.join(LIMIT_S)
        return code

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stderr(self) -> str:
        """The text on stderr so far; all of it once it is closed."""
        return self._stderr.decode(errors="replace")

    def close(self, number: int | None = None) -> int:
        """End its input, or send it a signal, and wait for its end: its exit code."""
        assert self._process.stdin is not None
        try:
            if number is not None:
                self._process.send_signal(number)
            else:
                self._process.stdin.close()
            return self._process.wait(LIMIT_S)
        finally:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.kill()
            self._process.wait()
            for thread in self._threads:
                thread.join(LIMIT_S)
            for stream in (self._process.stdout, self._process.stderr):
                assert stream is not None
                stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.received.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._stderr += line


# Scripts.


@dataclass
class Script:
    client: str
    steps: list[Message]
    bindings: dict[str, Message] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str) -> Script:
        found = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
        return cls(found["client"], found["steps"], found.get("bindings", {}))

    @property
    def requests(self) -> dict[str, str]:
        """The methods of its requests, by id as JSON."""
        sent = [step["send"] for step in self.steps if isinstance(step.get("send"), dict)]
        return {json.dumps(each["id"]): each["method"] for each in sent if "id" in each}


def replay(script: Script, server: Server) -> list[Message]:
    """Send what the client has sent, and return what the server has."""
    for step in script.steps:
        if "send" in step:
            server.send(_filled(step["send"], script, server))
        elif "answer" in step:
            asked = server.wait_for(lambda step=step: _number(server, step["answer"], step["number"]), f"{step}")
            server.send({"id": asked["id"], "result": _filled(step["result"], script, server)})
        else:
            wanted = _filled(step["await"], script, server)
            turn = wanted.get("turn")
            for request_id in wanted.get("answers", ()):
                server.await_(lambda request_id=request_id: _answer(server, request_id))
            for method, count in wanted.get("messages", {}).items():
                server.await_(lambda method=method, count=count, turn=turn: _number(server, method, count, turn))
    server.wait_until_quiet()
    return server.received


def _filled(value: Any, script: Script, server: Server) -> Any:
    def fill(match: re.Match[str]) -> str:
        name = match[1]
        return server.places[name] if name in server.places else str(_bound(name, script, server))

    return json.loads(re.sub(r"\$\{(\w+)\}", fill, json.dumps(value)))


def _bound(name: str, script: Script, server: Server) -> Any:
    binding = script.bindings[name]
    if "answer" in binding:
        message = server.wait_for(lambda: _answer(server, binding["answer"]), f"answer to {binding['answer']}")
    else:
        message = server.wait_for(lambda: _number(server, binding["message"], binding["number"]), f"{binding}")
    for key in binding["path"]:
        message = message[key]
    return message


def _answer(server: Server, request_id: Any) -> Message | None:
    return next((m for m in server.received if "method" not in m and m.get("id") == request_id), None)


def _number(server: Server, method: str, number: int, turn: str | None = None) -> Message | None:
    found = [
        message
        for message in server.received
        if message.get("method") == method and (turn is None or message["params"].get("turnId") == turn)
    ]
    return found[number - 1] if len(found) >= number else None


# Groups.


class Group(NamedTuple):
    """A group of messages: `kind` is answer, thread or other; `name` the request's method, a thread, or a method."""

    kind: str
    name: str


_ID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    # Those of the loopback model.
    r"|\b(?:msg|fc|call|rs|resp)_[0-9a-f]{8}_[0-9_]+"
)
_STAMP = re.compile(r"\d{4}[-/]\d\d[-/]\d\d(T[\d:.-]+Z?)?")
_TIMES = re.compile(r"(At|AtMs|Ms|Time|timestamp|Timestamp|ProcessId|processId)$")
# Of a command that ends at once its output comes as a delta too, or only with its completion, as the moment has it.
_BY_CHANCE = frozenset({"item/commandExecution/outputDelta"})
_TOKENS = {"tokenUsage", "contextWindow", "modelContextWindow"}
# Of a turn that is interrupted the usage of the last response comes, or does not, as the moment has it.
_USAGE = "thread/tokenUsage/updated"


class _Equal:
    """Makes messages of two recordings comparable: ids are named by what they are, or numbered as they appear."""

    def __init__(self, places: dict[str, str], names: dict[str, str]) -> None:
        self._places = sorted(((os.path.realpath(path), name) for name, path in places.items()), reverse=True)
        self._names = dict(names)
        self._count = 0

    def message(self, message: Message) -> Message:
        found = {key: self._value(key, value) for key, value in message.items() if key != "emittedAtMs"}
        # Ids of a server's requests are its own.
        if "method" in found and "id" in found:
            found["id"] = "<request>"
        if found.get("method") == "serverRequest/resolved":
            found["params"]["requestId"] = "<request>"
        return found

    def _value(self, key: str, value: Any) -> Any:
        if isinstance(value, dict):
            if key in _TOKENS:
                return {"<tokens>": sorted(value)}
            return {self._text(name): self._value(name, each) for name, each in value.items()}
        if isinstance(value, list):
            return [self._value(key, each) for each in value]
        if isinstance(value, str):
            # The revision of what was read of a thread counts its changes; cursors hold times.
            if key == "revision" or key.endswith("Cursor"):
                return f"<{key}>"
            return "<time>" if _TIMES.search(key) else self._text(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and _TIMES.search(key):
            return "<time>"
        return value

    def _text(self, text: str) -> str:
        for path, name in self._places:
            text = text.replace(path, f"<{name}>")
        text = _ID.sub(self._id, text)
        return _STAMP.sub("<date>", text)

    def _id(self, match: re.Match[str]) -> str:
        if match[0] not in self._names:
            self._count += 1
            self._names[match[0]] = f"<id {self._count}>"
        return self._names[match[0]]


def groups(script: Script, received: list[Message], places: dict[str, str]) -> dict[Group, list[Message]]:
    """The received messages, in groups, made comparable."""
    raw: dict[Group, list[Message]] = {}
    threads: list[str] = []
    answers: dict[str, list[Message]] = {}
    for message in received:
        if "method" not in message:
            answers.setdefault(json.dumps(message.get("id")), []).append(message)
    # In the order of the requests: threads are numbered as they were started.
    for request_id, method in script.requests.items():
        found = answers.pop(request_id, [])
        raw[Group("answer", f"{request_id} {method}")] = found
        for message in found:
            thread = (message.get("result") or {}).get("thread") if isinstance(message.get("result"), dict) else None
            if isinstance(thread, dict) and thread["id"] not in threads:
                threads.append(thread["id"])
    for request_id, found in answers.items():
        raw[Group("answer", f"{request_id}, never asked")] = found
    by_thread: dict[str, list[Message]] = {thread: [] for thread in threads}
    interrupted = {
        message["params"]["turn"]["id"]
        for message in received
        if message.get("method") == "turn/completed" and message["params"]["turn"]["status"] == "interrupted"
    }
    for message in received:
        if "method" not in message or message["method"] in _BY_CHANCE:
            continue
        params = message.get("params") or {}
        if message["method"] == _USAGE and params.get("turnId") in interrupted:
            continue
        thread = params.get("threadId") or (params.get("thread") or {}).get("id")
        if isinstance(thread, str):
            _add(by_thread.setdefault(thread, []), message)
        else:
            raw.setdefault(Group("other", message["method"]), []).append(message)
    for number, found in enumerate(by_thread.values(), 1):
        raw[Group("thread", str(number))] = _settled(found)
    names = {each: each for each in _ID.findall(json.dumps(script.steps))}
    for number, (thread, found) in enumerate(by_thread.items(), 1):
        names[thread] = f"<thread {number}>"
        turns = [message["params"]["turn"]["id"] for message in found if message["method"] == "turn/started"]
        names |= {turn: f"<turn {place} of thread {number}>" for place, turn in enumerate(turns, 1)}
    comparable: dict[Group, list[Message]] = {}
    for group, found in raw.items():
        equal = _Equal(places, names)
        comparable[group] = [equal.message(message) for message in found]
    return comparable


def _add(found: list[Message], message: Message) -> None:
    """Add a message of a thread; a delta that goes on with the one before is put together with it."""
    last = found[-1] if found else None
    params, before = message.get("params", {}), (last or {}).get("params", {})
    if (
        last is not None
        and last["method"] == message["method"]
        and isinstance(params.get("delta"), str)
        and params.get("itemId") == before.get("itemId")
    ):
        found[-1] = {**last, "params": {**before, "delta": before["delta"] + params["delta"]}}
    else:
        found.append(message)


def _settled(found: list[Message]) -> list[Message]:
    """The messages of a thread, with the change of its status right behind an approval that has brought it about.

    One app-server sends that sometimes before, and sometimes after the end of a command that was declined.
    """
    settled = list(found)
    for place, message in enumerate(found):
        if message["method"] != "serverRequest/resolved":
            continue
        after = found[place + 1 :]
        status = next((each for each in after if each["method"] in ("thread/status/changed", "turn/completed")), None)
        if status is not None and status["method"] == "thread/status/changed":
            settled = [each for each in settled if each is not status]
            settled.insert(next(at for at, each in enumerate(settled) if each is message) + 1, status)
    return settled


# Differences.


class Difference(NamedTuple):
    """`what` was received by one side only, or differs: `where` is a path in it, empty for the message as a whole.

    A message that both have received in another order has ORDER as `where`, and what came before it as the values.
    """

    group: Group
    what: str
    where: str
    real: Any
    pool: Any

    def __str__(self) -> str:
        real, pool = (json.dumps(value)[:300] for value in (self.real, self.pool))
        return f"{self.group.kind} {self.group.name}: {self.what} {self.where}\n    real {real}\n    pool {pool}"


NOTHING = "<nothing>"
ORDER = "(order)"


def compare(real: dict[Group, list[Message]], pool: dict[Group, list[Message]]) -> list[Difference]:
    """The differences between what a real app-server and a pool have sent, group by group."""
    found: list[Difference] = []
    for group in {**real, **pool}:
        ours, theirs = real.get(group, []), pool.get(group, [])
        keys = [[_key(message) for message in side] for side in (ours, theirs)]
        matcher = difflib.SequenceMatcher(None, keys[0], keys[1], autojunk=False)
        alone: tuple[list[int], list[int]] = ([], [])
        for tag, i, j, k, m in matcher.get_opcodes():
            if tag == "equal":
                for one, other in zip(ours[i:j], theirs[k:m], strict=True):
                    found += _changes(group, one, other)
            else:
                alone[0].extend(range(i, j))
                alone[1].extend(range(k, m))
        for place in alone[0]:
            other = next((other for other in alone[1] if keys[1][other] == keys[0][place]), None)
            if other is None:
                found.append(Difference(group, _name(ours[place]), "", ours[place], NOTHING))
                continue
            alone[1].remove(other)
            before = ("", *keys[0])[place], ("", *keys[1])[other]
            found.append(Difference(group, _name(ours[place]), ORDER, *before))
            found += _changes(group, ours[place], theirs[other])
        found += (Difference(group, _name(theirs[place]), "", NOTHING, theirs[place]) for place in alone[1])
    return found


def _changes(group: Group, one: Message, other: Message) -> Iterator[Difference]:
    return (Difference(group, _name(one), where, a, b) for where, a, b in _leaves("", one, other))


def _name(message: Message) -> str:
    """The method; of an item's notification also the kind of the item."""
    method = str(message.get("method", "error" if "error" in message else "result"))
    item = (message.get("params") or {}).get("item")
    return f"{method} {item['type']}" if isinstance(item, dict) and "type" in item else method


def _key(message: Message) -> str:
    """The identity of a message on both sides: its name, and the turn that it is of."""
    params = message.get("params") or {}
    turn = params.get("turnId") or (params.get("turn") or {}).get("id")
    return f"{_name(message)} {turn}" if turn is not None else _name(message)


def _leaves(where: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            yield from _leaves(f"{where}.{key}" if where else key, one.get(key, NOTHING), other.get(key, NOTHING))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _leaves(f"{where}[{number}]", a, b)
    elif one != other:
        yield where, one, other


@dataclass(frozen=True)
class Allowed:
    """A difference that is known: of messages, where in them (regular expressions), and why it is.

    `what` is a method, or that of a group's request; `side`: "pool" or "real" for a message that only that side has
    sent, "one" for either of them, "" for one that differs. `title` is for readers, in place of `what`.
    """

    what: str
    reason: str
    where: str = ""
    side: str = ""
    title: str = ""

    def covers(self, difference: Difference) -> bool:
        names = (difference.what, difference.group.name.rpartition(" ")[2])
        side = "pool" if difference.real == NOTHING and not difference.where else ""
        side = "real" if difference.pool == NOTHING and not difference.where else side
        return (
            (side == self.side or (side != "" and self.side == "one"))
            and any(re.fullmatch(self.what, name) for name in names)
            and re.fullmatch(self.where, difference.where) is not None
        )


def as_text(allowed: tuple[Allowed, ...]) -> str:
    """The known differences as a list in Markdown, each reason once."""
    reasons: dict[str, list[str]] = {}
    for each in allowed:
        reasons.setdefault(each.reason, []).append(each.title or each.what)
    return "".join(
        f"- {', '.join(f'`{title}`' for title in titles)}: {reason}.\n" for reason, titles in reasons.items()
    )
