"""What an agent can read, on the real binary: its workspace, and neither answers nor other samples nor the run."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from codex_app_server import AppServerConfig, Codex
from codex_app_server.config import find_codex
from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, Text, ToolCall
from codex_pool.batch.dataset import Sample
from codex_pool.batch.workspace import prepare, thread_options

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
