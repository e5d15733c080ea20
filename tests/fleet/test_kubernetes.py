"""The recipe for Kubernetes against the published schemas, and its script in a shell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import codex_pool, environment

from codex_batch.store import open_run

pytestmark = pytest.mark.fleet

VERSIONS = ("1.29", "1.37")
OF_PODS = ("--image", "registry.example/evals:1", "--claim", "runs")
HARD = ("--scorer", 'command:echo "$(HOME) $$" $USER\n  # "ü: \\', "--retries", "1")


def manifest(*words: str) -> tuple[dict[str, Any], str]:
    """The manifest that a command prints, and the script that its container runs."""
    printed = codex_pool("recipe", "kubernetes", *words)
    assert printed.returncode == 0, printed.stderr
    (found,) = yaml.safe_load_all(printed.stdout)
    # Installed by `make test-fleet` alone; the module is collected without it, too.
    import kubernetes_validate

    for version in VERSIONS:
        kubernetes_validate.validate(found, version, strict=True)
    (container,) = found["spec"]["template"]["spec"]["containers"]
    shell, flag, script = container["command"]
    assert (shell, flag) == ("/bin/sh", "-c")
    # As the kubelet does: there is no $(NAME) of a variable left in it.
    return found, script.replace("$$", "$")


def test_the_job_is_valid_and_has_all_that_was_asked_for() -> None:
    job, script = manifest(
        *("--shards", "20", *OF_PODS, "--secret", "openai", "--namespace", "evals", "--parallelism", "5"),
        *("--cpus", "2", "--memory", "8Gi", "--name", "monday", "-o", "/runs/monday", "/data/d.jsonl", *HARD),
    )
    assert job["metadata"] == {"name": "monday", "namespace": "evals"}
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 20, 5)
    pod = spec["template"]["spec"]
    assert pod["volumes"] == [{"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}}]
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi"},
        "limits": {"memory": "8Gi"},
    }
    assert "login --api-key" in script


def test_the_schema_refuses_what_is_wrong() -> None:
    job, _ = manifest("--shards", "2", *OF_PODS, "-o", "/runs/x", "/data/d.jsonl")
    job["spec"]["completions"] = "two"
    import kubernetes_validate

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("index", [0, 1])
def test_the_shell_passes_the_words_as_they_were_given(index: int, tmp_path: Path) -> None:
    _, script = manifest("--shards", "2", *OF_PODS, "-o", "/runs/it's", "/data/d.jsonl", *HARD)
    program = tmp_path / "codex-pool"
    program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    environ = {**environment(None), "PATH": f"{tmp_path}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": str(index)}
    done = subprocess.run(["/bin/sh", "-c", script], env=environ, capture_output=True, text=True, timeout=30)
    words = ["batch", "/data/d.jsonl", *HARD, "--shard", f"{index + 1}/2", "-o", f"/runs/it's/shard-{index + 1}"]
    assert json.loads(done.stdout) == words, done.stderr


@pytest.mark.timeout(150)
def test_the_scripts_of_both_jobs_run_shards_and_merge_them(tmp_path: Path) -> None:
    data, runs = tmp_path / "d.jsonl", tmp_path / "runs"
    data.write_text("".join(json.dumps({"id": f"s{n}", "prompt": "[[text yes]]"}) + "\n" for n in range(4)))
    of_run = (
        "--shards",
        "2",
        *OF_PODS,
        "--mount",
        str(runs),
        "-o",
        str(runs / "a"),
        str(data),
        "--demo",
        "--workers",
        "1",
    )
    _, script = manifest(*of_run)
    merge, of_merge = manifest("--merge", *of_run)
    assert merge["metadata"]["name"] == "codex-pool-merge"
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    for text, index in ((script, "0"), (script, "1"), (of_merge, "")):
        environ = {**environment(None), "PATH": path, "JOB_COMPLETION_INDEX": index}
        done = subprocess.run(["/bin/sh", "-c", text], env=environ, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
    with open_run(runs / "a" / "merged") as store:
        assert store.counts()["completed"] == 4
