"""Every fenced command and program of README and docs, run as printed: on the real binary and a loopback model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from fences import NEEDS, PAGES, ROOT, Fence, fences
from programs import environment

from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home

RUNNER = ROOT / "tests" / "harness" / "run_fences.py"
LIMIT_S = 560
RUN = [page for page in PAGES if any(fence.language in ("sh", "python") for fence in fences(page))]
# Fences that are not run, by what they need.
NOT_RUN = {
    "an account": 1,
    "Docker": 2,
    "podman": 2,
    "a terminal": 3,
    "a cluster": 3,
    "an editor": 1,
    "Node.js": 2,
    "Ray": 2,
}
LANGUAGES = {"sh", "python", "json", "toml", "mermaid", ""}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout, with the virtual environment of the tests in .venv."""
    path = tmp_path / "checkout"
    left_out = shutil.ignore_patterns(".*", "out", "env", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, path, ignore=left_out)
    (path / ".venv").symlink_to(sys.prefix)
    for name in ("pyproject.toml", "constraints.txt"):
        # Older than what is installed: make installs nothing again.
        os.utime(path / name, (0, 0))
    return path


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 30)
@pytest.mark.parametrize("page", RUN)
def test_the_fences_of_a_page_run_as_printed(
    page: str, checkout: Path, tmp_path: Path, runtime_directory: Path
) -> None:
    home = tmp_path / "user"
    listed = tmp_path / "fences.json"
    run = [fence for fence in fences(page) if fence.language in ("sh", "python") and not fence.needs]
    listed.write_text(json.dumps([as_job(fence) for fence in run]))
    environ = {
        **environment(None),
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PIP_CACHE_DIR": os.path.expanduser("~/.cache/pip"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "PYTHONUNBUFFERED": "1",
    }
    with LoopbackModel() as model:
        write_loopback_home(home / ".codex", model.base_url)
        done = subprocess.run(
            [sys.executable, str(RUNNER), str(listed)],
            cwd=checkout,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
        )
    assert done.returncode == 0, done.stdout[-6000:]


def as_job(fence: Fence) -> dict[str, object]:
    """A fence in the form that the runner reads."""
    return {
        "page": fence.page,
        "line": fence.line,
        "language": fence.language,
        "text": fence.text,
        "background": fence.run == "background",
    }


def test_only_what_needs_more_than_a_test_can_have_is_not_run() -> None:
    found = [fence for page in PAGES for fence in fences(page)]
    assert {fence.run for fence in found if not fence.needs} <= {"", "background"}
    assert {fence.needs for fence in found} <= {"", *NEEDS}
    counted = {need: sum(fence.needs == need for fence in found) for need in NEEDS}
    assert {need: count for need, count in counted.items() if count} == NOT_RUN


def test_each_fence_has_a_language_and_data_is_what_it_says() -> None:
    for fence in (fence for page in PAGES for fence in fences(page)):
        assert fence.language in LANGUAGES, f"{fence.page}:{fence.line}: {fence.language}"
        if fence.language == "json":
            for line in fence.text.splitlines():
                json.loads(line)
        elif fence.language == "toml":
            msgspec.toml.decode(fence.text)


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "SECURITY.md"])
def test_links_lead_to_files_that_are_there(page: str) -> None:
    text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((?!\w+:)([^)#\s]+)", text)
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []
