"""Fixtures of all tests: the loopback model, a home that points to it, and the check that nothing is left behind."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import any_home
import pytest
from hypothesis import settings
from own_targets import OWN_TARGETS
from samples import Schema, flat_definitions

from codex_app_server import AppServerConfig
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool.runtime import processes

SETTLE_S = 5.0
# On a runner of GitHub the programs under test would write annotations and a summary of this step.
for _name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(_name, None)

# Nor do the options of this user's own daemon count.
for _name in [each for each in os.environ if each.startswith("CODEX_POOL_")]:
    del os.environ[_name]
os.environ["CODEX_POOL_CONFIG"] = "/dev/null"

# While modules are imported and items are made there is no garbage; to look for it takes a sixth of that time.
gc.disable()

# Modules whose real tests run batches, daemons and commands as users do, or wait for limits in time: `make test-slow`.
SLOW = re.compile(
    r"test_(batch_\w+|any_home|account_tokens|cells|cli_refused|cli_streams|policy|encodings|eval|examples|isolation|login"
    r"|proxies|signals|silence|staging_wheels|stalled|start_failures|successor|terminals|tree)(_real)?"
)

# Modules that take seconds because they start processes or wait for clocks. All other tests are quick (`make check`)
# that need neither the codex binary nor a tool and do not try many examples.
NOT_QUICK = re.compile(
    r"test_(account_process|async_client_behavior|batch_(locked|outdated|real|tools)|cells|cli|client_rpc_methods"
    r"|connections|constraints|cost_gate|debug_bundle|doctor|doors_tcp|fork|gateway_(listeners|process)|generated|logs|loopback|machine|mistakes"
    r"|moved|numerals|pool_client|public_api_runtime_behavior|reentrancy|record_hooks|report|rescore|scoring_(places|process)|shows"
    r"|staging|start_failures|targets|testing|unknown|user_files|worker_process)"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("real") and not item.get_closest_marker("smoke") and SLOW.fullmatch(item.path.stem):
            item.add_marker("slow")
        if any(map(item.get_closest_marker, OWN_TARGETS)):
            item.add_marker("own_target")
            continue
        if NOT_QUICK.fullmatch(item.path.stem) or any(map(item.get_closest_marker, ("real", "slow", "git"))):
            continue
        if not getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("quick")


def pytest_collection_finish() -> None:
    """Keep the test items out of all later garbage collections: each full one would walk millions of objects."""
    # What this pytest was given is not for those that tests start.
    os.environ.pop("PYTEST_ADDOPTS", None)
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The schema of the installed runtime, stable and experimental."""
    import codex_cli_bin

    codex = str(codex_cli_bin.bundled_codex_path())
    out = tmp_path_factory.mktemp("schema")
    for name, flags in (("stable", []), ("experimental", ["--experimental"])):
        command = [codex, "app-server", "generate-json-schema", *flags, "--out", str(out / name)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    return out / "stable", out / "experimental"


@pytest.fixture(scope="session")
def definitions(dumps: tuple[Path, Path]) -> Schema:
    """All definitions of the experimental dump, flat."""
    return flat_definitions(dumps[1])


# The machine is shared: how long one example takes says nothing.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")


@pytest.fixture
def model() -> Iterator[LoopbackModel]:
    """A loopback model; prompts script it by directives, tests look at what it was asked."""
    with LoopbackModel() as model:
        yield model


@pytest.fixture
def home(tmp_path: Path, model: LoopbackModel) -> Path:
    """A CODEX_HOME whose model is the loopback model."""
    path = tmp_path / "home"
    write_loopback_home(path, model.base_url)
    return path


@pytest.fixture(params=any_home.CONFIGS)
def each_home(request: pytest.FixtureRequest, tmp_path: Path, model: LoopbackModel) -> any_home.AnyHome:
    """Each home of the matrix in turn."""
    return any_home.make_any_home(request.param, tmp_path, model.base_url)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty directory for threads to work in."""
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture
def config(home: Path, work: Path) -> AppServerConfig:
    """The real app-server on the loopback model."""
    return AppServerConfig(
        cwd=work,
        env={"CODEX_HOME": str(home), "RUST_LOG": "error"},
        config_overrides=("features.shell_snapshot=false",),
    )


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of the test's own; when the test is over it holds no socket."""
    path = Path(os.path.realpath(f"/tmp/cp-{os.getpid()}-{time.monotonic_ns() % 10**9}"))
    path.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    # Made by the few tests that need it.
    monkeypatch.setenv("XDG_STATE_HOME", f"{tmp_path_factory.getbasetemp()}/state-{path.name}")
    yield path
    sockets = [str(found) for found in path.rglob("*") if found.is_socket()]
    for found in sorted(path.rglob("*"), reverse=True):
        found.rmdir() if found.is_dir() else found.unlink()
    path.rmdir()
    assert sockets == []


@pytest.fixture(autouse=True)
def nothing_left(runtime_directory: Path) -> Iterator[None]:
    """After each test no process, thread or descriptor is left that was not there before."""
    processes.become_subreaper()
    threads = set(threading.enumerate())
    below = _descendants()
    descriptors = _descriptors()
    yield
    deadline = time.monotonic() + SETTLE_S
    while True:
        left = {
            "processes": [_describe(p) for p in _descendants() if p not in below],
            "threads": [thread.name for thread in threading.enumerate() if thread not in threads],
            "descriptors": [f"{fd} {target}" for fd, target in _descriptors().items() if fd not in descriptors],
        }
        if not any(left.values()):
            return
        if time.monotonic() > deadline:
            processes.sweep(os.getpid(), spare=frozenset(process.pid for process in below))
            raise AssertionError(f"left behind: {left}")
        time.sleep(0.02)


def _descendants() -> set[processes.ProcessId]:
    """All processes below this one, which is a subreaper: without a child of its own there are none."""
    if not sys.platform.startswith("linux"):
        return set()
    with suppress(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        # Twice: a child that ends while it is read may hide another one. All of /proc costs many times as much.
        return {process.id for _ in range(2) for process in processes.tree(os.getpid())}
    return set()


def _descriptors() -> dict[int, str]:
    found: dict[int, str] = {}
    if not sys.platform.startswith("linux"):
        return found
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        # asyncio and pytest keep some of their own; what we open are pipes and sockets.
        if target.startswith(("pipe:", "socket:")):
            found[int(name)] = target
    return found


def _describe(process: processes.ProcessId) -> str:
    try:
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        command = "?"
    return f"{process.pid} {command[:200]}"
