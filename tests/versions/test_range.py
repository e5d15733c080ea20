"""Promises of this package for each version of codex in its range: turns, guarded runs, failover, batches."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from programs import codex_pool
from waiting import until

from codex_app_server import (
    AppServerConfig,
    AsyncCodex,
    Codex,
    InvalidInputError,
    MethodNotFoundError,
    notifications,
)
from codex_app_server._protocol import runtime_version
from codex_app_server.generated.since import FIELDS, METHODS
from codex_app_server.operations import Operation
from codex_app_server.testing.loopback import LoopbackModel
from codex_pool import Pool

SECRET = "the-answer-is-42"


@pytest.fixture
def config(config: AppServerConfig, binary: Path) -> AppServerConfig:
    """The app-server of this version on the loopback model."""
    notifications.undecoded.clear()
    return replace(config, codex_bin=str(binary))


def rows(codex: Codex) -> list[dict[str, Any]]:
    """The rows of the workers in the pool's status."""
    found: list[dict[str, Any]] = codex.client.request("pool/status")["workers"]
    return found


def all_decoded() -> None:
    """Nothing that the runtime has sent failed to fit its type."""
    assert not notifications.undecoded


def test_turns_of_the_sdk(config: AppServerConfig, version: str, work: Path) -> None:
    asked: list[str] = []

    def decide(method: str, params: Any) -> dict[str, str]:
        asked.append(method)
        return {"decision": "decline"}

    with Codex(config, approval_handler=decide) as codex:
        assert codex.client.runtime_version == version
        thread = codex.thread_start(sandbox="workspace-write")
        result = thread.run('[[tool_call "echo made > made.txt"]] [[text "sextant"]]', timeout=30)
        assert result.final_response == "sextant" and (work / "made.txt").read_text() == "made\n"
        assert result.usage is not None and result.undecoded == ()
        assert {"userMessage", "commandExecution", "agentMessage"} <= {item.type for item in result.items}
        asking = codex.thread_start(approval_mode="ask", sandbox="read-only")
        asking.run(f'[[tool_call "echo hi > {work}/file" escalate=true]] [[text "so be it"]]', timeout=30)
        assert asked == ["item/commandExecution/requestApproval"] and not (work / "file").exists()
        turn = thread.turn('[[sleep 30]] [[text "late"]]')
        next(iter(turn.stream()))
        turn.interrupt()
        assert turn.run(timeout=30).status == "interrupted"
        thread.set_name("mine")
        read = thread.read(include_turns=True).thread
        assert (read.name, read.cli_version) == ("mine", version) and len(read.turns) == 2
        assert thread.id in {each.id for each in codex.thread_list().data}
        assert codex.models() is not None

    async def again() -> str | None:
        async with AsyncCodex(config) as codex:
            resumed = await codex.thread_resume(thread.id)
            return (await resumed.run("Say quadrant-18.", timeout=30)).final_response

    assert "quadrant-18" in str(asyncio.run(again()))
    all_decoded()


def test_what_it_does_not_have_is_refused_by_name(config: AppServerConfig, version: str) -> None:
    lacks = runtime_version.lacking(version)
    with Codex(config) as codex:
        for method, (since, gone) in METHODS.items():
            if method in lacks and lacks[method].method:
                with pytest.raises(MethodNotFoundError, match=since or gone):
                    codex.client.perform(Operation(method, b"{}", json.loads))
        for method, spans in FIELDS.items():
            for field, span in spans.items():
                if method in lacks and field in lacks[method].fields:
                    with pytest.raises(InvalidInputError, match="|".join(filter(None, span))):
                        codex.client.perform(Operation(method, json.dumps({field: 1}).encode(), json.loads))


def test_a_pool_carries_its_threads_over_when_an_app_server_dies(
    config: AppServerConfig, version: str, model: LoopbackModel, work: Path, tmp_path: Path
) -> None:
    """Threads keep their history and never get another sandbox; home and configuration say danger-full-access."""
    danger = replace(config, config_overrides=(*config.config_overrides, 'sandbox_mode="danger-full-access"'))
    outside = Path("/var/tmp") / f"outside-{os.getpid()}"
    with Pool(2, danger, log_file=tmp_path / "pool.log") as pool, pool.connect() as codex:
        thread = codex.thread_start(sandbox="workspace-write")
        assert thread.run("Say astrolabe-19.", timeout=30).undecoded == ()
        assert {row["codexVersion"] for row in rows(codex)} == {version}
        (row,) = (row for row in rows(codex) if row["threads"])
        os.kill(row["appServerPid"], signal.SIGKILL)
        until(lambda: row["worker"] not in {each.get("worker") for each in rows(codex)})
        try:
            command = f"echo in > inside.txt; echo out > {outside}"
            assert thread.run(f'[[tool_call "{command}"]] [[text "done"]]', timeout=30).final_response == "done"
            assert (work / "inside.txt").exists() and not outside.exists()
        finally:
            outside.unlink(missing_ok=True)
        record = model.wait_for(lambda record: command in record.prompt)
        assert any("astrolabe-19" in text for text in record.user_texts)
        thread.set_name("mine")
        codex.thread_archive(thread.id)
    log = (tmp_path / "pool.log").read_text()
    assert f", codex {version})" in log
    all_decoded()


def test_a_batch_is_guarded_and_scored(binary: Path, version: str, tmp_path: Path) -> None:
    """Neither in its first turn nor in the second can an agent read the answers; its own files it can."""
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    look = f"cat own.txt; cat {data}; head -c 6 {out}/run.sqlite; echo new > new.txt"
    prompt = f'[[tool_call "{look}"]] [[text "{{output}}"]]'
    samples = [
        {"id": "a", "prompts": [prompt, prompt], "target": SECRET, "workspace": {"files": {"own.txt": "visible\n"}}},
        {"id": "b", "prompt": '[[text "sextant"]]', "target": "sextant"},
    ]
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    options = ("--demo", "--workers", "1", "--codex-bin", str(binary), "--scorer", "exact", "--json", "-o", str(out))
    done = codex_pool("batch", str(data), *options)
    records = {each["id"]: each for each in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    a, b = records["a"], records["b"]
    for said in (a["responses"] or []) + [a["final_response"]]:
        assert SECRET not in said and "SQLite" not in said, done.stderr
        # 0.147 and others show an empty file, or none, where newer ones deny it.
        assert "visible" in said, (said, done.stderr)
    assert (a["status"], a["valid"], a["scores"]["exact"]["value"]) == ("completed", True, 0.0), done.stderr
    assert (b["status"], b["valid"], b["scores"]["exact"]["value"]) == ("completed", True, 1.0), done.stderr
    assert {a["codex_version"], b["codex_version"]} == {version}
    assert "+new\n" in (out / "artifacts" / "a" / "diff.patch").read_text()
    launch, *_, ended = map(json.loads, done.stdout.splitlines())
    assert (launch["codex_version"], ended["exit_code"], ended["not_valid"]) == (version, 0, {})
    warned = runtime_version.warning(version)
    assert done.stderr.count("this SDK was made for") == (0 if warned is None else 1)
