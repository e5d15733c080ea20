"""The command line without a pool: help, versions, and bad usage refused before anything starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from programs import codex_pool as command

import codex_pool
from codex_pool_cli import VERBS
from codex_pool_cli.verbs import verbs

SOURCE = str(Path(codex_pool.__file__).parent.parent)


def test_the_version_is_the_packages() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"codex-pool {codex_pool.__version__}")


def test_help_lists_every_verb_and_no_inner_one() -> None:
    help_text = command("--help").stdout
    listed = re.findall(r"^  ([a-z-]+)  ", help_text[help_text.index("Verbs:") :], re.MULTILINE)
    assert listed == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_states_its_defaults(verb: str) -> None:
    done = command(verb, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"Usage: codex-pool {verb} ")
    if verb in ("batch", "serve"):
        assert re.search(r"--workers INTEGER.*\[default:\s+2", done.stdout, re.DOTALL)
        assert re.search(r"--turns-per-worker INTEGER.*\[default:\s+8", done.stdout, re.DOTALL)


def test_help_loads_nothing_that_takes_time() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['codex-pool', '--help']\n"
        "before = set(sys.modules)\n"
        "from codex_pool_cli import main\n"
        "main()\n"
        "print(sorted(set(sys.modules) - before), file=sys.stderr)"
    )
    # Without site: what that loads is no part of it.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == command("--help").stdout
    heavy = {"click", "re", "typing", "pydantic", "asyncio", "zmq", "rich", "msgspec"}
    assert "'codex_pool_cli'" in done.stderr and not heavy & set(re.findall(r"'(\w+)'", done.stderr))


def test_help_is_the_same_whoever_prints_it() -> None:
    asked = command("--help").stdout
    assert CliRunner().invoke(verbs, ["--help"]).stdout == asked
    assert command("--help", "status").stdout == asked


def test_the_list_of_verbs_says_what_each_says_of_itself() -> None:
    context = click.Context(verbs)
    assert {name: verbs.get_command(context, name).short_help for name in VERBS} == VERBS


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_there(shell: str) -> None:
    code = "from codex_pool_cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": SOURCE, "_CODEX_POOL_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0 or "not supported" in done.stderr
    if done.returncode == 0:
        assert "_CODEX_POOL_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "no verb 'nonsense'; there are batch"),
        (["serve", "--workers", "0"], "--workers"),
        (["serve", "-c", "nonsense"], "'nonsense' is not of the form KEY=VALUE"),
        (["serve", "--endpoint", "tcp://127.0.0.1:1"], "is not of the form ipc:///absolute/path"),
        (["serve", "--endpoint", "ipc:///" + "x" * 120], "the limit is 107"),
        (["run", "hello", "--connect", "nonsense"], "is not of the form ipc:///absolute/path"),
        (["run", "hello", "--connect", "default", "--demo"], "--demo makes an own pool and cannot go with --connect"),
        (["run", ""], "the prompt is empty; give a text as PROMPT"),
        (["run"], "Missing argument 'PROMPT'"),
    ],
)
def test_bad_usage_is_refused_with_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = command(*arguments, home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["run", "hello", "--connect", "default"],
        ["upgrade", "--codex-bin", "/bin/codex", "--connect", "default"],
    ],
)
def test_no_daemon_says_where_and_how_to_start_one(arguments: list[str], runtime_directory: Path) -> None:
    done = command(*arguments)
    assert done.returncode == 3
    assert f"no pool at ipc://{runtime_directory}/codex-pool/default.sock" in done.stderr
    assert "start one with: codex-pool serve" in done.stderr


def test_a_missing_binary_is_named(tmp_path: Path) -> None:
    done = command("serve", "--codex-bin", str(tmp_path / "codex"), home=tmp_path)
    assert done.returncode == 3
    assert f"codex binary not found at {tmp_path}/codex" in done.stderr


def test_a_home_that_is_not_a_demos_is_left_alone() -> None:
    home = Path(os.environ["XDG_STATE_HOME"]) / "codex-pool" / "default.demo"
    home.mkdir(mode=0o700, parents=True)
    (home / "config.toml").write_text("model = 'mine'\n")
    done = command("serve", "--demo")
    assert done.returncode == 3
    assert f"{home}/config.toml exists" in done.stderr and "Traceback" not in done.stderr
    assert (home / "config.toml").read_text() == "model = 'mine'\n"


def test_what_is_asked_of_a_dataset_is_checked_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("question\nwhy\n")
    (tmp_path / "t.md").write_text("{{ question }} {{ colour }}")
    asked = ("batch", str(tmp_path / "d.csv"), "-o", str(tmp_path / "out"), "--prompt-template", str(tmp_path / "t.md"))
    done = command(*asked, "--filter", "level=1")
    filtered, undefined, count = done.stderr.strip().splitlines()
    assert "level is no field" in filtered
    assert "'colour' is undefined" in undefined and "there are id, question" in undefined
    assert count == "codex-pool: 2 problems; nothing was run"
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    done = command(*asked, "--seed", "3")
    assert done.returncode == 2 and "--seed is for --shuffle" in done.stderr


def test_a_workspace_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "p", "workspace": {"files": {"a": "b"}}}')
    key = tmp_path / "k.key"
    assert command("keys", "new", "k", "-o", str(key), "--keys", str(tmp_path / "keys")).returncode == 0
    asked = ("batch", str(tmp_path / "d.jsonl"), "-o", str(tmp_path / "out"))
    done = command(*asked, "--connect", "tcp://127.0.0.1:9", "--key", str(key))
    assert done.returncode == 2 and ":1: workspace: cannot be made where tcp://127.0.0.1:9 runs" in done.stderr
