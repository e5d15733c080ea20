"""Programs for the published SDK, run with it and, the import alone changed, here: all have to print the same."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from login_issuer import login_port
from programs import environment

from codex_app_server import AppServerConfig
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool, default_endpoint

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(240)]

PROGRAMS = Path(__file__).parent / "published_programs"
PACKAGES = {
    "published": "openai_codex",
    "one app-server": "codex_app_server.compat.openai_codex",
    "a pool of two": "codex_pool.compat.openai_codex",
}
LIMIT_S = 100.0


class Ran(NamedTuple):
    code: int
    stdout: str
    stderr: str
    models: dict[str, list[str | None]]
    """By prompt which model was asked."""


def run(name: str, package: str, directory: Path) -> Ran:
    """A program, its import changed to `package`, in a home and with a model of its own."""
    text = re.sub(r"^(from|import) openai_codex\b", rf"\1 {package}", (PROGRAMS / name).read_text(), flags=re.MULTILINE)
    work = directory / "work"
    work.mkdir(parents=True)
    program = directory / name
    program.write_text(text)
    with ExitStack() as stack:
        model = stack.enter_context(LoopbackModel())
        home = write_loopback_home(directory / "home", model.base_url)
        if package.startswith("codex_pool"):
            config = AppServerConfig(env={"CODEX_HOME": str(home)}, cwd=work)
            stack.enter_context(Pool(workers=2, config=config, endpoint=default_endpoint(), log_file=directory / "log"))
        done = subprocess.run(
            [sys.executable, "-W", "error", program],
            cwd=work,
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        asked: dict[str, list[str | None]] = {}
        for request in model.requests:
            asked.setdefault(request.prompt, []).append(request.model)
    return Ran(done.returncode, done.stdout, done.stderr, asked)


def run_all(name: str, directory: Path) -> dict[str, Ran]:
    with ThreadPoolExecutor(len(PACKAGES)) as threads:
        jobs = [threads.submit(run, name, package, directory / mode) for mode, package in PACKAGES.items()]
        return dict(zip(PACKAGES, (job.result() for job in jobs), strict=True))


@pytest.mark.parametrize("name", ["calls.py", "acalls.py", "controls.py"])
def test_a_program_does_the_same(name: str, tmp_path: Path) -> None:
    ran = run_all(name, tmp_path)
    for mode, each in ran.items():
        assert each.code == 0, f"{mode}:\n{each.stdout}{each.stderr}"
    for mode in PACKAGES:
        assert ran[mode].stdout.splitlines() == ran["published"].stdout.splitlines(), mode
    assert ran["published"].stdout.count("\n") > 10
    if name == "controls.py":
        # Options of a turn that joined another are the thread's from then on.
        assert [each.models["Next."] for each in ran.values()] == [["next-model"]] * 3


@pytest.fixture
def browser_login() -> Iterator[None]:
    """The port that a log-in by browser listens on, for this test alone."""
    with login_port():
        yield


@pytest.mark.usefixtures("browser_login")
def test_a_log_in_is_given_up_in_the_same_way(tmp_path: Path) -> None:
    ran = {mode: run("login.py", package, tmp_path / mode) for mode, package in PACKAGES.items()}
    assert [each.code for each in ran.values()] == [0, 0, 0], [each.stderr for each in ran.values()]
    assert {each.stdout for each in ran.values()} == {ran["published"].stdout}
