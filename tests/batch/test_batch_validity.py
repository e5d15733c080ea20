"""The validity gate: from the facts of an attempt to whether it can be scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codex_batch.rules import retry, validity
from codex_batch.rules.retry import Outcome, may_retry, parse_retry_on
from codex_batch.rules.validity import Facts, Health, HiddenCall, ToolCalls, judged
from codex_batch.run.rollout import hidden_calls

COMPLETED = Outcome("completed", final_response="42")
OWN = "/work/a"
CREATE = "Failed to create unified exec process: "
LOST_CONNECTION = CREATE + "exec-server connection attempt failed: failed to connect to exec-server `ws://x`"
NO_BWRAP = "\nthread 'main' (7) panicked at linux-sandbox/src/launcher.rs:60:13:\nbubblewrap is unavailable: no\n"


def command(
    output: str, code: int | None = -1, *, cwd: str = OWN, command: str = "/bin/bash -c ls", **more: Any
) -> Any:
    """The item of a command that failed; with the code of codex for one that was not started."""
    item = {"type": "commandExecution", "id": "c", "status": "failed", "command": command, "cwd": cwd}
    return item | {"processId": None, "aggregatedOutput": output, "exitCode": code} | more


def problem(*items: Any, hidden: tuple[HiddenCall, ...] = (), has_environment: bool = False) -> str | None:
    calls = ToolCalls([OWN])
    calls.has_environment = has_environment
    for item in items:
        calls.completed(item)
    calls.hidden(hidden)
    return None if calls.problem is None else calls.problem.kind


RAN = command("no\n", 1, processId="7")


def test_a_sandbox_that_lets_no_command_begin_is_told_from_commands_that_fail() -> None:
    def refused(*outputs: str, status: str = "failed") -> str | None:
        calls = ToolCalls([OWN])
        for output in outputs:
            calls.completed({"type": "commandExecution", "status": status, "aggregatedOutput": output})
            calls.completed({"type": "agentMessage", "text": "bwrap: no"})
        return None if calls.problem is None else calls.problem.message

    no = "bwrap: Creating new namespace failed: Operation not permitted\n"
    assert refused(no, no) == no.strip()
    assert refused() is None
    # One that began shows that the sandbox works, whatever the others say; an agent may have a bwrap of its own.
    assert refused(no, "hello\n") is None and refused("hello\n", no) is None
    assert refused(f"building\n{no}") is None and refused(f"{no}building\n") is None
    assert refused(no, status="completed") is None
    assert problem(command(no, 1)) == "sandboxError" and problem(command(NO_BWRAP, 101)) == "sandboxError"
    assert problem(command("sandbox-exec: sandbox_apply: Operation not permitted", 71)) == "sandboxError"


@pytest.mark.parametrize(
    ("item", "kind", "after_one_that_ran"),
    [
        # The machine or the connection: whoever the agent is, it could not go on.
        (command(LOST_CONNECTION), "environmentLost", "environmentLost"),
        (
            command("x\n\nexec-server transport disconnected: failed; recovery timed out after 25s", processId="7"),
            "environmentLost",
            "environmentLost",
        ),
        (command(CREATE + "Resource temporarily unavailable (os error 11)"), "toolsUnavailable", "toolsUnavailable"),
        (command(CREATE + "Too many open files (os error 24)", cwd="/x"), "toolsUnavailable", "toolsUnavailable"),
        (command(CREATE + "No space left on device (os error 28)"), "diskFull", "diskFull"),
        # Where the thread itself works nothing can be started: not its doing, unless it removed the directory.
        (command(CREATE + "No such file or directory (os error 2)"), "toolsUnavailable", None),
        (command(CREATE + "exec-server rejected request (-32603): No such file or directory (os error 2)"),
         "toolsUnavailable", None),
        (command(CREATE + "Permission denied (os error 13)", cwd=OWN + "/"), "toolsUnavailable", None),
        # Its own mistakes.
        (command(CREATE + "No such file or directory (os error 2)", cwd="/nowhere"), None, None),
        (command(CREATE + "Argument list too long (os error 7)"), None, None),
        (command("bwrap: Can't chdir to /nowhere: No such file or directory", 1, cwd="/nowhere"), None, None),
        (command("bwrap: no", 1, command="/bin/bash -c 'bwrap ls'"), None, None),
        (command("x: command not found", 127), None, None),
        (command("exec-server connection attempt failed", 1, processId="7"), None, None),
        (command("rejected: blocked by policy", status="declined"), None, None),
    ],
)  # fmt: skip
def test_calls_that_could_not_be_run_are_told_from_an_agents_mistakes(
    item: Any, kind: str | None, after_one_that_ran: str | None
) -> None:
    assert problem(item) == kind
    assert problem(RAN, item) == after_one_that_ran
    # A command that is run afterwards shows that tools work.
    assert problem(item, RAN) is None


def test_calls_that_the_runtime_has_no_item_for_count_as_well() -> None:
    head = "Chunk ID: 1\nWall time: 0.0 seconds\nProcess exited with code 101\nOriginal token count: 9\nOutput:\n"
    refused = HiddenCall("exec_command", '{"cmd": "ls"}', head + NO_BWRAP)
    assert problem(hidden=(refused,)) == "sandboxError" and problem(RAN, hidden=(refused,)) is None
    own = HiddenCall("exec_command", '{"cmd": "bwrap ls"}', head + "bwrap: no")
    denied = HiddenCall("exec_command", '{"cmd": "touch /x"}', head + "touch: /x: Read-only file system")
    assert problem(hidden=(own,)) is None and problem(hidden=(refused, denied)) is None
    unsupported = HiddenCall("exec_command", "{}", "unsupported call: exec_command")
    # The local environment is always there: the tool is none of this runtime.
    assert problem(hidden=(unsupported,)) is None
    assert problem(hidden=(unsupported,), has_environment=True) == "environmentLost"
    nonsense = HiddenCall("frobnicate", "{}", "unsupported call: frobnicate")
    assert problem(hidden=(nonsense,), has_environment=True) is None


def test_an_mcp_server_that_is_gone_counts_until_it_answers_again() -> None:
    def called(status: str, message: str | None = None, server: str = "db") -> Any:
        error = None if message is None else {"message": message}
        return {"type": "mcpToolCall", "id": "m", "server": server, "tool": "t", "status": status, "error": error}

    gone = called("failed", "tool call error: tool call failed for `db/t`\n\nCaused by:\n    Transport closed\n")
    assert problem(gone) == "toolsUnavailable"
    assert problem(gone, called("completed", server="other")) == "toolsUnavailable"
    assert problem(gone, called("completed")) is None
    assert problem(called("failed", "unknown tool: t")) is None


def test_a_command_that_says_that_a_disk_is_full_is_noted_unless_it_says_so_itself() -> None:
    def said(item: Any) -> str | None:
        calls = ToolCalls([OWN])
        calls.completed(item)
        return calls.said_full

    full = "cc: error\nwrite: No space left on device\n"
    assert said(command(full, 1, processId="7")) == "write: No space left on device"
    assert said(command(full, 1, processId="7", command="grep 'No space left on device' log; false")) is None
    # It may have gone on all the same.
    assert said(command(full + "done\n", 0, processId="7", status="completed")) is not None
    assert said(command("done\n", 0, processId="7", status="completed")) is None


@pytest.mark.parametrize(
    ("facts", "status", "kind"),
    [
        (Facts(), "completed", None),
        (Facts(environments=[Health("e", "ready")]), "completed", None),
        (Facts(environments=[Health("e", "disconnected", "refused")]), "lost", "environmentLost"),
        (Facts(environments=[Health("e", "pending")]), "lost", "environmentLost"),
        (Facts(environments=[Health("e", "unknown")]), "lost", "environmentLost"),
        (Facts(environments=[Health("e", "somethingNew")]), "lost", "environmentLost"),
        (Facts(undecoded=["item/completed"]), "failed", "undecoded"),
        (Facts(full="the disk of /x was full"), "failed", "diskFull"),
    ],
)
@pytest.mark.parametrize("ended", ["completed", "limit"])
def test_what_is_not_valid_is_not_recorded_as_completed(
    facts: Facts, status: str, kind: str | None, ended: Any
) -> None:
    error = {"kind": "limit", "message": "too long"} if ended == "limit" else None
    outcome = judged(Outcome(ended, final_response="42", error=error, limit=None if error is None else "wall_s"), facts)
    assert outcome.final_response == "42"
    if kind is None:
        assert (outcome.status, outcome.error) == (ended, error)
        return
    assert (outcome.status, outcome.limit) == (status, None)
    assert outcome.error is not None and outcome.error["kind"] == kind
    assert ended == "completed" or outcome.error["message"].endswith("; too long")
    assert not validity.may_be_built_on(outcome.error)
    # It is retried as its status or its kind is.
    assert may_retry(outcome, 1, 1) and may_retry(outcome, 1, 1, parse_retry_on(kind if kind != "diskFull" else status))


def test_what_ended_otherwise_keeps_its_reason() -> None:
    facts = Facts(undecoded=["item/completed"], environments=[Health("e", "disconnected")])
    interrupted = Outcome("interrupted", error={"kind": "cancelled", "message": "no"})
    failed = Outcome("failed", error={"kind": "unauthorized", "message": "no"})
    assert judged(interrupted, facts) is interrupted and judged(failed, facts) is failed
    full = judged(failed, Facts(full="the disk was full"))
    assert full.error == {"kind": retry.DISK_FULL, "message": "the disk was full; no"}


def test_the_stored_thread_is_read_for_calls_without_an_item(tmp_path: Path) -> None:
    path = tmp_path / "rollout.jsonl"
    lines = [
        {"type": "session_meta", "payload": {"id": "x"}},
        {"type": "response_item", "payload": {"type": "function_call", "call_id": "1", "name": "a", "arguments": "{}"}},
        {"type": "response_item", "payload": {"type": "custom_tool_call", "call_id": "2", "name": "b", "input": "p"}},
        {"type": "response_item", "payload": {"type": "function_call_output", "call_id": "1", "output": "one"}},
        {
            "type": "response_item",
            "payload": {"type": "custom_tool_call_output", "call_id": "2", "output": [{"text": "two"}]},
        },
        {
            "type": "response_item",
            "payload": {"type": "function_call_output", "call_id": "3", "output": {"content": "3"}},
        },
        {"type": "response_item", "payload": {"type": "function_call_output", "call_id": 4}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"type": "response_item", "_call')
    assert hidden_calls(str(path), ()) == [
        HiddenCall("a", "{}", "one"), HiddenCall("b", "p", "two"), HiddenCall("", "", "3")
    ]  # fmt: skip
    assert hidden_calls(str(path), {"1", "3"}) == [HiddenCall("b", "p", "two")]
    assert hidden_calls(str(tmp_path / "no"), ()) == []
