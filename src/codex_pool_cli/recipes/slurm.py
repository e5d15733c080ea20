"""A job array of Slurm: one task a shard. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from .shards import ShardedRun, commented

# Before the limit of time a run is asked to stop, as by Ctrl-C: then it needs some time to stop what runs.
STOP_S = 120

_HEAD = """\
A job array of Slurm: each task runs one of {shards} shards of a dataset. Save it as shards.sh on a file system that all
nodes have, and submit it where the dataset can be found, with codex-pool on PATH and codex logged in:

  sbatch shards.sh

A task that was stopped goes on with what it has when it is submitted again, also alone: sbatch --array=2 shards.sh

When all have ended, whatever has become of them, this merges them ($job is what sbatch --parsable shards.sh prints):

  sbatch --dependency=afterany:$job --wrap {merge}
"""


def script(run: ShardedRun, settings: Mapping[str, str | None]) -> str:
    """Return the batch script; `settings` are options of sbatch and their values, None for one that is left out."""
    named = {"array": f"1-{run.shards}", **settings, "signal": f"B:TERM@{STOP_S}", "open-mode": "append"}
    options = [f"#SBATCH --{name}={value}" for name, value in named.items() if value is not None]
    index = "${SLURM_ARRAY_TASK_ID}"
    lines = [
        "#!/bin/bash",
        commented(_HEAD.format(shards=run.shards, merge=shlex.quote(run.merge()))),
        "#",
        *options,
        "#SBATCH --requeue",
        "set -euo pipefail",
        "",
        "# The number of shards stands here: Slurm counts the tasks of one submission only. exec: for signals.",
        f"exec {run.batch(index)}",
    ]
    return "\n".join(lines) + "\n"
