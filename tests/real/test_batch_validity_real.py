"""Validity gate over attempts on the real binary: a sample whose tools could not work is never a zero."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from maintainer import program
from programs import codex_pool, started
from small_disk import mount_namespace, small_disk

import codex_app_server.testing
from codex_app_server.config import find_codex
from codex_app_server.testing.loopback import LoopbackModel
from codex_batch.store import open_run

pytestmark = pytest.mark.real
COMMAND = '[[tool_call "echo made > made; echo done"]] [[text "{output}"]]'
UNREACHABLE = "ws://127.0.0.1:9"


def dataset(path: Path, *samples: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


def done_event(stdout: str) -> dict[str, Any]:
    ended: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    assert ended["event"] == "done"
    return ended


def call(tool: str, **arguments: Any) -> str:
    """A prompt that has the agent call a tool, and answer with what came of it."""
    return f"[[tool_call {shlex.quote(json.dumps(arguments))} tool={tool}]] [[text '{{output}}']]"


def test_an_exec_server_that_cannot_be_reached_is_a_lost_attempt_before_any_turn(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    data = dataset(
        tmp_path / "data.jsonl",
        {"id": "a", "prompt": COMMAND, "workspace": {"files": {"x": ""}}, "sandbox": "danger-full-access"},
        {"id": "b", "prompt": "[[text done]]"},
    )
    hook = f"""[ $CODEX_POOL_HOOK = stop ] || echo '{{"exec_server": "{UNREACHABLE}"}}'"""
    out = tmp_path / "out"
    options = ("--workers", "1", "--home", str(home), "--retries", "1", "--scorer", "includes:done", "-o", str(out))
    done = codex_pool("batch", str(data), *options, "--workspace-hook", hook, "--json")
    assert done.returncode == 1, done.stderr
    found, ended = records(out), done_event(done.stdout)
    assert (found["a"]["status"], found["a"]["error"]["kind"]) == ("lost", "environmentLost")
    assert "Connection refused" in found["a"]["error"]["message"] and UNREACHABLE in found["a"]["error"]["message"]
    # It is retried as what was lost is, and is no zero.
    assert found["a"]["attempts"] == 2 and found["a"]["scores"] == {} and not found["a"]["valid"]
    assert found["b"]["valid"] and ended["metrics"]["includes"]["mean"] == 1.0
    assert ended["metrics"]["includes"]["samples"] == 1
    assert ended["not_valid"] == {"environmentLost": 1}
    assert "not valid" in done.stderr and "1 sample, not scored; by kind of error: environmentLost 1" in done.stderr
    # Nothing was asked of the model for it.
    assert [record.prompt for record in model.requests] == ["[[text done]]"]
    shown = codex_pool("runs", "show", str(out))
    assert "not valid" in shown.stdout and "environmentLost 1" in shown.stdout


def test_a_container_that_ends_with_its_hook_is_a_lost_attempt_that_says_so(tmp_path: Path, home: Path) -> None:
    # As with podman: what keeps the container is a process that the hook leaves behind.
    said = tmp_path / "said"
    hook = tmp_path / "hook.sh"
    hook.write_text(
        f"""#!/bin/sh
[ $CODEX_POOL_HOOK = start ] || exit 0
CODEX_HOME={tmp_path} setsid {find_codex(None)} exec-server --listen ws://127.0.0.1:0 >{said} 2>/dev/null </dev/null &
until grep -q ^ws: {said}; do sleep 0.05; done
echo "{{\\"exec_server\\": \\"$(head -1 {said})\\"}}"
"""
    )
    hook.chmod(0o755)
    sample = {"id": "a", "prompt": COMMAND, "workspace": {"files": {"x": ""}}, "sandbox": "danger-full-access"}
    data, out = dataset(tmp_path / "data.jsonl", sample), tmp_path / "out"
    options = ("--workers", "1", "--home", str(home), "--scorer", "command:test -s made", "-o", str(out))
    done = codex_pool("batch", str(data), *options, "--workspace-hook", str(hook), "--json")
    (record,) = records(out).values()
    assert (record["status"], record["error"]["kind"], record["scores"]) == ("lost", "environmentLost", {})
    assert "what the workspace hook had left running was ended with it: codex" in record["error"]["message"]
    assert done.returncode == 1 and done_event(done.stdout)["metrics"] == {}


def test_an_exec_server_of_the_pool_itself_is_looked_at_as_well(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEX_EXEC_SERVER_URL", UNREACHABLE)
    sample = {"id": "a", "prompt": COMMAND, "sandbox": "danger-full-access"}
    data, out = dataset(tmp_path / "data.jsonl", sample), tmp_path / "out"
    done = codex_pool("batch", str(data), "--workers", "1", "--home", str(home), "--scorer", "exact:no", "-o", str(out))
    (record,) = records(out).values()
    assert (record["status"], record["error"]["kind"], record["scores"]) == ("lost", "environmentLost", {}), done.stderr


@pytest.mark.slow
def test_an_exec_server_that_dies_while_a_command_runs_is_a_lost_attempt(tmp_path: Path, home: Path) -> None:
    # codex tries for 25 s to go on with the connection.
    said = tmp_path / "said"
    server = [str(find_codex(None)), "exec-server", "--listen", "ws://127.0.0.1:0"]
    prompt = '[[tool_call "echo x; kill -9 $PPID; sleep 1"]] [[text "{output}"]]'
    sample = {"id": "a", "prompt": prompt, "workspace": {"files": {"x": ""}}, "sandbox": "danger-full-access"}
    data, out = dataset(tmp_path / "data.jsonl", sample), tmp_path / "out"
    with said.open("wb") as file, started(["env", f"CODEX_HOME={tmp_path}", *server]) as program:
        url = program.wait_for_line("ws://", "stdout")
        file.write(url.encode())
        hook = f"""[ $CODEX_POOL_HOOK = stop ] || echo '{{"exec_server": "{url.strip()}"}}'"""
        options = ("--workers", "1", "--home", str(home), "--scorer", "exact:no", "-o", str(out))
        done = codex_pool("batch", str(data), *options, "--workspace-hook", hook, limit_s=55.0)
    (record,) = records(out).values()
    assert (record["status"], record["error"]["kind"], record["scores"]) == ("lost", "environmentLost", {}), done.stderr
    assert "disconnected" in record["error"]["message"]


def test_a_directory_that_no_shell_can_start_in_is_not_the_agents_doing(tmp_path: Path, home: Path) -> None:
    hook = """[ $CODEX_POOL_HOOK = stop ] || echo '{"cwd": "/no/such/directory"}'"""
    sample = {"id": "a", "prompt": COMMAND, "workspace": {"files": {"x": ""}}, "sandbox": "danger-full-access"}
    data, out = dataset(tmp_path / "data.jsonl", sample), tmp_path / "out"
    options = ("--workers", "1", "--home", str(home), "--scorer", "exact:no", "-o", str(out))
    done = codex_pool("batch", str(data), *options, "--workspace-hook", hook)
    (record,) = records(out).values()
    assert (record["status"], record["error"]["kind"]) == ("failed", "toolsUnavailable"), done.stderr
    assert "No such file or directory" in record["error"]["message"] and record["scores"] == {}


def test_a_sandbox_without_its_helper_is_no_zero(tmp_path: Path, home: Path) -> None:
    # codex sends no item for such a command: only the stored thread has it.
    binary = find_codex(None)
    nothing = tmp_path / "nothing"
    nothing.touch()
    helpers = [binary.parent.parent / "codex-resources" / "bwrap", *_on_path("bwrap")]
    hide = " && ".join(f"mount --bind {nothing} {shlex.quote(str(each))}" for each in helpers if each.exists())
    options = mount_namespace()
    assert options is not None, "expected CAP_SYS_ADMIN (--cap-add SYS_ADMIN of a container), or user namespaces"
    data, out = dataset(tmp_path / "data.jsonl", {"id": "a", "prompt": COMMAND}), tmp_path / "out"
    batch = ["batch", str(data), "--workers", "1", "--home", str(home), "--scorer", "exact:no", "-o", str(out)]
    inside = ["sh", "-c", f'{hide} && exec "$@"', "sh", sys.executable, "-m", "codex_pool_cli", *batch]
    with started(["unshare", *options, *inside]) as program:
        assert program.wait(40.0) == 1, program.lines
    (record,) = records(out).values()
    assert (record["status"], record["error"]["kind"], record["scores"]) == ("failed", "sandboxError", {}), record
    assert "bubblewrap is unavailable" in record["error"]["message"]


def test_a_directory_on_another_disk_that_is_full_is_no_zero(tmp_path: Path, home: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        (disk.seen / "w").mkdir()
        disk.fill()
        cwd = str(disk.path / "w")
        sample = {"id": "a", "prompt": COMMAND, "cwd": cwd, "sandbox": "danger-full-access"}
        data, out = dataset(tmp_path / "data.jsonl", sample), tmp_path / "out"
        arguments = ["batch", str(data), "--workers", "1", "--home", str(home), "--scorer", "exact:no", "-o", str(out)]
        with started([*disk.within, sys.executable, "-m", "codex_pool_cli", *arguments]) as program:
            assert program.wait(40.0) == 1, program.lines
    (record,) = records(out).values()
    assert (record["status"], record["error"]["kind"], record["scores"]) == ("failed", "diskFull", {}), record
    assert f"the disk of {cwd} was full" in record["error"]["message"]


def test_what_an_agent_does_wrong_by_itself_is_scored(tmp_path: Path, home: Path) -> None:
    prompts = {
        "tool": call("no_such_tool", x=1),
        "arguments": call("exec_command", command="ls"),
        "directory": call("exec_command", cmd="ls", workdir="/no/such/directory"),
        "program": call("exec_command", cmd="no-such-program"),
        "not-executable": call("exec_command", cmd="./x"),
        "denied": call("exec_command", cmd="touch /etc/x"),
        "own-sandbox": call("exec_command", cmd="bwrap --no-such-option"),
        "words": call("exec_command", cmd="echo bwrap: no; exit 1"),
        "full": call("exec_command", cmd="echo x > /dev/full"),
        "killed": call("exec_command", cmd="kill -9 $$"),
        "gone": call("exec_command", cmd="rm -rf $PWD; cd /; exit 3"),
    }
    samples = [{"id": name, "prompt": prompt, "sandbox": "workspace-write"} for name, prompt in prompts.items()]
    data, out = dataset(tmp_path / "data.jsonl", *samples), tmp_path / "out"
    options = ("--workers", "1", "--home", str(home), "--scorer", "exact:no", "-o", str(out), "--json")
    done = codex_pool("batch", str(data), *options)
    assert done.returncode == 0, done.stderr
    found = records(out)
    assert {name: (one["status"], one["valid"]) for name, one in found.items()} == dict.fromkeys(
        prompts, ("completed", True)
    )
    assert {one["scores"]["exact"]["value"] for one in found.values()} == {0.0}
    assert "unsupported call: no_such_tool" in found["tool"]["final_response"]
    ended = done_event(done.stdout)
    assert ended["metrics"]["exact"]["samples"] == len(prompts) and ended["not_valid"] == {}


# Passes on what the null app-server says, with one more line before the end of each turn.
ADDING = """
import json, subprocess, sys
null = subprocess.Popen([sys.executable, "-I", "-S", sys.argv[1]], stdout=subprocess.PIPE)
for line in null.stdout:
    if b'"turn/completed"' in line:
        params = json.loads(line)["params"]
        added = sys.argv[2].replace("$THREAD", params["threadId"]).replace("$TURN", params["turn"]["id"])
        sys.stdout.buffer.write(added.encode() + b"\\n")
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
sys.exit(null.wait())
"""


def null_runtime(path: Path, line: dict[str, Any]) -> Path:
    null = Path(codex_app_server.testing.__file__).parent / "_null_app_server.py"
    script = path.with_suffix(".py")
    script.write_text(ADDING)
    path.write_text(
        f"#!/bin/sh\nexec {shlex.join([sys.executable, '-S', '-E', str(script), str(null), json.dumps(line)])}\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("line", "valid"),
    [
        ({"method": "item/completed", "params": {"item": {"type": "commandExecution", "id": "c", "status": 7}}}, False),
        ({"method": "item/completed", "params": {"item": {"type": "agentMessage", "id": "c"}}}, False),
        ({"method": "item/completed", "params": {"item": 3}}, False),
        ({"method": "thread/tokenUsage/updated", "params": {"tokenUsage": {"total": {"inputTokens": "x"}}}}, False),
        ({"method": "turn/plan/updated", "params": {"plan": 3}}, True),
        ({"method": "thread/somethingNew", "params": {"x": 3}}, True),
    ],
)
def test_a_turn_whose_messages_do_not_decode_is_not_scored(tmp_path: Path, line: dict[str, Any], valid: bool) -> None:
    line = {**line, "params": {**line["params"], "threadId": "$THREAD", "turnId": "$TURN"}}
    binary = null_runtime(tmp_path / "codex", line)
    data, out = dataset(tmp_path / "data.jsonl", {"id": "a", "prompt": "hello"}), tmp_path / "out"
    (tmp_path / "home").mkdir()
    options = ("--workers", "1", "--home", str(tmp_path / "home"), "--codex-bin", str(binary))
    done = codex_pool("batch", str(data), *options, "--scorer", "exact:no", "-o", str(out))
    (record,) = records(out).values()
    assert record["valid"] is valid, (record, done.stderr)
    if not valid:
        assert (record["status"], record["error"]["kind"], record["scores"]) == ("failed", "undecoded", {})
        with open_run(out) as store:
            assert store.not_valid() == {"undecoded": 1}


def test_a_turn_whose_items_come_under_another_name_is_not_scored(tmp_path: Path) -> None:
    """The record names both versions, and so does a warning of the run."""
    scenario = {"version": "9.9.0", "rewrite": [['"method":"item/completed"', '"method":"item/done"']]}
    null = Path(codex_app_server.testing.__file__).parent / "_null_app_server.py"
    command = shlex.join([sys.executable, "-S", "-E", str(null), json.dumps(scenario)])
    binary = program(tmp_path / "codex", f"#!/bin/sh\nexec {command}\n")
    data, out = dataset(tmp_path / "data.jsonl", {"id": "a", "prompt": "hello"}), tmp_path / "out"
    (tmp_path / "home").mkdir()
    options = ("--workers", "1", "--home", str(tmp_path / "home"), "--codex-bin", str(binary), "--json")
    done = codex_pool("batch", str(data), *options, "--scorer", "exact:no", "-o", str(out))
    (record,) = records(out).values()
    assert (record["valid"], record["error"]["kind"], record["scores"]) == (False, "undecoded", {}), done.stderr
    both = f"the runtime is codex 9.9.0, this SDK was made for {codex_app_server.__version__}"
    assert both in record["error"]["message"]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    (warned,) = [each for each in events if each["event"] == "warning" and each["kind"] == "codex_version"]
    assert both in warned["message"] and done.stderr.count(both) == 1
    assert next(each for each in events if each["event"] == "launch")["codex_version"] == "9.9.0"


def _on_path(name: str) -> list[Path]:
    return [Path(each) / name for each in os.environ["PATH"].split(os.pathsep) if (Path(each) / name).exists()]
