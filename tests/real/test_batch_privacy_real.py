"""Read access of an agent on the real binary: its workspace, and neither answers nor other samples nor the run."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from programs import codex_pool
from small_disk import mount_namespace

from codex_app_server import AppServerConfig, Codex
from codex_app_server.config import find_codex
from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, Text, ToolCall
from codex_batch.dataset import Sample
from codex_batch.workspace import base_of, config_overrides, prepare, thread_options
from codex_batch.workspace.privacy import Base
from codex_pool import Pool, connect
from codex_pool.configuration import Configuration

pytestmark = pytest.mark.real
SECRET = "the-answer-is-42"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def _base(sandbox: str) -> Base:
    base = base_of(Configuration(sandbox), None)
    assert base is not None
    return base


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
    # What codex reads there outside of the sandbox is not the agent's to write.
    write = "echo mine > new.txt; mkdir -p .agents/skills .codex/skills"
    cmd = f"cat code.txt; {write}; {read}"
    model.script = Script((Rule(ToolCall(cmd, Text("{output}"))),))
    with Codex(config) as codex:
        options = thread_options(_base(sandbox), workspace.cwd, [run, data])
        thread = codex.thread_start(cwd=str(workspace.cwd), **options)
        for _ in range(2):
            said = thread.run("go", permissions=options["permissions"]).final_response
            assert said is not None and "visible" in said and SECRET not in said and "denied" in said
    assert (workspace.cwd / "new.txt").exists() == (sandbox == "workspace-write")
    assert not list(workspace.cwd.glob("*/skills"))
    assert (b"+mine" in asyncio.run(workspace.diff())) == (sandbox == "workspace-write")


@pytest.mark.parametrize("sandbox", ["workspace-write", "read-only"])
def test_no_tool_of_codex_reads_what_the_sandbox_denies(
    tmp_path: Path, config: AppServerConfig, model: LoopbackModel, sandbox: str
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    cwd, answer = run / "work" / "a", data / "answer.png"
    others = [answer, data / "tests" / "hidden.png", run / "work" / "b" / "found.png", run / "run.sqlite"]
    for path in (*others, cwd / "own.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PIXEL)
    (data / "answer.txt").write_text(SECRET + "\n")
    (cwd / "link.png").symlink_to(answer)
    (cwd / "link.txt").symlink_to(data / "answer.txt")
    looks = [{"path": str(path)} for path in (*others, cwd / "link.png", "../../../data/answer.png")]
    # codex applies a patch by itself, and quotes what it has not found.
    patches = [
        f"*** Update File: {data}/answer.txt\n*** Move to: {cwd}/found.txt\n@@\n-{SECRET}\n+{SECRET}",
        f"*** Update File: {cwd}/link.txt\n*** Move to: {cwd}/found.txt\n@@\n-{SECRET}\n+{SECRET}",
        f"*** Delete File: {data}/answer.txt",
    ]
    applied = tuple(f"apply_patch <<'E'\n*** Begin Patch\n{patch}\n*** End Patch\nE\n" for patch in patches)
    child = ToolCall(json.dumps({"message": "a child that looks"}), tool="multi_agent_v1.spawn_agent")
    model.script = Script(
        (
            Rule(_view({"path": "own.png"}), contains="own"),
            Rule(_view(*looks), contains="look"),
            Rule(ToolCall(applied), contains="patch"),
            Rule(child, contains="delegate"),
        )
    )
    with Codex(config) as codex:
        options = thread_options(_base(sandbox), cwd, [run, data])

        def outputs(prompt: str, heard: str = "") -> tuple[str, ...]:
            thread = codex.thread_start(cwd=str(cwd), **options)
            thread.run(prompt, permissions=options["permissions"])
            done = model.wait_for(lambda request: (heard or prompt) in request.prompt and request.answer == "text")
            return done.tool_outputs

        assert outputs("own")[0].startswith("data:image/png;base64,")
        for seen in (outputs("look"), outputs("delegate", "a child that looks")):
            assert len(seen) == len(looks) and not any("data:" in output for output in seen)
            assert all("unable to " in output and "(os error" in output for output in seen), seen
        patched = outputs("patch")
        assert len(patched) == len(patches) and all("Permission denied" in output for output in patched), patched
    assert not (cwd / "found.txt").exists()


def _view(*arguments: dict[str, str]) -> ToolCall:
    return ToolCall(tuple(map(json.dumps, arguments)), tool="view_image")


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


DOCKER = """#!/bin/sh
# What the example asks of Docker; the container is there already.
echo "$*" >> {log}
case $1 in
run) [ ! -e {log}.no ] || {{ echo "no such image" >&2; exit 125; }} ;;
logs) [ "$(grep -c ^logs {log})" -lt 3 ] || echo ws://0.0.0.0:7000 ;;
port) echo {address} ;;
esac
"""


def test_the_example_of_a_container_keeps_the_agent_in_it(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out, log = tmp_path / "data.jsonl", tmp_path / "out", tmp_path / "docker.log"
    command = '[[tool_call "ls -d /mnt/workspace; cat given; echo made > answer"]] [[text "{output}"]]'
    sample = {"id": "a", "prompt": command, "workspace": {"files": {"given": "x\n"}}, "sandbox": "danger-full-access"}
    data.write_text(json.dumps(sample) + "\n")
    # A directory that is nowhere else.
    make = 'mount -t tmpfs none /mnt && ln -s "$1" /mnt/workspace && exec "$2" exec-server --listen ws://127.0.0.1:0'
    inside = ["sh", "-c", make, "sh", str(out / "work" / "a" / "workspace"), str(find_codex(None))]
    options = mount_namespace()
    assert options is not None, "expected CAP_SYS_ADMIN (--cap-add SYS_ADMIN of a container), or user namespaces"
    server = subprocess.Popen(
        ["unshare", *options, *inside], env={**os.environ, "CODEX_HOME": str(tmp_path)}, stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().decode().strip().removeprefix("ws://")
        docker = tmp_path / "bin" / "docker"
        docker.parent.mkdir()
        docker.write_text(DOCKER.format(log=log, address=address))
        docker.chmod(0o755)
        monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("CODEX_BIN", str(find_codex(None)))
        hook = Path(__file__).parents[2] / "examples" / "batch" / "docker-hook.sh"
        arguments = ("batch", str(data), "--workers", "1", "--home", str(home), "-o", str(out))
        hooked = (*arguments, "--workspace-hook", str(hook))
        # What Docker says against it is what is said of the sample.
        (tmp_path / "docker.log.no").touch()
        refused = codex_pool(*hooked)
        assert refused.returncode == 1 and "no such image" in refused.stderr, refused.stderr
        (tmp_path / "docker.log.no").unlink()
        log.unlink()
        done = codex_pool(*hooked)
        assert done.returncode == 0, done.stderr
    finally:
        server.terminate()
        server.communicate(timeout=10)
    (record,) = (json.loads(line) for line in (out / "results.jsonl").read_text().splitlines())
    assert record["final_response"].split() == ["/mnt/workspace", "x"]
    assert "+made\n" in (out / "artifacts" / "a" / "diff.patch").read_text()
    asked = [line.split()[0] for line in log.read_text().splitlines()]
    assert [verb for verb in asked if verb != "rm"] == ["run", "logs", "logs", "logs", "port"] and asked[-1] == "rm"


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


@pytest.mark.parametrize("function", ["checks:right", "evals.checks:right"])
def test_an_agent_cannot_read_the_module_that_scores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    # The compiled module holds its strings as they are.
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    module = (tmp_path / "own" / function.partition(":")[0].replace(".", "/")).with_suffix(".py")
    module.parent.mkdir(parents=True)
    module.write_text(f"def right(context):\n    return {SECRET!r} not in context['final_response']\n")
    (tmp_path / "own" / "other.txt").write_text("visible\n")
    scorer = {"type": "python", "function": function, "path": "own"}
    read = f"cat {module}; grep -ar answer-is {tmp_path}/own; cat {tmp_path}/own/other.txt; python3 -c 'print(6*7000)'"
    line = {"prompt": f'[[tool_call "{read}"]] [[text "{{output}}"]]', "scorers": [scorer]}
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"id": id, **line}) + "\n" for id in "ab"))
    done = codex_pool("batch", str(tmp_path / "d.jsonl"), "--demo", "--workers", "1", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    for result in map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines()):
        said = result["final_response"]
        assert "denied" in said and "answer-is" not in said and "visible" in said and "42000" in said, said
        assert [score["passed"] for score in result["scores"].values()] == [True]


@pytest.mark.parametrize("sandbox", ["workspace-write", "read-only"])
def test_what_is_denied_stays_denied_when_the_worker_dies(
    tmp_path: Path, config: AppServerConfig, model: LoopbackModel, sandbox: str
) -> None:
    repository = tmp_path / "repository"
    run, work = repository / "run", repository / "run" / "work" / "a"
    work.mkdir(parents=True)
    for secret in (run / "secret", repository / "secret"):
        secret.write_text(SECRET)
    (work / "own").write_text("visible")
    changing = {run: [run / "secret"], run / "work": []}
    model.script = Script((Rule(ToolCall(f"cat {run}/secret {repository}/secret own", Text("{output}"))),))
    overrides = (
        *config.config_overrides,
        *config_overrides(Configuration(sandbox, names_default=False), [run], changing, [repository]),
    )
    with (
        Pool(2, replace(config, config_overrides=overrides), log_file=tmp_path / "pool.log") as pool,
        connect(pool.endpoint) as codex,
    ):
        options = thread_options(_base(sandbox), work, [run, repository], changing)
        thread = codex.thread_start(cwd=str(work), **options)
        for _ in range(2):
            said = thread.run("go").final_response or ""
            assert SECRET not in said and f"{run}/secret" in said and "visible" in said, said
            for row in codex.client.request("pool/status")["workers"]:
                if row.get("threads"):
                    os.kill(row["appServerPid"], signal.SIGKILL)
