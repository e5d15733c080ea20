"""A session of two clients of one server, on a real app-server and on bridges to a pool, for `differential`."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from app_server_socket import LIMIT_S, Message, Peer
from differential import QUIET_S, Script

APPROVAL = "item/commandExecution/requestApproval"


class StdioPeer(Peer):
    """A client of an app-server, or of what claims to be one, on stdin and stdout."""

    def __init__(self, command: list[str], *, cwd: Path, env: dict[str, str]) -> None:
        super().__init__()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=cwd, env=env)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def send_text(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(LIMIT_S)
        finally:
            self._process.kill()
            self._thread.join(LIMIT_S)
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.deliver(json.loads(line))


class Client:
    """A client that keeps what it requests, as a script: ids and methods alone, as parameters have ids of threads."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.script = Script("two clients", [])
        send = peer.send

        def kept(message: Message) -> None:
            if "method" in message:
                self.script.steps.append({"send": {key: message[key] for key in ("id", "method") if key in message}})
            send(message)

        peer.send = kept  # type: ignore[method-assign]
        peer.initialize("differential")


def play(first: Peer, second: Peer, work: Path) -> tuple[Client, Client]:
    """Let two clients work on one thread, and each on threads of its own, until they have received all of it."""
    a, b = Client(first), Client(second)
    thread = first.thread(cwd=str(work), approvalPolicy="untrusted", sandbox="workspace-write")
    _turn(first, second, thread, '[[text "one two" deltas=2]]', subscribed=False)
    second.request("thread/resume", {"threadId": thread})
    _quiet(first, second)
    _turn(first, second, thread, '[[text "three four" deltas=2]]')
    _turn(second, first, thread, '[[text "five six" deltas=2]]')
    # Both are asked, the second decides.
    _asked(first, second, thread, "accepted", lambda asked: second.answer(asked, {"decision": "accept"}))
    _asked(second, first, thread, "declined", lambda asked: first.answer(asked, {"decision": "decline"}))

    def interrupt(asked: Message) -> None:
        second.request("turn/interrupt", {"threadId": thread, "turnId": asked["params"]["turnId"]})

    _asked(first, second, thread, "interrupted", interrupt)
    _begun_unasked(first, second, "thread/shellCommand", threadId=thread, command="echo hello")
    target = {"type": "custom", "instructions": "x"}
    _begun_unasked(first, second, "review/start", threadId=thread, delivery="inline", target=target)
    second.request("thread/name/set", {"threadId": thread, "name": "a name"})
    _quiet(first, second)
    fork = second.request("thread/fork", {"threadId": thread, "excludeTurns": True})["thread"]["id"]
    _quiet(first, second)
    _turn(second, first, fork, '[[text "forked"]]', subscribed=False)
    for method, who in (("archive", second), ("unarchive", first), ("resume", first), ("delete", second)):
        who.ask(f"thread/{method}", {"threadId": fork})
        _quiet(first, second)
    second.request("thread/unsubscribe", {"threadId": thread})
    _turn(first, second, thread, '[[text "alone"]]', subscribed=False)
    for peer in (first, second):
        peer.request("thread/list", {"limit": 10})
        peer.request("thread/list", {"limit": 1, "sortKey": "recency_at", "useStateDbOnly": True})
        peer.request("thread/loaded/list")
    _quiet(first, second)
    return a, b


def _turn(starter: Peer, other: Peer, thread: str, text: str, *, subscribed: bool = True) -> None:
    after = other.count
    turn = starter.run(thread, text)
    if subscribed:
        other.wait_end(turn, after=after)
    _quiet(starter, other)


def _asked(starter: Peer, other: Peer, thread: str, name: str, decide: Any) -> None:
    after = starter.count, other.count
    turn = starter.turn(thread, f'[[tool_call "touch {name}"]] [[text "{name}: done"]]')
    asked = [peer.wait_for(APPROVAL, after=place) for peer, place in zip((starter, other), after, strict=True)]
    decide(asked[0])
    for peer, place in zip((starter, other), after, strict=True):
        peer.wait_end(turn, after=place)
    _quiet(starter, other)


def _begun_unasked(starter: Peer, other: Peer, method: str, **params: Any) -> None:
    after = starter.count, other.count
    starter.request(method, params)
    for peer, place in zip((starter, other), after, strict=True):
        peer.wait_for("turn/completed", after=place)
    _quiet(starter, other)


def _quiet(*peers: Peer) -> None:
    """Wait until nothing has come for QUIET_S: what comes unasked has no other end."""
    began = last = time.monotonic()
    counts = [peer.count for peer in peers]
    while time.monotonic() < min(began + LIMIT_S, last + QUIET_S):
        time.sleep(0.05)
        if counts != (now := [peer.count for peer in peers]):
            counts, last = now, time.monotonic()
