"""Projects with planted commands and texts, and the real codex: nothing of them gets to a thread of a limited key."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from projects import Traces, plant, traces

from codex_app_server import AppServerConfig, Codex
from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, Text, ToolCall
from codex_pool import connect
from codex_pool.auth.keys import KeyStore
from codex_pool.auth.principal import Identity
from codex_pool.auth.projects import WITHOUT
from codex_pool.pool import Pool
from codex_pool.runtime import processes

pytestmark = [pytest.mark.real, pytest.mark.security, pytest.mark.timeout(120)]

CHILD = "a child that looks"


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    with traces(monkeypatch) as found:
        yield found


@pytest.fixture
def projects(work: Path, found: Traces) -> dict[str, Path]:
    """Directories to work in, each of which brings something, by what is special about it."""
    root = plant(work / "repository", found, "root", git=True)
    inner = plant(root / "inner", found, "inner")
    (root / "plain").mkdir()
    alone = plant(work / "alone", found, "alone")
    (work / "link").symlink_to(alone)
    (work / "way").symlink_to(root)
    subprocess.run(
        "git -c user.email=a@b -c user.name=n commit -q --allow-empty -m x && git worktree add -q ../tree",
        shell=True,
        cwd=root,
        check=True,
        timeout=30,
    )
    return {
        "repository": root,
        "below, with its own": inner,
        "below": root / "plain",
        "alone": alone,
        "link": work / "link",
        "through a link": work / "way" / "inner",
        "worktree": plant(work / "tree", found, "tree"),
        "below what is not there": alone / "new" / "er",
    }


@pytest.fixture
def script(model: LoopbackModel, found: Traces) -> None:
    """Turns that try the rules of the project, and that start a sub-agent."""
    child = ToolCall(json.dumps({"message": CHILD}), tool="multi_agent_v1.spawn_agent")
    model.script = Script(
        (
            Rule(ToolCall(found.command("rule"), Text("{output}")), contains="touch"),
            Rule(child, contains="delegate"),
        )
    )


def home_of(config: AppServerConfig) -> Path:
    return Path(str(config.env["CODEX_HOME"]))


def trust(home: Path, *directories: Path) -> None:
    with (home / "config.toml").open("a") as file:
        for directory in directories:
            file.write(f'\n[projects."{directory}"]\ntrust_level = "trusted"\n')


def test_what_is_planted_works_where_the_project_is_trusted(
    config: AppServerConfig, work: Path, found: Traces, script: None
) -> None:
    directory = plant(work / "alone", found, "alone")
    with Codex(config) as codex:
        thread = codex.thread_start(cwd=str(directory), sandbox="workspace-write", approval_policy="never")
        thread.run("touch it")
    assert "trusted" in (home_of(config) / "config.toml").read_text()
    assert {"alone-mcp", "rule"} <= set(found.run)
    pieces = ("agents", "developer", "role", "skill-agents", "skill-codex")
    assert {f"PLANTED-{piece}-alone" for piece in pieces} | {"planted-model-alone"} <= set(found.texts)


class House:
    """A pool that listens on TCP, and a client with a key that may write."""

    def __init__(self, config: AppServerConfig, directory: Path, work: Path, **fields: Any) -> None:
        store = KeyStore(directory / "keys")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self.pool = Pool(2, config, listen=self.address, keys=store.directory)
        self.key = directory / "alice.key"
        identity = Identity(name="alice", sandbox="workspace-write", cwd_roots=(str(work),), **fields)
        store.new(identity, self.key)

    def kill_workers(self) -> None:
        assert self.pool.supervisor_pid is not None
        for process in processes.descendants(self.pool.supervisor_pid):
            try:
                command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"codex_pool.worker" in command:
                os.kill(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("trusted", [False, True], ids=["own home", "home that trusts"])
def test_nothing_of_a_project_gets_to_a_limited_key(
    config: AppServerConfig,
    tmp_path: Path,
    work: Path,
    found: Traces,
    projects: dict[str, Path],
    script: None,
    model: LoopbackModel,
    trusted: bool,
) -> None:
    if trusted:
        trust(home_of(config), *{Path(os.path.realpath(directory)) for directory in projects.values()}, work)
    before = (home_of(config) / "config.toml").read_text()
    house = House(config, tmp_path, work)

    def clean(what: str) -> None:
        assert (found.run, found.texts) == ([], []), what
        assert {request.model for request in model.requests} <= {"mock-model"}, what
        assert (home_of(config) / "config.toml").read_text() == before, what

    with house.pool, connect(house.address, key=house.key, name="alice") as alice:
        threads = {}
        for name, directory in projects.items():
            threads[name] = alice.thread_start(cwd=str(directory), sandbox="workspace-write")
            threads[name].run("touch it")
            clean(f"start in {name}")
            fork = alice.thread_fork(threads[name].id)
            fork.run("hello")
            clean(f"fork in {name}")
        thread = threads["repository"]
        thread.run("elsewhere", cwd=str(projects["alone"]))
        clean("a turn elsewhere")
        house.kill_workers()
        for number, (name, each) in enumerate(threads.items()):
            if number % 2:
                resumed = alice.client.request("thread/resume", {"thread_id": each.id})
                assert resumed.sandbox.type == "workspaceWrite"
            each.run("touch it")
            clean(f"adopted in {name}")
        thread.run("delegate")
        model.wait_for(lambda request: CHILD in request.prompt and request.answer == "text")
        clean("sub-agent")
        alice.client.request(
            "review/start", {"thread_id": thread.id, "target": {"type": "custom", "instructions": "look"}}
        )
        model.wait_for(lambda request: "look" in request.prompt and request.answer == "text")
        clean("review")
        thread.run("after it", on_busy="queue")
        clean("a turn after the review")


def test_requests_that_read_a_project_are_answered_without_it(
    config: AppServerConfig, tmp_path: Path, work: Path, found: Traces
) -> None:
    directory = plant(work / "alone", found, "alone", git=True)
    # The app-servers run there as well.
    config.cwd = directory
    trust(home_of(config), directory)
    house = House(config, tmp_path, work, methods=(*WITHOUT, "app/*", "server/diagnostics"))
    with house.pool, connect(house.address, key=house.key, name="alice") as alice:
        thread = alice.thread_start(cwd=str(directory), sandbox="workspace-write")
        thread.run("hello")
        named: dict[str, Any] = {"cwd": str(directory), "cwds": [str(directory)], "threadId": thread.id}
        asked = {method: [{}, {name: named[name] for name in instead}] for method, instead in WITHOUT.items()}
        asked["plugin/search"] = [{"searchTerm": "planted", **params} for params in asked["plugin/search"]]
        asked |= {"app/list": [{"threadId": thread.id}], "experimentalFeature/list": [{"threadId": thread.id}]}
        for method, requests in asked.items():
            for params in requests:
                try:
                    answer = alice.client.request(method, params)
                except Exception as error:
                    answer = error
                text = answer.model_dump_json() if hasattr(answer, "model_dump_json") else str(answer)
                assert "refused" not in text, (method, text)
                assert "lanted" not in text and "PLANTED" not in text, (method, params, text)
        thread.run("hello")
    assert (found.run, found.texts) == ([], [])
