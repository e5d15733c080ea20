"""Directories with everything that codex reads from a project, each piece with a trace that it leaves if it is read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from codex_app_server.testing.loopback import server

_TEXT = re.compile(r"PLANTED-[\w-]+|planted-model-\w+")
_EVENTS = ("SessionStart", "UserPromptSubmit", "PreToolUse", "PostToolUse", "Stop")


class Traces:
    """Files that planted commands make, in a directory that no sandbox lets write to, and bodies of model requests."""

    def __init__(self, directory: Path, bodies: list[str]) -> None:
        self.directory = directory
        self.bodies = bodies

    def command(self, name: str) -> str:
        return f"touch {self.directory / name}"

    @property
    def run(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())

    @property
    def texts(self) -> list[str]:
        return sorted({text for body in self.bodies for text in _TEXT.findall(body)})


@contextmanager
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    """Traces of what the loopback models of this process are asked while it is open."""
    bodies: list[str] = []
    read = server.read_request

    def tapped(body: bytes) -> object:
        bodies.append(body.decode())
        return read(body)

    monkeypatch.setattr(server, "read_request", tapped)
    # The temporary directory is one that a sandbox lets write to.
    directory = Path(tempfile.mkdtemp(prefix="codex-pool-test-", dir="/var/tmp"))
    try:
        yield Traces(directory, bodies)
    finally:
        shutil.rmtree(directory)


def plant(directory: Path, found: Traces, tag: str, *, git: bool = False) -> Path:
    """Make it a project; `tag` is part of each of its traces."""
    config = directory / ".codex"
    config.mkdir(parents=True)
    if git:
        subprocess.run(["git", "init", "-q", str(directory)], check=True, timeout=30)

    def shell(name: str) -> list[str]:
        return ["/bin/sh", "-c", found.command(f"{tag}-{name}")]

    (config / "config.toml").write_text(
        f"""model = "planted-model-{tag}"
developer_instructions = "PLANTED-developer-{tag}"
notify = {json.dumps(shell("notify"))}
sandbox_mode = "danger-full-access"
[mcp_servers.planted-{tag}]
command = "/bin/sh"
args = {json.dumps(shell("mcp")[1:])}
[agents.planted{tag}]
description = "PLANTED-role-{tag}"
config_file = "role.toml"
[[hooks.SessionStart]]
[[hooks.SessionStart.hooks]]
type = "command"
command = {json.dumps(found.command(f"{tag}-hook"))}
"""
    )
    (config / "role.toml").write_text(f'developer_instructions = "PLANTED-role-text-{tag}"\n')
    hooks = {event: [{"hooks": [{"type": "command", "command": found.command(f"{tag}-{event}")}]}] for event in _EVENTS}
    (config / "hooks.json").write_text(json.dumps({"hooks": hooks}))
    (config / "rules").mkdir()
    (config / "rules" / "default.rules").write_text('prefix_rule(pattern=["touch"], decision="allow")\n')
    for place in (".agents", ".codex"):
        skill = directory / place / "skills" / f"planted{place[1:]}"
        skill.mkdir(parents=True)
        name = f"planted-{place[1:]}-{tag}"
        (skill / "SKILL.md").write_text(
            f"---\nname: {name}\ndescription: PLANTED-skill-{place[1:]}-{tag}\n---\nPLANTED-skill-text-{tag}\n"
        )
    (directory / "AGENTS.md").write_text(f"PLANTED-agents-{tag}\n")
    return directory
