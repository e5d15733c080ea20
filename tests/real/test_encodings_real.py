"""Directories, environments and terminals of any encoding work, or are refused by name before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import environment

from codex_app_server import AppServerConfig, Codex, InvalidInputError, StdioTransport
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool, connect

pytestmark = pytest.mark.real

SCRIPT = Path(sys.executable).with_name("codex-pool")
# As os.environ and os.listdir have them.
NAMES = {"spaces": "a  b", "letters": "ü日", "bytes": os.fsdecode(b"b\xff\xfe")}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TERMINALS = {
    "C": ASCII,
    "POSIX": {"LC_ALL": "POSIX"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1:strict", "PYTHONUTF8": "0"},
}


def asked(codex: Codex) -> str | None:
    return codex.thread_start().run("hello ü日").final_response


@pytest.mark.parametrize("through", ["client", "pool"])
@pytest.mark.parametrize("place", ["home", "cwd", "binary"])
@pytest.mark.parametrize("name", NAMES)
def test_any_directory(name: str, place: str, through: str, tmp_path: Path, model: LoopbackModel) -> None:
    odd = tmp_path / NAMES[name]
    odd.mkdir()
    where = {"home": tmp_path, "cwd": tmp_path, "binary": tmp_path} | {place: odd}
    home = write_loopback_home(where["home"] / "codex", model.base_url)
    binary = where["binary"] / "codex-link"
    binary.symlink_to(AppServerConfig().argv()[0])

    def run() -> str | None:
        config = AppServerConfig(cwd=where["cwd"], env={"CODEX_HOME": str(home)}, codex_bin=binary)
        if through == "client":
            with Codex(config) as codex:
                return asked(codex)
        with Pool(1, config) as pool, pool.connect() as codex:
            return asked(codex)

    if name == "bytes" and place != "binary":
        # Codex itself would start, and then not answer.
        with pytest.raises(InvalidInputError, match=r"'.*b\\udcff\\udcfe.*' is not UTF-8"):
            run()
    else:
        assert "hello ü日" in str(run())


@pytest.mark.parametrize("name", NAMES)
def test_any_directory_of_sockets(name: str, config: AppServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(os.environ["XDG_RUNTIME_DIR"]) / NAMES[name]
    base.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    with Pool(1, config) as pool, connect(pool.endpoint) as codex:
        assert asked(codex)


def test_a_thread_in_a_directory_that_is_not_utf8(config: AppServerConfig, tmp_path: Path) -> None:
    odd = tmp_path / NAMES["bytes"]
    odd.mkdir()
    with (
        Codex(config) as codex,
        pytest.raises(InvalidInputError, match=r"b\\udcff\\udcfe' has bytes that are not UTF-8"),
    ):
        codex.thread_start(cwd=str(odd))


@pytest.mark.parametrize("through", ["client", "pool"])
def test_variables_come_through_as_they_are(
    through: str, config: AppServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environb, b"ODD_OF_OURS", b"\xff\xfe")
    config.env["ODD_OF_CONFIG"] = os.fsdecode(b"\xfd ")
    if through == "client":
        transport = StdioTransport(config)
        with Codex(transport=transport):
            given = Path(f"/proc/{transport.pid}/environ").read_bytes().split(b"\0")
    else:
        with Pool(1, config) as pool, pool.connect() as codex:
            (worker,) = codex.client.request("pool/status")["workers"]
            given = Path(f"/proc/{worker['appServerPid']}/environ").read_bytes().split(b"\0")
    assert {b"ODD_OF_OURS=\xff\xfe", b"ODD_OF_CONFIG=\xfd "} <= set(given)


IN_ASCII = """
import os, sys
from codex_app_server import AppServerConfig, Codex
from codex_pool import Pool
assert sys.getfilesystemencoding() == "ascii", sys.getfilesystemencoding()
home, work = map(os.fsdecode, (os.environb[b"ODD_HOME"], os.environb[b"ODD_WORK"]))
config = AppServerConfig(cwd=work, env={"CODEX_HOME": home})
with Codex(config) as codex:
    assert codex.thread_start().run("hello").final_response
