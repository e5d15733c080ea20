"""Findings of a type checker about `client.request`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Needs mypy, one of the maintainer's tools.
pytestmark = pytest.mark.generate


RIGHT = """
from typing import Any, assert_type

from codex_app_server import AppServerClient, AsyncAppServerClient
from codex_app_server.generated import models


def sync(client: AppServerClient) -> None:
    assert_type(client.request(models.ThreadListParams(limit=5)), models.ThreadListResponse)
    assert_type(client.request(models.ConfigValueWriteParams(
        key_path="model", value="m", merge_strategy=models.MergeStrategy.replace_
    ), timeout_s=None), models.ConfigWriteResponse)
    assert_type(client.request(models.ApiKeyLoginAccountParams(api_key="k")), models.LoginAccountResponse)
    assert_type(client.request("thread/list", {"limit": 5}), Any)
    assert_type(client.request("configRequirements/read"), Any)


async def asynchronous(client: AsyncAppServerClient) -> None:
    assert_type(await client.request(models.ModelListParams()), models.ModelListResponse)
    assert_type(await client.request("thread/list", {"limit": 5}), Any)
"""
WRONG = """
from codex_app_server import AppServerClient
from codex_app_server.generated import models


def wrong(client: AppServerClient, turn: models.Turn) -> None:
    client.request(turn)
    client.request(models.ThreadListParams(), {"limit": 5})
    name: str = client.request(models.ThreadListParams())
"""


UNIONS = """
from typing import assert_type

from codex_app_server import Notification, TurnResult, UnknownNotification
from codex_app_server.generated import models


def items(result: TurnResult) -> list[str]:
    assert_type(result.items, list[models.ThreadItem])
    return [item.text for item in result.items if isinstance(item, models.AgentMessageThreadItem)]


def payload(notification: Notification) -> str | None:
    payload = notification.payload
    if isinstance(payload, models.AgentMessageDeltaNotification):
        return assert_type(payload.delta, str)
    if isinstance(payload, models.TurnCompletedNotification):
        return payload.turn.id
    if isinstance(payload, UnknownNotification):
        return assert_type(payload.problem, str | None)
    return None
"""
NO_SUCH = """
from codex_app_server import Notification, TurnResult


def wrong(result: TurnResult, notification: Notification) -> None:
    result.items[0].nothing
    notification.payload.nothing
"""


def mypy(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    snippet = tmp_path / "snippet.py"
    snippet.write_text(code, encoding="utf-8")
    flags = ["--strict", "--no-error-summary", "--python-version", "3.11", "--config-file", "", "--no-incremental"]
    command = [sys.executable, "-m", "mypy", *flags, str(snippet)]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.timeout(400)
def test_a_params_object_gives_the_type_of_its_result(tmp_path: Path) -> None:
    done = mypy(tmp_path, RIGHT)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.timeout(400)
def test_what_is_no_params_object_is_an_error(tmp_path: Path) -> None:
    done = mypy(tmp_path, WRONG)
    errors = [line.split(":")[1] for line in done.stdout.splitlines() if " error: " in line]
    assert errors == ["7", "8", "9"], done.stdout + done.stderr


@pytest.mark.timeout(400)
def test_items_and_payloads_are_unions(tmp_path: Path) -> None:
    done = mypy(tmp_path, UNIONS)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    done = mypy(tmp_path, NO_SUCH)
    assert done.returncode == 1 and {line.split(":")[1] for line in done.stdout.splitlines()} == {"6", "7"}
