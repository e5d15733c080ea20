"""Processes of the pool execute nothing of the directory that they are started in: think of a checkout."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Set as AbstractSet
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from programs import environment, started

from codex_app_server import AppServerConfig
from codex_pool import Pool
from codex_pool.demo import demo_home
from codex_pool.runtime import startup

pytestmark = pytest.mark.real

SCRIPT = Path(sys.executable).with_name("codex-pool")
PYTHONPATHS = ["unset", ":", ".", "::/nowhere:", "below:"]
MODULES = [
    "codex_pool.supervisor",
    "codex_pool.broker",
    "codex_pool.ingress",
    "codex_pool.worker",
    "codex_pool_cli",
    "codex_app_server.testing.loopback",
]


@functools.cache
def all_names() -> frozenset[str]:
    """The names of all modules that a program here can import."""
    found = (*sys.stdlib_module_names, *packages_distributions(), "sitecustomize", "usercustomize")
    return frozenset({name.split(".")[0] for name in found} | {"codex_pool", "codex_app_server", "codex_cli_bin"})


class Trap:
    """A directory with a module of every name, each of which says that it was executed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = path / "executed.log"

    def fill(self, names: AbstractSet[str]) -> None:
        for place in (self.path, self.path / "below"):
            place.mkdir(exist_ok=True)
            for name in names:
                text = (
                    f"open({str(self._log)!r}, 'a').write({name!r} + chr(10))\nraise ImportError('of the checkout')\n"
                )
                (place / f"{name}.py").write_text(text)

    @property
    def executed(self) -> list[str]:
        return sorted(set(self._log.read_text().split())) if self._log.exists() else []


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trap:
    path = tmp_path / "checkout"
    path.mkdir()
    monkeypatch.chdir(path)
    return Trap(path)


@pytest.fixture(params=PYTHONPATHS)
def pythonpath(request: pytest.FixtureRequest, trap: Trap, monkeypatch: pytest.MonkeyPatch) -> str:
    trap.fill(all_names())
    if request.param == "unset":
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", request.param)
    return str(request.param)


@pytest.mark.parametrize("module", MODULES)
def test_no_program_of_ours_does(module: str, pythonpath: str, trap: Trap) -> None:
    subprocess.run(startup.python(module), stdin=subprocess.DEVNULL, capture_output=True, timeout=50, check=False)
    assert trap.executed == []


def test_no_process_of_a_pool_does(config: AppServerConfig, pythonpath: str, trap: Trap, tmp_path: Path) -> None:
    """Not later either: a whole turn, so that what is loaded by need is loaded."""
    config.cwd = trap.path
    with Pool(1, config, log_file=tmp_path / "log") as pool, pool.connect() as codex:
        assert codex.thread_start().run("hello").final_response
    assert trap.executed == []


def test_the_model_of_a_demo_does_not(pythonpath: str, trap: Trap, tmp_path: Path) -> None:
    with demo_home(tmp_path / "home"):
        pass
    assert trap.executed == []


@pytest.mark.parametrize("verb", ["run", "batch", "detached", "serve"])
def test_no_verb_does(verb: str, trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap.fill(all_names())
    monkeypatch.delenv("PYTHONPATH", raising=False)
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_text('{"id": "a", "prompt": "hello"}\n')
    batch = ["batch", str(data), "--demo", "--workers", "1", "-o", str(out)]
    if verb == "serve":
        with started([str(SCRIPT), "serve", "--demo", "--workers", "1"]) as daemon:
            daemon.wait_for_line("ready on")
            assert daemon.end(signal.SIGTERM) == 0
        shutil.rmtree(Path(os.environ["XDG_RUNTIME_DIR"]) / "codex-pool")
    else:
        arguments = {"run": ["run", "--demo", "hello"], "batch": batch, "detached": [*batch, "--detach"]}[verb]
        done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, timeout=50, env=environment(None))
        assert done.returncode == 0, done.stderr
    if verb == "detached":
        assert subprocess.run([SCRIPT, "attach", str(out)], capture_output=True, timeout=50).returncode == 0
    assert trap.executed == []


