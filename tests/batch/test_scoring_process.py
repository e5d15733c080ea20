"""Scorers that run something of the user: a command in the workspace, a function. Nothing of it is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scored import context

from codex_batch.scoring import Score, ScorerError, parse_scorer, score_sample
from codex_batch.scoring.command import encoded
from codex_pool.runtime import processes

LIMIT_S = 20.0


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


def score(spec: Any, tmp_path: Path, response: str | None = "42", target: Any = None, **more: Any) -> Score:
    scorer = parse_scorer(spec, "scorers", tmp_path)
    asked = context(response, target, artifacts=tmp_path / "artifacts", workspace=tmp_path / "workspace", **more)
    (found,) = asyncio.run(asyncio.wait_for(score_sample([scorer], asked), LIMIT_S))
    return found


def test_the_exit_code_of_a_command_counts(tmp_path: Path, workspace: Path) -> None:
    (workspace / "answer").write_text("42\n")
    right = score("command:echo fine; grep -q 42 answer", tmp_path)
    assert (right.value, right.passed, right.explanation) == (1.0, True, "exit code 0: fine")
    wrong = score({"type": "command", "command": ["grep", "-q", "43", "answer"], "name": "grep"}, tmp_path)
    assert (wrong.value, wrong.passed, wrong.metadata, wrong.error) == (0.0, False, {"exit_code": 1}, None)
    assert wrong.duration_ms > 0
    assert score("command:kill -9 $$", tmp_path).explanation == "ended by signal 9"
    assert sorted(path.name for path in (tmp_path / "artifacts").iterdir()) == ["command.log", "grep.log"]


def test_what_a_command_prints_counts(tmp_path: Path, workspace: Path) -> None:
    number = {"type": "command", "command": "echo 3 of 4; echo 0.75; exit 1", "parse": "number", "threshold": 0.7}
    found = score(number, tmp_path)
    assert (found.value, found.passed, found.answer, found.error) == (0.75, True, "0.75", None)
    line = '{"value": 0.5, "explanation": "half", "metadata": {"n": 1}}'
    said = score({"type": "command", "command": f"echo '{line}'", "parse": "json"}, tmp_path)
    assert (said.value, said.passed, said.explanation, said.metadata) == (0.5, False, "half", {"n": 1})
    for printed, problem in (("", "is not JSON"), ("[]", "expected true, false"), ('{"v": 1}', 'reported "v"')):
        broken = score({"type": "command", "command": f"echo '{printed}'", "parse": "json"}, tmp_path)
        assert broken.error is not None and problem in broken.error
    none = score({"type": "command", "command": "echo no >&2", "parse": "number"}, tmp_path)
    assert none.error == "printed no number (exit code 0): no"


def test_a_command_knows_the_sample_and_no_credentials(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    script = 'test -z "$OPENAI_API_KEY" && test "$CODEX_POOL_SAMPLE_ID$CODEX_POOL_EPOCH$MORE" = b2x && cat > told.json'
    spec = {"type": "command", "command": script, "env": {"MORE": "x"}}
    assert score(spec, tmp_path, "yes", "t", id="b", epoch=2, diff=b"+a").passed
    told = json.loads((workspace / "told.json").read_bytes())
    assert (told["id"], told["final_response"], told["target"], told["diff"]) == ("b", "yes", "t", "+a")


def test_what_the_agent_was_not_to_see_is_put_there_first(tmp_path: Path, workspace: Path) -> None:
    hidden, outside = tmp_path / "hidden", tmp_path / "outside"
    (hidden / "deep").mkdir(parents=True)
    (hidden / "deep" / "check.sh").write_text("exit 0\n")
    outside.mkdir()
    # An agent that lays links where the tests are to go gets nothing out of it, and nothing overwritten.
    (workspace / "tests").symlink_to(outside)
    (workspace / "one.sh").symlink_to(outside / "target")
    spec = {
        "type": "command",
        "command": "sh tests/deep/check.sh && sh one.sh",
        "files": {"tests": "hidden", "one.sh": "hidden/deep/check.sh"},
    }
    assert score(spec, tmp_path).passed
    assert list(outside.iterdir()) == []
    assert parse_scorer(spec, "x", tmp_path).spec["files"]["tests"] == str(hidden)


def test_long_texts_are_told_whole_and_hold_up_nothing() -> None:
    async def work() -> tuple[bytes, float]:
        longest, ended = 0.0, asyncio.Event()

        async def watch() -> None:
            nonlocal longest
            while not ended.is_set():
                before = time.monotonic()
                await asyncio.sleep(0)
                longest = max(longest, time.monotonic() - before)

        watching = asyncio.ensure_future(watch())
        told = {"context": {"responses": ["\ud800" + "ä" * 300_000, "x" * 20_000_000, None], "metadata": {"a": [1.5]}}}
        data = await encoded(told)
        ended.set()
        await watching
        assert json.loads(data) == told
        return data, longest

    _, longest_s = asyncio.run(work())
    assert longest_s < 1.0
    assert json.loads(asyncio.run(encoded(None))) is None and asyncio.run(encoded({})) == b"{}"


def test_a_command_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path, workspace: Path) -> None:
    # One in a session of its own, deaf to all but SIGKILL, holding the pipes.
    script = "setsid sh -c 'trap \"\" TERM HUP; echo $$ > pid; while :; do sleep 1; done' & wait"
    found = score({"type": "command", "command": script, "timeout_s": 1}, tmp_path)
    assert (found.passed, found.explanation) == (False, "the command took more than 1 s")
    assert processes.identify(int((workspace / "pid").read_text())) is None


def test_what_a_command_leaves_in_the_background_is_ended(tmp_path: Path, workspace: Path) -> None:
    began_at = time.monotonic()
    assert score("command:setsid sleep 300 & echo $! > pid", tmp_path).passed
    assert processes.identify(int((workspace / "pid").read_text())) is None
    assert time.monotonic() - began_at < LIMIT_S


def test_endless_output_is_bounded(tmp_path: Path, workspace: Path) -> None:
    spec = {"type": "command", "command": "head -c 20000000 /dev/zero | tr '\\0' x; echo; echo 7", "parse": "number"}
    assert score(spec, tmp_path).value == 7.0
    log = (tmp_path / "artifacts" / "command.log").read_bytes()
    assert len(log) < 600_000 and b" bytes ...]" in log


def test_what_cannot_be_started_has_not_scored(tmp_path: Path, workspace: Path) -> None:
    spec = {"type": "command", "command": ["no-such-program"]}
    assert score(spec, tmp_path).error == "cannot be started: no-such-program: No such file or directory"
    workspace.rmdir()
    assert "cannot be started" in (score("command:true", tmp_path).error or "")


def test_what_lies_in_a_workspace_does_not_get_into_the_guard(tmp_path: Path, workspace: Path) -> None:
    for name in ("json.py", "codex_pool.py", "sitecustomize.py"):
        (workspace / name).write_text("import os; os._exit(9)\n")
    assert score("command:true", tmp_path).passed


def test_a_cancelled_scorer_ends_its_command(tmp_path: Path, workspace: Path) -> None:
    async def cancelled() -> None:
        scorer = parse_scorer("command:echo $$ > pid; sleep 300", "x", tmp_path)
        asked = context("", artifacts=tmp_path / "artifacts", workspace=workspace)
        task = asyncio.ensure_future(score_sample([scorer], asked))
        while not ((workspace / "pid").exists() and (workspace / "pid").read_text().strip()):
            assert not task.done()
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task}, timeout=LIMIT_S)
        assert task.cancelled()

    asyncio.run(asyncio.wait_for(cancelled(), LIMIT_S))
    assert processes.identify(int((workspace / "pid").read_text())) is None


def test_the_death_of_the_batch_ends_its_commands(tmp_path: Path, workspace: Path) -> None:
    program = (
        "import asyncio, pathlib; from codex_batch.scoring import process;"
        "asyncio.run(process.run(['sh', '-c', 'echo $$ > pid; sleep 300'],"
        f" directory=pathlib.Path({str(workspace)!r}), stdin=b'', timeout_s=60, env={{'PATH': '/usr/bin:/bin'}}))"
    )
    batch = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + LIMIT_S
        while not (pid := _pid(workspace / "pid")):
            assert batch.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        command = processes.identify(pid)
    finally:
        batch.send_signal(signal.SIGKILL)
        batch.wait()
    assert command is not None
    while processes.identify(pid) == command:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # The guard, orphaned, comes to this process.
    while left := processes.descendants(os.getpid()):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
    processes.reap_orphans(frozenset())


def _pid(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0


# Functions.

MODULE = """
import sys, time

