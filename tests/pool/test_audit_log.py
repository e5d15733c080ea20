"""The audit log: what its records have, that none has a prompt, its rotation, and what cannot be written."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

from small_disk import small_disk
from test_policy_broker import KeyedBench, identity
from waiting import until

from codex_pool.broker import audit
from codex_pool.broker.audit_log import AuditLog
from codex_pool.broker.effects import Audit
from codex_pool.protocol import wire

SECRET = "the-secret-of-a-prompt"


class AuditedBench(KeyedBench):
    """Keeps the records."""

    def __init__(self, *identities: Any) -> None:
        self.records: list[dict[str, Any]] = []
        super().__init__(*identities)
        self.core.state.audit_file = "audit.jsonl"
        self.register()

    def apply(self, effects: list[Any]) -> list[Any]:
        self.records += [each.record for each in effects if isinstance(each, Audit)]
        return super().apply(effects)

    def last(self) -> dict[str, Any]:
        return self.records[-1]


def test_who_asked_for_what_and_how_it_was_decided() -> None:
    bench = AuditedBench(identity("alice", max_tokens=0), identity("bob"))
    for session in ("alice-1", "bob-1", "own"):
        bench.hello(session)
    assert [(each["name"], each["decision"]) for each in bench.records] == [
        ("alice", "allowed"),
        ("bob", "allowed"),
        ("owner", "allowed"),
    ]
    bench.call("thread/start", {"sandbox": "read-only", "approvalPolicy": "never", "cwd": "/srv"}, session="bob-1")
    assert bench.last() == {
        "event": "request",
        "principal": "P-bob",
        "name": "bob",
        "key": None,
        "session": "bob-1",
        "client": "bob-1",
        "method": "thread/start",
        "sandbox": "read-only",
        "approvalPolicy": "never",
        "decision": "allowed",
    }
    bench.answer_all(bench.workers["w0"])
    bench.keyed_thread("t1", "alice-1")
    prompt = {"threadId": "t1", "input": [{"type": "text", "text": SECRET}]}
    for session, reason in (("bob-1", "thread"), ("alice-1", "tokens")):
        count = len(bench.records)
        bench.call("turn/start", prompt, session=session)
        assert len(bench.records) == count + 1
        found = bench.last()
        assert (found["method"], found["threadId"], found["decision"]) == ("turn/start", "t1", "refused")
        assert found["reason"] == reason
    bench.call("pool/session/kick", {"session": "bob-1"}, session="bob-1")
    assert bench.last()["reason"] == "method"
    bench.call("pool/session/kick", {"session": "bob-1"}, session="own")
    kick = next(each for each in bench.records if each["name"] == "owner" and "method" in each)
    assert kick["parameters"] == {"session": "bob-1"} and kick["decision"] == "allowed"
    assert SECRET not in json.dumps(bench.records)


def test_answers_of_clients_are_decisions_too() -> None:
    bench = AuditedBench(identity("alice"))
    bench.hello("alice-1")
    bench.hello("own")
    body = {"id": "w0/1", "result": {"decision": "accept", "text": SECRET}}
    for session, decision in (("alice-1", "refused"), ("own", "allowed")):
        bench.from_client(wire.Call(), json.dumps(body).encode(), session=session)
        found = bench.last()
        assert (found["event"], found["answer"], found["decision"]) == ("answer", "accept", decision)
    bench.from_client(wire.Call(), json.dumps({"id": "w0/2", "result": {"answers": [SECRET]}}).encode(), session="own")
    assert bench.last()["answer"] == "other" and SECRET not in json.dumps(bench.records)


def test_a_request_that_waits_is_refused_after_it_was_allowed() -> None:
    bench = AuditedBench(identity("alice", max_running_turns=1))
    bench.hello("alice-1")
    for name in ("t1", "t2"):
        bench.keyed_thread(name, "alice-1")
        bench.call("turn/start", {"threadId": name}, session="alice-1")
        bench.answer_all(bench.workers["w0"])
    assert bench.core.state.policy is not None
    bench.core.state.policy.replace([identity("alice", max_tokens=0)])
    bench.apply(bench.core.keys_changed(bench.now))
    decisions = [each["decision"] for each in bench.records if each.get("threadId") == "t2"]
    assert decisions == ["allowed", "refused"] and bench.last()["reason"] == "tokens"


def test_changes_of_keys() -> None:
    alice, bob = identity("alice"), identity("bob")
    before, after = {"K" * 40: alice, "L" * 40: bob}, {"K" * 40: identity("alice", max_tokens=5), "M" * 40: bob}
    found = [(each["name"], each["decision"], each.get("now")) for each in audit.of_keys(before, after)]
    assert found == [("alice", "changed", {"max_tokens": 5}), ("bob", "removed", None), ("bob", "added", None)]


# The file.


def test_files_are_rotated_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(str(path), max_bytes=2000, files=3)
    for number in range(200):
        log.write({"event": "request", "number": number})
        assert log._writer.settle(5.0)
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [each.name for each in files] == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 and each.stat().st_size <= 2000 for each in files)
    numbers = [json.loads(line)["number"] for each in reversed(files) for line in each.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 200)) and log.lost == 0


def test_a_pipe_that_has_no_reader_holds_up_nothing_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "audit.fifo"
    os.mkfifo(path)
    log = AuditLog(str(path), max_bytes=2000, files=3)
    done = threading.Event()

    def write() -> None:
        for number in range(10_000):
            log.write({"event": "request", "number": number, "more": "x" * 1000})
        done.set()

    threading.Thread(target=write, daemon=True).start()
    assert done.wait(10.0) and log.lost > 0
    with open(path, encoding="utf-8") as reader:
        closing = threading.Thread(target=log.close)
        closing.start()
        lines = [json.loads(line) for line in reader]
        closing.join()
    assert lines[0]["number"] == 0 and stat.S_ISFIFO(path.stat().st_mode)
    assert sum("number" in each for each in lines) + log.lost == 10_000
    assert lines[-1]["event"] == "lost" and lines[-1]["lines"] == log.lost


def test_a_full_disk_loses_lines_and_says_how_many(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        path = disk.seen / "audit.jsonl"
        log = AuditLog(str(path), max_bytes=10**9, files=2)
        disk.fill()
        for number in range(100):
            log.write({"event": "request", "number": number, "more": "x" * 5000})
        until(lambda: log.lost)
        assert log._writer.settle(5.0)
        disk.make_room()
        log.write({"event": "request", "number": 100})
        log.close()
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    lost = [each["lines"] for each in lines if each["event"] == "lost"]
    assert sum(lost) == log.lost > 0 and lines[-1]["number"] == 100
