"""Runs programs and notebooks, each in a process forked from this one, which has loaded the SDK: most of their time.

    run_examples.py JOBS AT_ONCE

JOBS is a JSON list of objects: `path`, `cwd`, `environ`. In `cwd` the file `stdin` is what the program reads, `stdout`
and `stderr` get what it says, `code` its exit code.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from codex_app_server import AsyncCodex, Codex, operations

LOADED = (AsyncCodex, Codex)


def main() -> None:
    operations.load_types()
    jobs, at_once = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    running: dict[int, Path] = {}
    for job in jobs:
        if len(running) == at_once:
            wait(running)
        pid = os.fork()
        if pid == 0:
            return run(**job)
        running[pid] = Path(job["cwd"])
    while running:
        wait(running)


def wait(running: dict[int, Path]) -> None:
    pid, status = os.wait()
    (running.pop(pid) / "code").write_text(str(os.waitstatus_to_exitcode(status)))


def run(path: str, cwd: str, environ: dict[str, str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(fd, number)
        os.close(fd)
    sys.argv = [path]
    if path.endswith(".ipynb"):
        asyncio.run(run_cells(path))
    else:
        runpy.run_path(path, run_name="__main__")


async def run_cells(path: str) -> None:
    """The code cells as Jupyter runs them: in one namespace, on one running event loop."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(Path(path).read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            code = compile("".join(cell["source"]), f"<cell {number}>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, names)
            if inspect.isawaitable(result):
                await result


main()
