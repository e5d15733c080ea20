"""Additions of the pool to the start of an app-server: the model cannot see them, and the user's own settings win."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from codex_app_server import AppServerConfig
from codex_app_server.config import find_codex
from codex_app_server.generated.routing import NOTIFICATIONS, REQUESTS
from codex_app_server.testing.loopback import LoopbackModel, server, write_loopback_home
from codex_pool import Pool
from codex_pool.lean_profile import LEAN_OVERRIDES, NEVER_WANTED, lean_argv

PROMPT = "What is there to see?"
_ID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def test_the_users_own_overrides_come_last_and_so_win() -> None:
    argv = lean_argv(AppServerConfig(config_overrides=("features.shell_snapshot=true",)))
    overrides = [argv[n + 1] for n, word in enumerate(argv) if word == "--config"]
    assert overrides == [*LEAN_OVERRIDES, "features.shell_snapshot=true"]


def test_a_whole_command_line_is_left_alone() -> None:
    assert lean_argv(AppServerConfig(launch_args_override=("x", "y"))) == ["x", "y"]


def test_what_nobody_can_want_comes_only_by_requests_that_a_pool_refuses() -> None:
    for notification, request in NEVER_WANTED.items():
        assert notification in NOTIFICATIONS
        assert REQUESTS[request].scope == "refused"


@pytest.mark.real
def test_the_model_is_asked_the_same_as_by_codex_exec(
    tmp_path: Path, work: Path, model: LoopbackModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools with descriptions and parameters, instructions, environment: all but what names program and thread."""
    bodies: list[bytes] = []
    read_request = server.read_request

    def recorded(body: bytes) -> Any:
        bodies.append(body)
        return read_request(body)

    monkeypatch.setattr(server, "read_request", recorded)
    home = tmp_path / "plain"
    # As codex exec decides where nothing is configured.
    write_loopback_home(home, model.base_url, sandbox_mode="read-only", approval_policy="never")
    text = (home / "config.toml").read_text()
    # As users have it: what the pool switches off is on.
    assert "shell_snapshot = false\n" in text
    (home / "config.toml").write_text(text.replace("shell_snapshot = false\n", ""))
    environ = {**os.environ, "CODEX_HOME": str(home)}
    environ.pop("RUST_LOG", None)
    command = [str(find_codex()), "exec", "--skip-git-repo-check", "--ephemeral", PROMPT]
    subprocess.run(
        command, cwd=work, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=50, check=True
    )
    config = AppServerConfig(cwd=work, env={"CODEX_HOME": str(home)})
    with Pool(1, config, log_file=tmp_path / "log") as pool, pool.connect() as codex:
        codex.thread_start(ephemeral=True).run(PROMPT)
    by_exec, by_pool = (json.loads(_ID.sub(b"ID", body)) for body in bodies)
    for body in (by_exec, by_pool):
        # Who asks: the program's name and version.
        assert body.pop("client_metadata")
    assert len(by_exec["tools"]) > 5 and len(json.dumps(by_exec["input"])) > 5000
    assert by_pool == by_exec
