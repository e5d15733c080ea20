"""Commands, processes, watches and searches in a worker: under ids of their own below, under the client's above."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from session_ids import sid
from worker_bench import Bench, encode

from codex_app_server.generated.routing import NOTIFICATIONS, REQUESTS
from codex_pool.protocol import wire
from codex_pool.protocol.bound_methods import KIND_OF_METHOD, KIND_OF_NOTIFICATION, KINDS
from codex_pool.runtime.processes import ProcessId, TreeProcess
from codex_pool.worker.bound_objects import END_AGAIN_S
from codex_pool.worker.census import SETTLE_S, ProcessSnapshot
from codex_pool.worker.request_table import MAX_IN_FLIGHT
from codex_pool.worker.subscription import MIB, Limits

NOTHING = {"bound": 0, "bound_streams": 0, "bound_subscriptions": 0, "bound_kept_bytes": 0}
HERE = {"initialize", "thread/unsubscribe"}


@pytest.fixture
def bench() -> Bench:
    return Bench().start()


def bound(bench: Bench) -> dict[str, int]:
    return {name: count for name, count in bench.core.held.items() if name.startswith("bound")}


def sent(bench: Bench, method: str) -> list[dict[str, Any]]:
    """The parameters of what the app-server was sent of this method."""
    return [each["params"] for each in bench.sent if each.get("method") == method]


def stream(bench: Bench, session: str = "s1") -> list[dict[str, Any]]:
    """Notifications that a session got of its objects."""
    return [
        line
        for (name, _), messages in bench.events.items()
        if name == session
        for _, lines in messages
        for line in lines
    ]


def unbound(bench: Bench) -> list[tuple[str, str]]:
    return [(head.kind, head.name) for head in bench.routed(wire.Unbound)]


def output(bench: Bench, process_id: str, text: bytes = b"x") -> None:
    params = {"processId": process_id, "stream": "stdout", "capReached": False}
    bench.notify("command/exec/outputDelta", **params, deltaBase64=base64.b64encode(text).decode())


def exited(bench: Bench, handle: str, code: int = 0) -> None:
    params = {"exitCode": code, "stdout": "", "stdoutCapReached": False, "stderr": "", "stderrCapReached": False}
    bench.notify("process/exited", processHandle=handle, **params)


# The table.


def test_the_table_has_all_that_the_schema_binds_to_a_connection() -> None:
    of_sessions = {method for method, entry in REQUESTS.items() if entry.scope == "session"} - HERE
    assert of_sessions == KIND_OF_METHOD.keys()
    named = {"processId", "processHandle", "watchId", "sessionId"}
    assert {kind.id_field for kind in KINDS} == named
    beginnings = ("command/exec/", "process/", "fs/", "fuzzyFileSearch/session")
    assert {method for method in NOTIFICATIONS if method.startswith(beginnings)} == KIND_OF_NOTIFICATION.keys()
    assert all(NOTIFICATIONS[method].thread is None for method in KIND_OF_NOTIFICATION)


# Ids.


def test_two_sessions_have_the_same_id_and_each_gets_its_own(bench: Bench) -> None:
    calls = {s: bench.dispatch("command/exec", {"processId": "a/b", "tty": True}, session=s) for s in ("s1", "s2")}
    first, second = (params["processId"] for params in sent(bench, "command/exec"))
    assert first != second and first.endswith("/a/b") and second.endswith("/a/b")
    output(bench, second)
    output(bench, first)
    for session in ("s1", "s2"):
        (line,) = stream(bench, session)
        assert line["method"] == "command/exec/outputDelta" and line["params"]["processId"] == "a/b"
    bench.dispatch("command/exec/write", {"processId": "a/b", "deltaBase64": ""}, session="s2")
    assert sent(bench, "command/exec/write")[0]["processId"] == second
    bench.answer(bench.request("command/exec"), {"exitCode": 0})
    assert stream(bench)[-1]["result"] == {"exitCode": 0} and unbound(bench) == [("command", "a/b")]
    assert bench.answered[calls["s1"]] == (wire.Answered(calls["s1"], True), {})
    assert calls["s2"] not in bench.answered and len(stream(bench, "s2")) == 1


def test_the_id_is_free_before_the_client_reads_of_the_end_and_its_request_is_answered_after_that(bench: Bench) -> None:
    bench.dispatch("command/exec", {"processId": "p"})
    bench.routes.clear()
    bench.answer(bench.request("command/exec"), {"exitCode": 0})
    assert [type(route) for route in bench.routes] == [wire.Unbound, wire.ToSessions, wire.Answered]


def test_errors_name_the_id_of_the_client(bench: Bench) -> None:
    call = bench.dispatch("command/exec/write", {"processId": "x/y"})
    (params,) = sent(bench, "command/exec/write")
    assert params["processId"] == "0/x/y", "there is none of this number"
    bench.answer(bench.request("command/exec/write"), error=f'no active command/exec for "{params["processId"]}"')
    assert bench.answered[call][1]["error"]["message"] == 'no active command/exec for "x/y"'
    bench.dispatch("fs/watch", {"watchId": "w", "path": "/p"})
    bench.answer(bench.request("fs/watch"), {"path": "/p"})
    again = bench.dispatch("fs/watch", {"watchId": "w", "path": "/q"})
    (first,) = sent(bench, "fs/watch")
    assert bench.answered[again][1]["error"]["message"] == "watchId already exists: w"
    bench.notify("fs/changed", watchId=first["watchId"], changedPaths=["/p"])
    assert stream(bench)[-1]["params"] == {"watchId": "w", "changedPaths": ["/p"]}, "the first one is still there"


def test_ids_that_the_app_server_refuses_are_left_to_it(bench: Bench) -> None:
    bench.dispatch("process/spawn", {"processHandle": "", "command": ["x"]})
    bench.dispatch("fs/watch", {"watchId": 7})
    bench.dispatch("command/exec", {"command": ["x"], "tty": True})
    assert sent(bench, "process/spawn")[0]["processHandle"] == "" and sent(bench, "fs/watch")[0]["watchId"] == 7
    assert "processId" not in sent(bench, "command/exec")[0]
    assert bound(bench) == NOTHING | {"bound": 0}


def test_an_id_may_be_used_again_as_soon_as_its_end_was_requested(bench: Bench) -> None:
    bench.dispatch("fs/watch", {"watchId": "w", "path": "/p"})
    bench.answer(bench.request("fs/watch"), {"path": "/p"})
    bench.dispatch("fs/unwatch", {"watchId": "w"})
    bench.dispatch("fs/watch", {"watchId": "w", "path": "/q"})
    first, second = (params["watchId"] for params in sent(bench, "fs/watch"))
    assert first != second
    bench.answer(bench.request("fs/unwatch"), {})
    (head,) = bench.routed(wire.Unbound)
    assert head.replaced, "the broker is not to forget the new one"
    bench.answer(bench.request("fs/watch"), {"path": "/q"})
    bench.notify("fs/changed", watchId=first, changedPaths=["/late"])
    bench.notify("fs/changed", watchId=second, changedPaths=["/q"])
    assert [line["params"]["changedPaths"] for line in stream(bench)] == [["/q"]]


# The end.


def test_a_process_ends_with_its_notification(bench: Bench) -> None:
    bench.dispatch("process/spawn", {"processHandle": "h", "command": ["x"]})
    handle = sent(bench, "process/spawn")[0]["processHandle"]
    # All of it in one read: what follows the answer is not sent before it.
    bench.routes.clear()
    bench.say(
        {"method": "process/outputDelta", "params": {"processHandle": "9/other", "deltaBase64": ""}},
        {"id": bench.request("process/spawn"), "result": {}},
        {"method": "process/exited", "params": {"processHandle": handle, "exitCode": 3, "stderr": ""}},
    )
    kinds = [type(route) for route in bench.routes]
    assert kinds == [wire.Answered, wire.Unbound, wire.ToSessions]
    assert stream(bench)[0]["params"]["exitCode"] == 3
    bench.ack()
    bench.tick(1.0)
    assert bound(bench) == NOTHING


@pytest.mark.parametrize("keep", [False, True])
def test_all_ends_with_the_session_even_what_the_app_server_does_not_know_yet(bench: Bench, keep: bool) -> None:
    bench.dispatch("command/exec", {"processId": "p"})
    bench.dispatch("command/exec", {"command": ["without an id"]})
    bench.dispatch("process/spawn", {"processHandle": "h", "command": ["x"]})
    bench.dispatch("fs/watch", {"watchId": "w", "path": "/p"})
    bench.answer(bench.request("fs/watch"), {"path": "/p"})
    bench.apply(bench.core.broker_message(wire.SessionGone(sid("s1"), keep), [], bench.now))
    ids = [params["processId"] for params in sent(bench, "command/exec")]
    assert [params["processId"] for params in sent(bench, "command/exec/terminate")] == ids
    assert len(sent(bench, "fs/unwatch")) == 1 and not sent(bench, "process/kill"), "it is not known to have begun"
    for _ in ids:
        bench.answer(bench.request("command/exec/terminate"), error="no active command/exec")
    bench.answer(bench.request("fs/unwatch"), {})
    bench.answer(bench.request("process/spawn"), {})
    (kill,) = sent(bench, "process/kill")
    bench.answer(bench.request("process/kill"), {})
    exited(bench, kill["processHandle"], 137)
    bench.tick(END_AGAIN_S)
    assert len(sent(bench, "command/exec/terminate")) == 4, "until they have ended"
    for _ in ids:
        bench.answer(bench.request("command/exec/terminate"), {})
        bench.answer(bench.request("command/exec"), {"exitCode": 137})
    bench.tick(END_AGAIN_S)
    assert bound(bench) == NOTHING and not bench.open and unbound(bench) == []


@pytest.mark.parametrize("keep", [False, True])
def test_what_was_not_sent_yet_is_never_sent_once_its_session_is_over(bench: Bench, keep: bool) -> None:
    for _ in range(MAX_IN_FLIGHT):
        bench.dispatch("model/list", session="other")
    bench.dispatch("process/spawn", {"processHandle": "h", "command": ["x"]})
    assert not sent(bench, "process/spawn")
    bench.apply(bench.core.broker_message(wire.SessionGone(sid("s1"), keep), [], bench.now))
    for _ in range(MAX_IN_FLIGHT):
        bench.answer(bench.request("model/list"), {})
    assert not sent(bench, "process/spawn") and bound(bench) == NOTHING


def test_commands_hold_no_permit_while_they_run(bench: Bench) -> None:
    for number in range(2 * MAX_IN_FLIGHT):
        bench.dispatch("command/exec", {"processId": f"p{number}"})
    assert len(sent(bench, "command/exec")) == 2 * MAX_IN_FLIGHT and bench.core.in_flight == 0
    bench.tick(10_000.0)
    assert not bench.answered, "nor have they a deadline"


def test_processes_end_with_a_reason_when_their_worker_is_replaced(bench: Bench) -> None:
    call = bench.dispatch("command/exec", {"processId": "p"})
    bench.dispatch("process/spawn", {"processHandle": "h", "command": ["x"]})
    bench.answer(bench.request("process/spawn"), {})
    bench.dispatch("fs/watch", {"watchId": "w", "path": "/p"})
    bench.apply(bench.core.broker_message(wire.EndProcesses("it is replaced"), [], bench.now))
    assert len(sent(bench, "command/exec/terminate")) == len(sent(bench, "process/kill")) == 1
    assert not sent(bench, "fs/unwatch")
    bench.answer(bench.request("command/exec"), {"exitCode": 137})
    exited(bench, sent(bench, "process/kill")[0]["processHandle"], 137)
    answer, end = stream(bench)
    assert answer["error"]["message"] == "it is replaced" and answer["error"]["code"] == -32011
    assert answer["error"]["data"] == {"kind": "ended", "safeToRetry": False}
    assert end["params"]["stderr"] == "it is replaced" and end["params"]["exitCode"] == 137
    assert bench.answered[call][0].ok is False


# Slow clients, reconnects, other brokers.


def test_a_client_that_does_not_read_loses_that_command_and_is_told(bench: Bench) -> None:
    bench = Bench(limits=Limits(1000, 2000, 2000, 4000, MIB)).start()
    calls = [bench.dispatch("command/exec", {"processId": name}) for name in ("a", "b")]
    wire_id, other = (params["processId"] for params in sent(bench, "command/exec"))
    for _ in range(20):
        output(bench, wire_id, b"x" * 200)
    assert [params["processId"] for params in sent(bench, "command/exec/terminate")] == [wire_id]
    bench.answer(bench.request("command/exec"), {"exitCode": 137})
    assert calls[0] not in bench.answered and not unbound(bench), "its end waits for credit"
    assert bench.new_broker().bound, "and is known to the next broker until then"
    for _ in range(20):
        bench.ack()
    (last,) = [line for line in stream(bench) if "error" in line]
    assert "reads too slowly" in last["error"]["message"] and stream(bench)[-1] == last
    assert unbound(bench) == [("command", "a")]
    assert not bench.routed(wire.Answered)[-1:] or calls[0] not in bench.answered, "the broker that asked is gone"
    output(bench, other)
    assert stream(bench)[-1]["params"]["processId"] == "b", "its other commands go on"


def test_an_answer_waits_for_what_comes_before_it(bench: Bench) -> None:
    bench = Bench(limits=Limits(1000, 2000, MIB, MIB, MIB)).start()
    call = bench.dispatch("command/exec", {"processId": "a"}, id="r")
    (params,) = sent(bench, "command/exec")
    for _ in range(3):
        output(bench, params["processId"], b"x" * 600)
    bench.answer(bench.request("command/exec"), {"exitCode": 0})
    assert call not in bench.answered and "result" not in stream(bench)[-1]
    again = bench.dispatch("command/exec", {"processId": "a"}, id="r", again=True)
    assert again not in bench.answered and len(sent(bench, "command/exec")) == 1, "it is not executed again"
    for _ in range(4):
        bench.ack()
    assert stream(bench)[-1]["result"] == {"exitCode": 0} and bench.answered[again] == (wire.Answered(again, True), {})
    later = bench.dispatch("command/exec", {"processId": "a"}, id="r", again=True)
    assert bench.answered[later] == (wire.Answered(later, True), {}), "what its stream has is not sent besides"
    assert len(sent(bench, "command/exec")) == 1


def test_a_session_that_reconnects_gets_the_rest_once(bench: Bench) -> None:
    bench.dispatch("command/exec", {"processId": "a"})
    (params,) = sent(bench, "command/exec")
    for text in (b"1", b"2"):
        output(bench, params["processId"], text)
    ((_, turn_id),) = bench.events
    bench.events.clear()
    bench.back("s1", wire.Position(turn_id, 1))
    (line,) = stream(bench)
    assert line["params"]["deltaBase64"] == base64.b64encode(b"2").decode()


def test_the_next_broker_is_informed(bench: Bench) -> None:
    bench.dispatch("command/exec", {"processId": "p"})
    bench.dispatch("command/exec", {"command": ["x"]}, id="anonymous")
    lines = []
    for name, fields in (("sessionStart", {"roots": ["/p"]}), ("sessionUpdate", {"query": "q"})):
        method, params = f"fuzzyFileSearch/{name}", {"sessionId": "s", **fields}
        bench.dispatch(method, params, id=name)
        lines.append(encode({"id": name, "method": method, "params": params}))
    assert bench.new_broker().bound == [
        wire.BoundRecord(sid("s1"), "command", "p"),
        wire.BoundRecord(sid("s1"), "anonymous", '"anonymous"'),
        wire.BoundRecord(sid("s1"), "search", "s", *lines),
    ]


# Moving.


def rebind(bench: Bench, kind: str, name: str, *lines: dict[str, Any]) -> None:
    bench.apply(bench.core.broker_message(wire.Rebind(sid("s1"), kind, name), [*map(encode, lines)], bench.now))


def test_a_watch_is_made_again_and_reports_its_path(bench: Bench) -> None:
    request = {"id": 1, "method": "fs/watch", "params": {"watchId": "w", "path": "/p"}}
    rebind(bench, "watch", "w", request)
    (params,) = sent(bench, "fs/watch")
    assert params["path"] == "/p" and params["watchId"].endswith("/w")
    bench.answer(bench.request("fs/watch"), {"path": "/p"})
    assert stream(bench)[0] == {"method": "fs/changed", "params": {"watchId": "w", "changedPaths": ["/p"]}}
    rebind(bench, "watch", "w", request)
    assert len(sent(bench, "fs/watch")) == 1, "it is there"
    bench.apply(bench.core.broker_message(wire.Unbind(sid("s1"), "watch", "w"), [], bench.now))
    assert len(sent(bench, "fs/unwatch")) == 1 and unbound(bench) == [("watch", "w")]
    bench.answer(bench.request("fs/unwatch"), {})
    bench.ack()
    bench.tick(1.0)
    assert bound(bench) == NOTHING


def test_a_search_is_made_again_with_its_query(bench: Bench) -> None:
    begin = {"id": 1, "method": "fuzzyFileSearch/sessionStart", "params": {"sessionId": "s", "roots": ["/p"]}}
    update = {"id": 2, "method": "fuzzyFileSearch/sessionUpdate", "params": {"sessionId": "s", "query": "q"}}
    rebind(bench, "search", "s", begin, update)
    bench.answer(bench.request("fuzzyFileSearch/sessionStart"), {})
    (params,) = sent(bench, "fuzzyFileSearch/sessionUpdate")
    assert params == {"sessionId": sent(bench, "fuzzyFileSearch/sessionStart")[0]["sessionId"], "query": "q"}


def test_what_cannot_be_made_again_ends_with_a_warning(bench: Bench) -> None:
    rebind(bench, "watch", "w", {"id": 1, "method": "fs/watch", "params": {"watchId": "w", "path": "/p"}})
    bench.answer(bench.request("fs/watch"), error="no such path")
    (line,) = stream(bench)
    assert line["method"] == "warning" and "no such path" in line["params"]["message"]
    assert unbound(bench) == [("watch", "w")]


# Notifications of a new connection.


def test_the_notifications_of_a_new_connection_go_to_the_broker_and_to_each_next_one() -> None:
    bench = Bench()
    bench.apply(bench.core.start(bench.now))
    warning = {"method": "configWarning", "params": {"summary": "x", "details": None}}
    bench.say({"id": bench.request("initialize"), "result": {"userAgent": "codex/0"}}, warning)
    assert len(bench.routed(wire.StartNotices)) == 1 and not bench.lines
    bench.apply(bench.core.new_broker(bench.now))
    assert len(bench.routed(wire.StartNotices)) == 2
    bench.dispatch("model/list")
    bench.answer(bench.request("model/list"), {})
    bench.say({**warning, "params": {"summary": "later", "details": None}})
    assert len(bench.routed(wire.StartNotices)) == 2
    assert bench.lines == [([], [{**warning, "params": {"summary": "later", "details": None}}])], "it is for all"


def test_what_a_client_runs_counts_as_the_commands_of_a_turn_for_as_long_as_it_runs() -> None:
    bench = Bench(counts=True).start()
    app_server = TreeProcess(ProcessId(11, 1), 10, 11)
    terminal, late = TreeProcess(ProcessId(30, 2), 11, 30), TreeProcess(ProcessId(31, 3), 30, 30)

    def look(*below: TreeProcess) -> tuple[int, int]:
        bench.now += 2 * SETTLE_S
        snapshot = ProcessSnapshot([app_server, *below], {}, 0, 0)
        bench.apply(bench.core.process_snapshot(snapshot, bench.now))
        tree = bench.routed(wire.ProcessTree)[-1]
        return tree.commands, tree.left

    look()
    bench.dispatch("command/exec", {"processId": "p", "tty": True})
    assert look(terminal) == look(terminal) == (1, 0)
    bench.thread()
    bench.turn("u1")
    bench.complete("u1")
    look(terminal, late)
    assert look(terminal, late) == (2, 0), "also what it starts later"
    bench.answer(bench.request("command/exec"), {"exitCode": 0})
    assert look(terminal, late) == (0, 2), "what it leaves counts as left"
