"""`codex-pool run` as scripts use it: JSON events, threads that go on, a queue, Ctrl-C, and what it loads."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from codex_cli_bin import bundled_codex_path
from programs import Program, codex_pool, environment, running

from codex_app_server import Codex
from codex_app_server.testing.loopback import LoopbackModel
from codex_pool.client.unix_transport import UnixTransport
from codex_pool.protocol import endpoints

pytestmark = pytest.mark.real

HEAVY = {"pydantic", "asyncio", "rich", "zmq"}
Events = list[dict[str, Any]]


@pytest.fixture
def daemon(home: Path) -> Iterator[Program]:
    """A daemon at the default endpoint that runs one turn at once."""
    with running("serve", "--workers", "1", "--turns-per-worker", "1", home=home) as program:
        program.wait_for_line("stop  Ctrl-C")
        yield program
        assert program.end(signal.SIGINT) == 0, program.lines


def run_json(*arguments: str, home: Path | None = None) -> tuple[int, Events]:
    done = codex_pool("run", "--json", *arguments, home=home)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def only(events: Events, kind: str) -> dict[str, Any]:
    (found,) = (event for event in events if event["type"] == kind)
    return found


# What it loads.


@pytest.mark.parametrize("arguments", [["run", "hi"], ["run", "--json", "hi"], ["status"], ["status", "--json"]])
def test_short_verbs_load_nothing_that_takes_time(daemon: Program, arguments: list[str]) -> None:
    loaded = modules_of(*arguments)
    assert "codex_pool_cli" in loaded and not HEAVY & loaded


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], ["run", "--help"], ["status", "--help"], ["keys", "list"], ["runs", "list", "."]],
)
def test_help_versions_and_lists_load_nothing_that_takes_time(arguments: list[str], tmp_path: Path) -> None:
    arguments = [str(tmp_path) if each == "." else each for each in arguments]
    assert not HEAVY & modules_of(*arguments, CODEX_POOL_KEYS=str(tmp_path / "keys"))


def test_a_run_on_an_app_server_of_its_own_loads_no_types(home: Path) -> None:
    loaded = modules_of("run", "hi", CODEX_HOME=str(home))
    assert "codex_app_server.transport" in loaded and not HEAVY & loaded


def modules_of(*arguments: str, **env: str) -> set[str]:
    """The modules that a command has imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "codex_pool_cli", *arguments],
        env={**environment(None), **env},
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE))


# Events.


@pytest.mark.parametrize("prompt", ["Say theodolite-41.", "[[tool_call 'echo alidade-42']] [[text done]]"])
def test_its_events_are_those_of_codex_exec_and_more(home: Path, work: Path, prompt: str) -> None:
    asked = ["--json", "--ephemeral", "--sandbox", "danger-full-access", prompt]
    command = [str(bundled_codex_path()), "exec", "--skip-git-repo-check", *asked]
    done = subprocess.run(
        command, env=environment(home), cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=40
    )
    expected: Events = [json.loads(line) for line in done.stdout.splitlines()]
    code, events = run_json(*asked[1:], "--cwd", str(work), home=home)
    assert (code, done.returncode) == (0, 0)
    # Its warnings may come at another time.
    kinds = [shape(event) for event in expected if not is_warning(event)]
    mine = [event for event in events if not is_warning(event)]
    assert [shape(event) for event in mine if event["type"] != "item.delta"] == kinds
    for event, other in zip(
        (event for event in mine if event["type"] != "item.delta"),
        (event for event in expected if not is_warning(event)),
        strict=True,
    ):
        assert said(other).items() <= said(event).items()
    deltas = "".join(event["delta"] for event in events if event["type"] == "item.delta" and is_text(event, events))
    assert deltas == only(events, "turn.completed")["final_response"]


def shape(event: dict[str, Any]) -> tuple[str, str]:
    return event["type"], event.get("item", {}).get("type", "")


def is_warning(event: dict[str, Any]) -> bool:
    return shape(event)[1] == "error"


def is_text(delta: dict[str, Any], events: Events) -> bool:
    return any(
        event.get("item", {}).get("id") == delta["item_id"] and shape(event)[1] == "agent_message" for event in events
    )


def said(event: dict[str, Any]) -> dict[str, Any]:
    """The content of an event, without ids and durations."""
    flat = {**event, **event.get("item", {})}
    return {name: value for name, value in flat.items() if name not in ("id", "item", "thread_id", "aggregated_output")}


def test_a_failed_turn_is_an_event_and_the_exit_code(home: Path) -> None:
    code, events = run_json("[[failed invalid_prompt]]", home=home)
    assert code == 1 and [event["type"] for event in events][-2:] == ["error", "turn.failed"]
    assert only(events, "turn.failed")["error"] == {"message": "scripted failure", "kind": "failed"}
    assert only(events, "error") == {"type": "error", "message": "scripted failure", "will_retry": False}


# Threads.


