"""What an agent can read, on the real binary: its workspace, and neither answers nor other samples nor the run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from codex_app_server import AppServerConfig, Codex
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
