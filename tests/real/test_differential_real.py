"""Recorded sessions of clients against one real app-server and against a pool through `codex-pool bridge`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import differential
import pytest
import two_clients
from allowed_differences import ALLOWED
from app_server_socket import listening_app_server
from differential import Allowed, Difference, Group, Message, Script, Server
from programs import environment

from codex_app_server import AppServerConfig
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool

pytestmark = pytest.mark.real

SCRIPTS = sorted(path.stem for path in differential.DATA.glob("*.json"))


def _compared(script: Script, directory: Path) -> list[Difference]:
    with LoopbackModel() as model, ThreadPoolExecutor(2) as threads:
        real = threads.submit(_of_app_server, script, directory / "real", model.base_url)
        pool = threads.submit(_of_pool, script, directory / "pool", model.base_url)
        return differential.compare(real.result(), pool.result())


def _of_app_server(script: Script, directory: Path, base_url: str) -> dict[Group, list[Message]]:
    home, work = _places(directory, base_url)
    config = AppServerConfig(env={**environment(home), "RUST_LOG": "off"})
    return _replayed(script, config.argv(), home, work, config.environ())


def _of_pool(script: Script, directory: Path, base_url: str) -> dict[Group, list[Message]]:
    home, work = _places(directory, base_url)
    config = AppServerConfig(cwd=work, env={"CODEX_HOME": str(home), "RUST_LOG": "off"})
    with Pool(2, config, log_file=directory / "pool.log") as pool:
        command = [sys.executable, "-m", "codex_pool_cli", "bridge", "--connect", pool.endpoint]
        return _replayed(script, command, home, work, environment(home))


def _places(directory: Path, base_url: str) -> tuple[Path, Path]:
    """A home on the loopback model, on which nothing has run, and a directory to work in."""
    home, work = directory / "home", directory / "work"
    work.mkdir(parents=True)
    write_loopback_home(home, base_url)
    return home, work


def _replayed(
    script: Script, argv: list[str], home: Path, work: Path, env: dict[str, str]
) -> dict[Group, list[Message]]:
    server = Server(argv, home=home, work=work, env=env)
    try:
        received = list(differential.replay(script, server))
    finally:
        code = server.close()
    assert code == 0
    return differential.groups(script, received, server.places)


def _two_on_app_server(directory: Path, base_url: str) -> list[dict[Group, list[Message]]]:
    home, work = _places(directory, base_url)
    env = AppServerConfig(env={**environment(home), "RUST_LOG": "off"}).environ()
    with listening_app_server(home / "socket", env=env, cwd=work) as connect:
        clients = two_clients.play(connect(), connect(), work)
    return _groups_of(clients, home, work)


def _two_on_pool(directory: Path, base_url: str) -> list[dict[Group, list[Message]]]:
    home, work = _places(directory, base_url)
    config = AppServerConfig(cwd=work, env={"CODEX_HOME": str(home), "RUST_LOG": "off"})
    with Pool(2, config, log_file=directory / "pool.log") as pool, ExitStack() as stack:
        command = [sys.executable, "-m", "codex_pool_cli", "bridge", "--connect", pool.endpoint]
        peers = [two_clients.StdioPeer(command, cwd=work, env=environment(home)) for _ in range(2)]
        for peer in peers:
            stack.callback(peer.close)
        clients = two_clients.play(*peers, work)
    return _groups_of(clients, home, work)


def _groups_of(clients: tuple[two_clients.Client, ...], home: Path, work: Path) -> list[dict[Group, list[Message]]]:
    places = {"home": str(home), "work": str(work)}
    return [differential.groups(each.script, each.peer.messages, places) for each in clients]


def _unknown(name: str, differences: list[Difference], unused: set[Allowed]) -> list[str]:
    """The differences that are not in the list; those of the list that are there are no longer `unused`."""
    unknown: list[str] = []
    for difference in differences:
        known = [each for each in ALLOWED if each.covers(difference)]
        unused -= {*known}
        if not known:
            unknown.append(f"{name}: {difference}")
    return unknown


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_client_gets_from_a_pool_what_it_gets_from_an_app_server(tmp_path: Path) -> None:
    assert SCRIPTS
    unused = {*ALLOWED}
    unknown: list[str] = []
    with LoopbackModel() as model, ThreadPoolExecutor(2) as threads:
        # They wait most of the time: the scripts are replayed meanwhile.
        real = threads.submit(_two_on_app_server, tmp_path / "real", model.base_url)
        pool = threads.submit(_two_on_pool, tmp_path / "pool", model.base_url)
        for name in SCRIPTS:
            unknown += _unknown(name, _compared(Script.read(name), tmp_path / name), unused)
        for name, one, other in zip(("first of two", "second of two"), real.result(), pool.result(), strict=True):
            unknown += _unknown(name, differential.compare(one, other), unused)
    assert not unknown, "\n".join(unknown)
    assert not unused, f"these are no differences any more: {unused}"
