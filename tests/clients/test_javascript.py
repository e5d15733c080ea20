"""The JavaScript client of examples/clients, over a WebSocket and over stdio."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from codex_servers import CodexServer
from conftest import NODE_MODULES

EXAMPLE = Path(__file__).parents[2] / "examples" / "clients" / "javascript"


@pytest.mark.parametrize("over", ["websocket", "stdio"])
def test_asks_streams_and_goes_on_with_a_thread(server: CodexServer, tmp_path: Path, over: str) -> None:
    place = shutil.copytree(EXAMPLE, tmp_path / "javascript", ignore=shutil.ignore_patterns("node_modules"))
    # As `npm install` does there.
    (place / "node_modules").symlink_to(NODE_MODULES)
    way = ["--connect", server.url] if over == "websocket" else ["--command", f"{server.codex_bin} app-server"]

    def ask(*arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["node", "ask.mjs", *way, "--directory", str(server.work), *arguments],
            cwd=place,
            env=server.env,
            input=answer,
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = ask("Answer in pieces.")
    assert (done.returncode, done.stdout) == (0, "The answer is sextant, and it comes slowly.\n"), done.stderr
    thread_id = re.search(r"thread (\S+)", done.stderr)[1]  # type: ignore[index]

    done = ask("--thread", thread_id, "Now go on.")
    assert (done.returncode, done.stdout) == (0, "The thread goes on.\n"), done.stderr
    assert server.asked("Now go on.").user_texts[-2:] == ("Answer in pieces.", "Now go on.")

    done = ask("--thread", thread_id, "Write a file.", answer="y\n")
    assert (done.returncode, done.stdout) == (0, "It is done.\n"), done.stderr
    assert "Run /bin/bash" in done.stderr and (server.work / "by-codex").read_text() == "done\n"
    assert server.kind == "real" or server.turns_completed == 3
