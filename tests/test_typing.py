"""What a type checker makes of `client.request`."""

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


def mypy(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    snippet = tmp_path / "snippet.py"
    snippet.write_text(code, encoding="utf-8")
    flags = ["--strict", "--no-error-summary", "--python-version", "3.11", "--config-file", "", "--no-incremental"]
    command = [sys.executable, "-m", "mypy", *flags, str(snippet)]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.timeout(120)
def test_a_params_object_gives_the_type_of_its_result(tmp_path: Path) -> None:
    done = mypy(tmp_path, RIGHT)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.timeout(120)
def test_what_is_no_params_object_is_an_error(tmp_path: Path) -> None:
    done = mypy(tmp_path, WRONG)
    errors = [line.split(":")[1] for line in done.stdout.splitlines() if " error: " in line]
    assert errors == ["7", "8", "9"], done.stdout + done.stderr
