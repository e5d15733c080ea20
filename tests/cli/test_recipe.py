"""What `codex-pool recipe` prints, and what it refuses before anything is submitted."""

from __future__ import annotations

import shlex

import pytest
from click.testing import CliRunner, Result

from codex_pool_cli.verbs import verbs

PODS = ("kubernetes", "--shards", "2", "--image", "x", "--claim", "runs")


def recipe(*words: str) -> Result:
    return CliRunner().invoke(verbs, ["recipe", *words])


def test_the_script_of_slurm_has_the_options_and_one_command() -> None:
    found = recipe(
        *("slurm", "--shards", "20", "--time", "4:00:00", "--memory", "8G", "--cpus", "4", "--partition", "gpu"),
        *("-o", "/shared/r", "tasks dir", "--scorer", "command:it's", "--retries", "1"),
    )
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert options == [
        *("--array=1-20", "--job-name=codex-pool", "--time=4:00:00", "--cpus-per-task=4", "--mem=8G"),
        *("--partition=gpu", "--signal=B:TERM@120", "--open-mode=append", "--requeue"),
    ]
    # Slurm reads no options after the first command.
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands[0] == "set -euo pipefail" and len(commands) == 2
    index = "${SLURM_ARRAY_TASK_ID}"
    assert shlex.split(commands[1]) == [
        *("exec", "codex-pool", "batch", "tasks dir", "--scorer", "command:it's", "--retries", "1"),
        *("--shard", f"{index}/20", "-o", f"/shared/r/shard-{index}"),
    ]
    assert "codex-pool runs merge /shared/r/shard-1 /shared/r/shard-2" in found.output


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("slurm", "--shards", "2", "-o", "r", "d", "--shard", "1/2"), "--shard is set by the recipe"),
        (("slurm", "--shards", "2", "-o", "r", "d", "-o", "x"), "-o is set by the recipe"),
        (("slurm", "--shards", "2", "-o", "r", "d", "--fresh"), "--fresh cannot go into a recipe: a task that is"),
        (("slurm", "--shards", "2", "-o", "r", "d", "--detach"), "--detach cannot go into a recipe"),
        (("slurm", "--shards", "2", "-o", "r", "d", "--retires", "1"), "No such option '--retires'"),
        (("slurm", "--shards", "2", "-o", "r", "d", "--retries", "x"), "'x' is not a valid integer"),
        (("slurm", "--shards", "0", "-o", "r", "d"), "0 is not in the range"),
        (("slurm", "--shards", "2", "-o", "r", "-"), "DATASET is -"),
        (("slurm", "--shards", "2", "-o", "r\nx", "d"), "expected a path that can be printed"),
        (("slurm", "--shards", "2", "-o", "r", "--name", "a\n#SBATCH --x", "d"), "expected letters"),
        (("slurm", "--shards", "2", "-o", "r", "--time", "soon", "d"), "'soon'; expected minutes, H:MM:SS or D-HH"),
        (("slurm", "--shards", "2", "-o", "r", "--mem", "3", "d"), "No such option '--mem'"),
        ((*PODS, "-o", "/data/x", "d"), "'/data/x' is not below the mount of the claim, /runs"),
        ((*PODS, "--mount", "runs", "-o", "/runs/x", "d"), "expected an absolute path"),
        ((*PODS, "--name", "Monday", "-o", "/runs/x", "d"), "'Monday'; expected a name"),
        ((*PODS, "--memory", "lots", "-o", "/runs/x", "d"), "'lots'; expected a size such as 8Gi"),
    ],
)
def test_what_no_task_could_run_is_refused_by_name(words: tuple[str, ...], problem: str) -> None:
    found = recipe(*words)
    assert found.exit_code == 2 and problem in " ".join(found.output.split()), found.output
