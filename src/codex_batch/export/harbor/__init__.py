"""A run as a job of Harbor: a directory with the job's config, lock and result, and one directory for each sample.

    DIR/
      config.json, lock.json, result.json      the job
      fix-rounding__3f9a1c2/                   a trial: one epoch of one sample
        config.json, lock.json, result.json
        exception.txt                          if the attempt or its verifier failed
        agent/                                 notifications of the attempt, its last response, /logs/agent
        verifier/                              reward.txt or reward.json, test-stdout.txt, all of /logs/verifier
        artifacts/                             manifest.json, what the task keeps, diff.patch
        steps/NAME/                            agent/, verifier/, artifacts/ of each step of a task with steps

A job is of one configuration: of a run with variants each has a directory of its own.

jobs    the files of the job
trials  the files of a trial
values  what they hold                     pure
"""

from __future__ import annotations

from .jobs import write_harbor

__all__ = ["write_harbor"]
