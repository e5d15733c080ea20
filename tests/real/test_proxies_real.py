"""A model server on loopback is reached all the same with a proxy in the environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from programs import environment

from codex_app_server import AppServerConfig, Codex
from codex_app_server.config import without_proxy_on_loopback
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool

NAMES = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "WS_PROXY", "ws_proxy"]
# Nothing listens there: what is asked of it is refused.
NOWHERE = "http://127.0.0.1:9"
LOOPBACK = "localhost,127.0.0.1,127.0.0.0/8,::1"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", NAMES)
def test_loopback_is_exempt_from_each(name: str) -> None:
    environ = {"PATH": "/bin", name: NOWHERE}
    assert without_proxy_on_loopback(environ) == {**environ, "NO_PROXY": LOOPBACK, "no_proxy": LOOPBACK}
    assert without_proxy_on_loopback({name: ""}) == {name: ""}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"NO_PROXY": "corp.example"}, {"NO_PROXY": f"corp.example,{LOOPBACK}"}),
        ({"no_proxy": "corp.example, ::1"}, {"no_proxy": "corp.example,::1,localhost,127.0.0.1,127.0.0.0/8"}),
        ({"NO_PROXY": ""}, {"NO_PROXY": LOOPBACK}),
        ({"NO_PROXY": "", "no_proxy": "a"}, {"NO_PROXY": LOOPBACK, "no_proxy": f"a,{LOOPBACK}"}),
        ({"NO_PROXY": LOOPBACK}, {"NO_PROXY": LOOPBACK}),
    ],
)
def test_what_is_exempt_stays_so(given: dict[str, str], expected: dict[str, str]) -> None:
    proxy = {"HTTP_PROXY": NOWHERE}
    once = without_proxy_on_loopback({**proxy, **given})
    assert once == {**proxy, **expected}
    assert without_proxy_on_loopback(once) == once


@pytest.mark.parametrize("star", [{"NO_PROXY": "*"}, {"no_proxy": "*"}, {"NO_PROXY": "*", "no_proxy": "a"}])
def test_no_proxy_at_all_means_that(star: dict[str, str]) -> None:
    assert without_proxy_on_loopback({"HTTP_PROXY": NOWHERE, "all_proxy": NOWHERE, **star}) == star


def test_without_a_proxy_nothing_is_changed() -> None:
    for environ in ({}, {"NO_PROXY": "a"}, {"no_proxy": "*"}):
        assert without_proxy_on_loopback(environ) == environ


@pytest.mark.real
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.0.0.9"])
@pytest.mark.parametrize("names", [NAMES, ["HTTP_PROXY"], ["all_proxy"]], ids=["all", "HTTP_PROXY", "all_proxy"])
def test_a_turn(names: list[str], host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in names:
        monkeypatch.setenv(name, NOWHERE)
    with LoopbackModel(host=host) as model:
        home = write_loopback_home(tmp_path / "home", model.base_url)
        with Codex(AppServerConfig(env={"CODEX_HOME": str(home)}, cwd=tmp_path)) as codex:
            assert codex.thread_start().run("hello", timeout=30).final_response


@pytest.mark.real
@pytest.mark.parametrize("exempt", ["", "*", "corp.example"])
def test_a_turn_whatever_is_exempt(exempt: str, config: AppServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", NOWHERE)
    monkeypatch.setenv("NO_PROXY", exempt)
    with Codex(config) as codex:
        assert codex.thread_start().run("hello", timeout=30).final_response


@pytest.mark.real
@pytest.mark.parametrize("where", ["ours", "config"])
def test_a_turn_on_a_pool(where: str, config: AppServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "ours":
        for name in NAMES:
            monkeypatch.setenv(name, NOWHERE)
    else:
        config.env |= dict.fromkeys(NAMES, NOWHERE)
    with Pool(1, config) as pool, pool.connect() as codex:
        assert codex.thread_start().run("hello", timeout=30).final_response


@pytest.mark.real
@pytest.mark.parametrize("verb", ["run", "batch"])
def test_a_demo(verb: str, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"id": "a", "prompt": "hello"}\n')
    words = {"run": ["hello"], "batch": [str(tmp_path / "d.jsonl"), "--workers", "1", "-o", str(tmp_path / "out")]}[
        verb
    ]
    command = [Path(sys.executable).with_name("codex-pool"), verb, "--demo", *words]
    environ = environment(None) | dict.fromkeys(NAMES, NOWHERE)
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