def right(context, word="42"):
    print("printed")
    return context["final_response"] == word

def rich(context):
    return {"value": 0.25, "passed": True, "answer": 7, "metadata": context["metadata"]}

async def later(context):
    return 2

def broken(context):
    raise KeyError("gone")

def strange(context):
    return [1]

def leaves(context):
    sys.exit(3)

def slow(context):
    time.sleep(300)

def nan(context):
    return float("nan")

class Scalar:
    "As those of numpy and torch."
    def __init__(self, value):
        self.value = value
    def item(self):
        return self.value

def scalar(context):
    print("x" * 1_000_000)
    return {"value": Scalar(0.5), "passed": Scalar(True), "metadata": {"n": Scalar(3)}}

def boolean(context):
    return Scalar(True)

def index(context):
    class Whole:
        def __index__(self):
            return 1
    return Whole()

def exact(context):
    import decimal
    return decimal.Decimal("0.25")

def long(context):
    return {"value": 1, "explanation": "x" * 1_000_000, "answer": ["y"] * 500_000, "metadata": {"a": "z" * 1_000_000}}

def holes(context):
    return {"value": 1, "metadata": {"a": float("nan"), 2: {float("inf")}, "b": b"x", "c": 10 ** 30}}

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, workspace: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def test_a_function_says_what_it_is_worth(module: Path) -> None:
    assert score("python:mine:right", module).passed
    assert not score({"type": "python", "function": "mine:right", "arguments": {"word": "no"}}, module).passed
    rich = score("python:mine:rich", module, metadata={"a": 1})
    assert (rich.value, rich.passed, rich.answer, rich.metadata) == (0.25, True, "7", {"a": 1})
    later = score("python:mine:later", module)
    assert (later.value, later.passed) == (2.0, True)


