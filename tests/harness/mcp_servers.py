"""A stdio MCP server without tools for the tests: its configuration, and the processes that run it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

SERVER = """\
import json, sys
for raw in sys.stdin:
    message = json.loads(raw)
    result = {"tools": []}
    if message.get("method") == "initialize":
        result = {
            "protocolVersion": message["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "test", "version": "1"},
        }
    if message.get("id") is not None:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


def mcp_config(directory: Path, *launcher: str, names: tuple[str, ...] = ("test",)) -> str:
    """Lines for config.toml that give each thread these servers; the program is written into `directory`.

    `launcher` is a command that runs its arguments as a command, the server's.
    """
    program = directory / "mcp-server.py"
    program.write_text(SERVER)
    command, *arguments = *launcher, sys.executable, str(program)
    # JSON strings are TOML strings too.
    lines = (
        f"\n[mcp_servers.{name}]\ncommand = {json.dumps(command)}\nargs = {json.dumps(arguments)}" for name in names
    )
    return "\n".join(lines) + "\n"


def server_pids(directory: Path) -> list[int]:
    """Pids of the processes that run the server in this directory, launchers included."""
    program = os.fsencode(directory / "mcp-server.py")
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if program in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
    return found
