"""What an agent can read, on the real binary: its workspace, and neither answers nor other samples nor the run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from programs import codex_pool

from codex_app_server import AppServerConfig, Codex
from codex_app_server.config import find_codex
from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, Text, ToolCall
from codex_pool import Pool, connect
from codex_pool.batch.dataset import Sample
from codex_pool.batch.workspace import config_overrides, prepare, thread_options

pytestmark = pytest.mark.real
SECRET = "the-answer-is-42"


@pytest.mark.parametrize("sandbox", ["workspace-write", "read-only"])
def test_the_sandbox_denies_the_run_and_the_dataset_and_grants_the_workspace(
    tmp_path: Path, config: AppServerConfig, model: LoopbackModel, sandbox: str
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    secrets = [run / "run.sqlite", run / "work" / "b" / "workspace" / "solution", data / "tests" / "hidden.py"]
    for path in secrets:
        path.parent.mkdir(parents=True)
        path.write_text(SECRET)
    sample = Sample("a", ("go",), workspace={"files": {"code.txt": "visible\n"}})
    workspace = asyncio.run(prepare(sample, run / "work" / "a"))
    (run / "work" / "a" / "base.git" / "secret").write_text(SECRET)
    read = f"cat {' '.join(map(str, secrets))} ../base.git/secret; grep -r answer {run} {data}"
    cmd = f"cat code.txt; echo mine > new.txt; {read}"
    model.script = Script((Rule(ToolCall(cmd, Text("{output}"))),))
    with Codex(config) as codex:
        options = thread_options(sandbox, workspace.cwd, [run, data])
        thread = codex.thread_start(cwd=str(workspace.cwd), **options)
        for _ in range(2):
            said = thread.run("go", permissions=options["permissions"]).final_response
            assert said is not None and "visible" in said and SECRET not in said and "denied" in said
    assert (workspace.cwd / "new.txt").exists() == (sandbox == "workspace-write")
    assert (b"+mine" in asyncio.run(workspace.diff())) == (sandbox == "workspace-write")


def test_an_exec_server_that_a_hook_names_runs_the_commands(
    tmp_path: Path, config: AppServerConfig, model: LoopbackModel
) -> None:
    codex_bin = str(find_codex(None))
    server = subprocess.Popen(
        [codex_bin, "exec-server", "--listen", "ws://127.0.0.1:0"],
        env={**os.environ, "CODEX_HOME": str(tmp_path), "WHERE": "in the container"},
        stdout=subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().decode().strip()
        sample = Sample("a", ("go",), workspace={"files": {"code.txt": "x"}})
        hook = f"""[ $CODEX_POOL_HOOK = stop ] || echo '{{"exec_server": "{url}"}}'"""
        workspace = asyncio.run(prepare(sample, tmp_path / "work" / "a", hook=hook))
        assert workspace.environment is not None
        model.script = Script((Rule(ToolCall("echo ran $WHERE; touch made", Text("{output}"))),))
        with Codex(config) as codex:
            codex.client.request("environment/add", workspace.environment)
            thread = codex.thread_start(cwd=str(workspace.cwd), sandbox="danger-full-access", **workspace.thread)
            assert "ran in the container" in (thread.run("go").final_response or "")
        assert (workspace.path / "made").exists()
        asyncio.run(workspace.remove())
    finally:
        server.terminate()
        server.communicate(timeout=10)


def test_a_sample_with_a_target_cannot_read_it_in_its_dataset_and_one_without_is_as_ever(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    prompt = f'[[tool_call "cat {data}; head -c 6 {tmp_path}/out/run.sqlite"]] [[text "{{output}}"]]'
    lines = [{"id": "with", "prompt": prompt, "target": SECRET}, {"id": "without", "prompt": prompt}]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = codex_pool("batch", str(data), "--demo", "--workers", "1", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    with_target, without = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert SECRET not in with_target["final_response"] and with_target["final_response"].count("denied") == 2
    assert SECRET in without["final_response"] and without["final_response"].endswith("SQLite")


def test_what_is_denied_stays_denied_when_the_worker_dies(
    tmp_path: Path, config: AppServerConfig, model: LoopbackModel
) -> None:
    run, work = tmp_path / "run", tmp_path / "run" / "work" / "a"
    work.mkdir(parents=True)
    (run / "secret").write_text(SECRET)
    model.script = Script((Rule(ToolCall(f"cat {run}/secret; ls", Text("{output}"))),))
    overrides = (*config.config_overrides, *config_overrides([run], {}))
    with (
        Pool(2, replace(config, config_overrides=overrides), log_file=tmp_path / "pool.log") as pool,
        connect(pool.endpoint) as codex,
    ):
        thread = codex.thread_start(cwd=str(work), **thread_options("workspace-write", work, [run]))
        for _ in range(2):
            said = thread.run("go").final_response or ""
            assert SECRET not in said and f"{run}/secret" in said
            for row in codex.client.request("pool/status")["workers"]:
                if row.get("threads"):
                    os.kill(row["appServerPid"], signal.SIGKILL)