@pytest.mark.parametrize("value", PYTHONPATHS[1:])
@pytest.mark.parametrize("command", [[SCRIPT], [sys.executable, "-m", "codex_pool_cli"]], ids=["script", "module"])
def test_the_command_itself_does_only_before_it_runs(
    value: str, command: list[str], trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules that Python, the script and the head of the package have loaded by then aside, nothing is."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import re, runpy, sys; print(*sys.modules)"], capture_output=True, text=True, timeout=50
    ).stdout.split()
    before = {"codex_pool", "__future__", "importlib", *(name.split(".")[0] for name in loaded)}
    trap.fill(all_names() - before - {"sitecustomize", "usercustomize"})
    monkeypatch.setenv("PYTHONPATH", value)
    for arguments in (["--version"], ["batch", "--help"], ["status", "--connect", "ipc:///nowhere/s.sock"]):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=50)
        assert trap.executed == [] and "Traceback" not in done.stderr, done.stderr


def test_variables_of_python_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables for compiled modules, for warnings, and for the user's own packages."""
    base = tmp_path / "base"
    (tmp_path / "shown.py").write_text(
        "import site, sys, warnings\n"
        "print(sys.dont_write_bytecode, sys.pycache_prefix, warnings.filters[0][:1], site.ENABLE_USER_SITE)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONUSERBASE", str(base))
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONWARNINGS"):
        monkeypatch.delenv(name, raising=False)
    names = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(base), "PYTHONWARNINGS": "error"}
    for environ in ({}, names, {**names, "PYTHONPYCACHEPREFIX": "relative"}):
        command = startup.python("shown")
        done = subprocess.run(
            command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=50, check=True
        )
        prefix = environ.get("PYTHONPYCACHEPREFIX")
        expected = f"{bool(environ)} {prefix if prefix == str(base) else None}"
        assert done.stdout.startswith(f"{expected} ") and done.stdout.endswith(" False\n"), done.stdout
        assert ("('error',)" in done.stdout) == bool(environ), done.stdout


def test_packages_of_the_user_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a virtual environment, .pth files included, as editable installs are; unless switched off."""
    base = tmp_path / "base"
    (tmp_path / "editable").mkdir()
    (tmp_path / "editable" / "shown.py").write_text("import sys; print(sys.argv[1:])\n")
    interpreter = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    monkeypatch.setenv("PYTHONUSERBASE", str(base))
    found = subprocess.run(
        [interpreter, "-c", "import site; print(site.getusersitepackages())"],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    packages = Path(found.stdout.strip())
    packages.mkdir(parents=True)
    (packages / "editable.pth").write_text(f"{tmp_path / 'editable'}\n")
    command = [str(interpreter), *startup.python("shown", "a")[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout == "['a']\n"
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and "No module named" in done.stderr


def test_what_the_environment_names_is_found(tmp_path: Path, trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute entries of PYTHONPATH hold, with their sitecustomize, and also when one is the working directory."""
    trap.fill({"random"})
    named = tmp_path / "named"
    named.mkdir()
    (named / "sitecustomize.py").write_text("import sys; sys.customized = True\n")
    (named / "shown.py").write_text(
        "import sys\nif __name__ == '__main__': print(sys.argv[1:], sys.customized, sys.path[:2], sys.prefix)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{named}::below:{trap.path}")
    command = startup.python("shown", "a", "-b")
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout == f"{['a', '-b']} True {[str(named), str(trap.path)]} {sys.prefix}\n"
    command = startup.python("random")
    subprocess.run(command, capture_output=True, timeout=50, check=False)
    assert trap.executed == ["random"]


def test_a_relative_place_of_ours_is_enough(tmp_path: Path) -> None:
    """Run from a source tree with PYTHONPATH=src, the children find the package."""
    source = Path(startup.__file__).parents[2]
    child = (
        "import subprocess; from codex_pool.runtime import startup; "
        "subprocess.run(startup.python('codex_pool_cli', '--help'))"
    )
    environ = {**os.environ, "PYTHONPATH": source.name}
    command = [sys.executable, "-c", child]
    done = subprocess.run(command, cwd=source.parent, env=environ, capture_output=True, text=True, timeout=50)
    assert done.stdout.startswith("Usage: codex-pool")


def test_the_environment_of_agents_says_nothing_of_it(config: AppServerConfig) -> None:
    with Pool(1, config) as pool, pool.connect() as codex:
        (worker,) = codex.client.request("pool/status")["workers"]
        environ = Path(f"/proc/{worker['appServerPid']}/environ").read_bytes().split(b"\0")
    given = {word.split(b"=")[0].decode() for word in environ if word.startswith(b"PYTHON")}
    assert given == {name for name in os.environ if name.startswith("PYTHON")}
