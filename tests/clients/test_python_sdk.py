"""The published Python SDK, openai-codex, unmodified: `codex_bin` names the codex that it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from codex_servers import CodexServer

PROGRAMS = Path(__file__).parent / "programs"


@pytest.mark.parametrize("program", ["sdk_sync.py", "sdk_async.py"])
def test_threads_streams_steers_and_interrupts(server: CodexServer, program: str) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / program), server.codex_bin],
        cwd=server.work,
        env=server.env,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "run: The answer is sextant, and it comes slowly.",
        "streamed: The answer is sextant, and it comes slowly. in more than 5 deltas",
        "steered: Steered all right.",
        "interrupted: interrupted",
        "resumed: The thread goes on. after 5 turns",
        "at once: 8 x The first answer.",
    ]
    assert server.kind == "real" or server.turns_completed == 12