def test_a_thread_goes_on_at_a_daemon_and_without_one(home: Path, model: LoopbackModel) -> None:
    code, events = run_json("Say theodolite-41.", home=home)
    thread = only(events, "thread.started")["thread_id"]
    with running("serve", "--workers", "1", home=home) as daemon:
        daemon.wait_for_line("stop  Ctrl-C")
        code, events = run_json("Say alidade-42.", "--thread", thread)
        assert (code, only(events, "thread.started")["thread_id"]) == (0, thread)
        assert "theodolite-41" in str(model.requests[-1].user_texts)
        assert only(events, "turn.completed")["usage"]["input_tokens"] < 100, "of this turn alone"
        assert codex_pool("run", "Say gnomon-43.", "--thread", thread, "--sandbox", "workspace-write").returncode == 2
        assert daemon.end(signal.SIGINT) == 0
    done = codex_pool("run", "Say sextant-44.", "--thread", thread, home=home)
    assert done.returncode == 0 and "alidade-42" in str(model.requests[-1].user_texts)


def test_a_thread_that_goes_on_without_a_daemon_has_the_configured_sandbox(home: Path, work: Path) -> None:
    asked = ["[[tool_call 'touch f']] [[text done]]", "--cwd", str(work)]
    code, events = run_json("hi", "--cwd", str(work), "--sandbox", "danger-full-access", home=home)
    thread = only(events, "thread.started")["thread_id"]
    code, events = run_json(*asked, "--thread", thread, home=home)
    assert code == 0 and not (work / "f").exists()
    code, events = run_json(*asked, "--thread", thread, "--sandbox", "danger-full-access", home=home)
    assert code == 0 and (work / "f").exists()


def test_an_ephemeral_thread_is_not_stored(home: Path) -> None:
    code, events = run_json("hi", "--ephemeral", home=home)
    assert code == 0 and not list(home.rglob("rollout-*"))
    done = codex_pool("run", "hi", "--thread", only(events, "thread.started")["thread_id"], home=home)
    assert done.returncode == 1 and "no rollout found" in done.stderr


@pytest.mark.parametrize("other", ["--ephemeral", "--demo"])
def test_options_of_new_threads_are_refused_beside_thread(other: str) -> None:
    done = codex_pool("run", "hi", "--thread", "x", other)
    assert done.returncode == 2 and f"{other} is for a new thread and cannot go with --thread" in done.stderr


# A queue, and the end.


def test_a_turn_that_waits_says_behind_how_many(daemon: Program, model: LoopbackModel) -> None:
    with running("run", "--json", "[[hang 30]]") as first:
        model.wait_for(lambda record: record.outcome == "hanging", 20)
        with running("run", "--json", "Say alidade-42.") as second:
            assert json.loads(second.wait_for_line("turn.queued", "stdout"))["ahead"] == 0
            with running("run", "--json", "Say gnomon-43.") as third:
                assert json.loads(third.wait_for_line("turn.queued", "stdout"))["ahead"] == 1
                assert third.end(signal.SIGINT) == 130
            assert third.lines["stderr"][-1] == "codex-pool: interrupted"
            assert first.end(signal.SIGINT) == 130
            assert second.wait() == 0
    ended = json.loads(first.lines["stdout"][-1])
    assert (ended["type"], ended["error"]["kind"]) == ("turn.failed", "interrupted")
    assert first.lines["stderr"][-1] == "codex-pool: interrupted"
    kinds = [json.loads(line)["type"] for line in second.lines["stdout"]]
    assert kinds.index("turn.queued") < kinds.index("turn.dequeued") < kinds.index("turn.started")
    assert "alidade-42" in json.loads(second.lines["stdout"][-1])["final_response"]


def test_a_reader_that_goes_away_ends_the_turn(daemon: Program, model: LoopbackModel) -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "codex_pool_cli", "run", "--json", "[[text deltas=400 pace_ms=50]]"]
    with subprocess.Popen(command, env=environment(None), stdout=writer, stderr=subprocess.PIPE) as program:
        os.close(writer)
        output = b""
        while b"item.delta" not in output:
            output += os.read(reader, 4096)
        os.close(reader)
        assert program.wait(30) == 128 + signal.SIGPIPE
    model.wait_for(lambda record: record.outcome == "disconnected", 10)


def test_an_approval_is_declined_for_want_of_someone_to_ask(home: Path, work: Path) -> None:
    with (home / "config.toml").open("r+") as config:
        text = config.read()
        config.seek(0)
        config.write('approval_policy = "on-request"\n' + text)
    code, events = run_json("[[tool_call 'echo x > f']] [[text done]]", "--cwd", str(work), home=home)
    assert code == 0 and only(events, "turn.completed")["final_response"] == "done"
    assert not (work / "f").exists()


# The transport, below the whole SDK.


def test_the_sdk_runs_turns_over_a_plain_socket(daemon: Program) -> None:
    with Codex(transport=UnixTransport(endpoints.default_endpoint(), client="test")) as codex:
        threads = [codex.thread_start(ephemeral=True) for _ in range(2)]
        turns = [thread.turn(f"Say theodolite-{number}.") for number, thread in enumerate(threads)]
        for number, turn in enumerate(turns):
            assert f"theodolite-{number}" in str(turn.run(timeout=30).final_response)
