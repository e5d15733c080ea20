"""A night in short: the shows in their small sizes. The full ones are run by hand, see shows/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SHOWS = Path(__file__).parent / "shows"
LIMIT_S = 280

pytestmark = [pytest.mark.real, pytest.mark.chaos, pytest.mark.timeout(300)]


SHOWN = ["kills", "resume", "threads", "memory", "servers", "slow_reader", "sub_agents", "tokens"]


@pytest.mark.parametrize("name", SHOWN)
def test_show(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SHOWS / f"{name}.py"), "--quick", "--out", str(tmp_path / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "report.json").exists()
