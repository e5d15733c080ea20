"""Runs the fenced commands and programs of a page in their order, as a reader would who types them.

    run_fences.py FENCES

FENCES is a JSON list of objects: `page`, `line`, `language`, `text`, `background`. Programs in Python share one
namespace, those with tests are run by pytest; commands are run by bash. One in the background stays until the page
ends; it has begun when it has printed its first line. Ends with exit code 1 at the first one that fails.
"""

from __future__ import annotations

import json
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LIMIT_S = 240.0
BEGUN_S = 60.0
ENDED_S = 30.0


def main() -> int:
    fences = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    background: list[subprocess.Popen[bytes]] = []
    try:
        for fence in fences:
            print(f"== {fence['page']}:{fence['line']}", flush=True)
            if fence["background"]:
                background.append(begin(fence["text"]))
            elif fence["language"] == "sh":
                subprocess.run(bash(fence["text"]), check=True, timeout=LIMIT_S)
            elif "def test_" in fence["text"]:
                Path("test_fence.py").write_text(fence["text"], encoding="utf-8")
                pytest = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", ".", "test_fence.py"]
                subprocess.run(pytest, check=True, timeout=LIMIT_S)
            else:
                # Line numbers are those of the page.
                code = "\n" * fence["line"] + fence["text"]
                exec(compile(code, fence["page"], "exec"), names)
    except subprocess.SubprocessError as error:
        print(error, flush=True)
        return 1
    finally:
        for process in background:
            process.send_signal(signal.SIGINT)
        for process in background:
            process.wait(ENDED_S)
    return 0


def bash(text: str) -> list[str]:
    return ["bash", "-euo", "pipefail", "-c", text]


def begin(text: str) -> subprocess.Popen[bytes]:
    """Start a command and wait for its first line."""
    process = subprocess.Popen(bash(f"exec {text}"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        deadline = time.monotonic() + BEGUN_S
        line = b""
        while not line.endswith(b"\n"):
            if not selector.select(deadline - time.monotonic()):
                raise subprocess.TimeoutExpired(text, BEGUN_S)
            if not (read := process.stdout.read1(4096)):
                raise subprocess.CalledProcessError(process.wait(ENDED_S), text)
            line += read
    print(line.decode(errors="replace"), flush=True)
    return process


if __name__ == "__main__":
    sys.exit(main())