with Pool(1, config) as pool, pool.connect() as codex:
    assert codex.thread_start().run("hello").final_response
"""


def test_names_beyond_the_locale(tmp_path: Path, model: LoopbackModel) -> None:
    """A program in an ASCII locale has letters of file names as surrogates; the bytes are what counts."""
    home = write_loopback_home(tmp_path / "ü" / "home", model.base_url)
    environ = environment(None) | ASCII | {"ODD_HOME": str(home), "ODD_WORK": str(tmp_path / "ü")}
    done = subprocess.run([sys.executable, "-c", IN_ASCII], env=environ, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr


def test_a_pool_does_not_share_the_locale_of_its_agents(model: LoopbackModel, tmp_path: Path) -> None:
    home = write_loopback_home(tmp_path / "ü" / "home", model.base_url)
    config = AppServerConfig(cwd=tmp_path / "ü", env={"CODEX_HOME": str(home), **ASCII})
    with Pool(1, config) as pool, pool.connect() as codex:
        assert asked(codex)


@pytest.mark.parametrize("terminal", TERMINALS)
@pytest.mark.parametrize("source", ["argument", "stdin"])
def test_run_prints_on_any_terminal(source: str, terminal: str) -> None:
    prompt = "say ü日".encode()
    words, given = ([prompt], b"") if source == "argument" else (["-"], prompt)
    environ = environment(None) | TERMINALS[terminal]
    if terminal == "ascii":
        environ["PYTHONUTF8"] = "0"
    done = subprocess.run(
        [SCRIPT, "run", "--demo", *words], env=environ, input=given, capture_output=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = {
        "POSIX": ["say ü日".encode()],
        "latin-1": [b"say \xfc\\u65e5", b"say \xc3\xbc\xe6"],
    }.get(terminal, [rb"say \xfc\u65e5"])
    assert any(each in done.stdout for each in expected), done.stdout


@pytest.mark.parametrize("terminal", TERMINALS)
def test_every_verb_prints_on_any_terminal(terminal: str, tmp_path: Path) -> None:
    (tmp_path / "ü.jsonl").write_text('{"id": "ü", "prompt": "say ü日"}\n', encoding="utf-8")
    environ = environment(None) | TERMINALS[terminal]
    is_ascii = terminal == "C"
    data = "data.jsonl" if is_ascii else "ü.jsonl"
    (tmp_path / "ü.jsonl").replace(tmp_path / data)
    for words in (
        ["--help"],
        ["batch", "--help"],
        ["batch", data, "--demo", "--workers", "1", "-o", "out", "--json"],
        ["runs", "list", "."],
        ["runs", "show", "out"],
        ["runs", "tail", "out"],
        ["runs", "export", "out"],
        ["report", "out"],
    ):
        done = subprocess.run(
            [SCRIPT, *words], env=environ, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, timeout=50
        )
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), (words, done.stderr)


@pytest.mark.parametrize("words", [[b"bad \xff"], [b"-"]])
def test_a_prompt_that_is_not_text(words: list[bytes]) -> None:
    environ = environment(None) | {"LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [SCRIPT, "run", "--demo", *words], env=environ, input=b"bad \xff", capture_output=True, timeout=50, check=False
    )
    assert done.returncode == 2
    assert b"the prompt is not UTF-8" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["run directory", "dataset"])
def test_a_batch_with_a_path_that_is_not_utf8(what: str, tmp_path: Path) -> None:
    odd = tmp_path / NAMES["bytes"]
    odd.mkdir()
    data, out = (odd if what == "dataset" else tmp_path) / "d.jsonl", (tmp_path if what == "dataset" else odd) / "out"
    data.write_text('{"id": "a", "prompt": "hello"}\n')
    command = [SCRIPT, "batch", data, "--demo", "-o", out]
    done = subprocess.run(command, env=environment(None), capture_output=True, timeout=50, check=False)
    assert done.returncode == 2
    assert f"the path of the {what}, ".encode() in done.stderr and rb"\udcff" in done.stderr
    assert not out.exists()
