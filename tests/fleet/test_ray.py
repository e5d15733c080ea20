"""A run on a Ray cluster whose nodes and whose own process are killed meanwhile, on the real codex."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.fleet, pytest.mark.real, pytest.mark.timeout(600)]

SHOW = Path(__file__).with_name("ray_show.py")
COMMANDS = Path(__file__).with_name("ray_commands_show.py")


def test_a_run_is_detached_stopped_and_submitted_as_a_job() -> None:
    done = subprocess.run(
        [sys.executable, str(COMMANDS)], capture_output=True, text=True, timeout=590, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["records"] == 24 and figures["launches"] == 4


def test_all_samples_are_recorded_once_whatever_is_killed() -> None:
    done = subprocess.run(
        [sys.executable, str(SHOW), "--samples", "60", "--kill-every", "20"],
        capture_output=True,
        text=True,
        timeout=590,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["records"] == 60 and figures["passed"] == 40 and figures["left"] == []
    assert figures["nodes_killed"] == 2 and figures["drivers_killed"] == 2
    assert figures["asked"] <= figures["attempts"] and figures["hosts"] >= 3