def test_what_functions_return_is_made_plain(module: Path) -> None:
    scalar = score("python:mine:scalar", module)
    assert (scalar.value, scalar.passed, scalar.metadata, scalar.error) == (0.5, True, {"n": 3}, None)
    boolean = score("python:mine:boolean", module)
    assert (boolean.value, boolean.passed) == (1.0, True)
    assert score("python:mine:index", module).value == 1.0
    assert score("python:mine:exact", module).value == 0.25
    long = score("python:mine:long", module)
    assert (long.value, long.error) == (1.0, None)
    assert long.explanation is not None and len(long.explanation) < 2_010
    assert long.metadata == {"left_out": "metadata of 1,000,009 bytes; at most 200,000 are kept"}
    holes = score("python:mine:holes", module)
    assert holes.metadata == {"a": None, "2": [None], "b": "b'x'", "c": str(10**30)}


@pytest.mark.parametrize(
    "command", ["no-such-program -q", "./plain", ["sh", "-c", "no-such-program"], "exec no-such-program"]
)
@pytest.mark.parametrize("parse", ["exit", "number", "json"])
def test_a_program_that_the_shell_cannot_start_has_not_scored(
    tmp_path: Path, workspace: Path, command: Any, parse: str
) -> None:
    (workspace / "plain").write_text("exit 0\n")
    found = score({"type": "command", "command": command, "parse": parse}, tmp_path)
    assert found.error is not None and found.error.startswith("cannot be started: exit code 12"), found
    assert "no-such-program" in found.error or "ermission denied" in found.error


def test_private_is_the_module_or_its_package_and_nothing_that_is_installed(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def private(function: str, path: str = ".") -> list[Path]:
        return sorted(parse_scorer({"type": "python", "function": function, "path": path}, "scorers", module).private)

    # Checking has imported it, and the compiled module holds its strings as they are.
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    assert private("mine:right") == [module / "__pycache__", module / "mine.py"]
    for package in ("plain", "outer/inner"):
        (module / package).mkdir(parents=True)
        (module / package / "checks.py").write_text(MODULE)
    (module / "outer" / "inner" / "__init__.py").write_text("from .checks import right")
    assert private("plain.checks:right") == [module / "plain"]
    assert private("outer.inner.checks:right") == private("outer.inner:right") == [module / "outer" / "inner"]
    assert private("json:dumps") == private("math:sqrt") == private("msgspec.json:decode") == []
    monkeypatch.setenv("PYTHONPATH", str(module))
    assert private("plain.checks:right", "outer") == [module / "plain"]


def test_a_function_finds_what_pythonpath_names_from_here_and_nothing_by_an_empty_entry(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (module / "places.py").write_text(
        "import os, sys\nat = sys.path[:]\n"
        "def known(context): return {'value': 1, 'metadata': {'at': at, 'cwd': os.getcwd()}}\n"
    )
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", f":src::{tmp_path / 'absolute'}:")
    for safe in ("", "1"):
        monkeypatch.setenv("PYTHONSAFEPATH", safe)
        found = score("python:places:known", module)
        assert found.metadata is not None, found
        assert found.metadata["cwd"] == str(module)
        assert found.metadata["at"][:3] == [str(module), str(here / "src"), str(tmp_path / "absolute")]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("broken", "the function failed: KeyError: 'gone'"),
        ("strange", "reported [1]; expected true, false, a number, or an object"),
        ("leaves", "the function failed: SystemExit: 3"),
        ("nan", "the function failed: ValueError: the function returned nan; expected a finite number"),
    ],
)
def test_a_function_that_fails_has_not_scored(module: Path, name: str, problem: str) -> None:
    found = score(f"python:mine:{name}", module)
    assert found.error is not None and found.error.startswith(problem)


def test_a_function_that_takes_too_long_is_ended(module: Path) -> None:
    found = score({"type": "python", "function": "mine:slow", "timeout_s": 0.5}, module)
    assert found.error == "the function took more than 0.5 s"


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("mine", 'function: is "mine"; expected module:function'),
        ("mine:gone", "AttributeError: module 'mine' has no attribute 'gone'"),
        ("nowhere:f", "ModuleNotFoundError: No module named 'nowhere'"),
        ("mine:number", "TypeError: mine:number is no function but int"),
    ],
)
def test_a_function_that_is_not_there_is_refused(module: Path, function: str, problem: str) -> None:
    with pytest.raises(ScorerError, match="scorers: function: ") as caught:
        parse_scorer(f"python:{function}", "scorers", module)
    assert problem in str(caught.value)
