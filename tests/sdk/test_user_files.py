"""Files and directories that a user names: what is no file, or a loop of links, is one clear error at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from programs import codex_pool

from codex_app_server import HomeError
from codex_app_server._runtime.files import open_file, read_text_file, resolved
from codex_app_server.home import ensure_home
from codex_batch.dataset import DatasetError, load
from codex_batch.dataset.template import Template
from codex_pool.homes import make_home
from codex_pool.prices import PricesError, read_prices

LIMIT_S = 15.0


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A FIFO that nobody writes to: a program that opens it waits forever."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    """A link to itself."""
    path = tmp_path / "loop"
    path.symlink_to(path)
    return path


def test_a_regular_file_an_empty_device_and_an_open_descriptor_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a\r\nb\xf0\x9f\x90\x9a\n")
    assert read_text_file(tmp_path / "file") == "a\nb\U0001f41a\n"
    assert read_text_file(os.devnull) == ""
    reading, writing = os.pipe()
    try:
        os.write(writing, b"piped")
        os.close(writing)
        assert read_text_file(f"/dev/fd/{reading}") == "piped"
    finally:
        os.close(reading)


def test_what_is_no_file_is_refused_without_being_opened(tmp_path: Path, fifo: Path, loop: Path) -> None:
    (tmp_path / "link").symlink_to(fifo)
    for path, words in ((fifo, "Not a regular"), (tmp_path / "link", "Not a regular"), (tmp_path, "Is a directory")):
        with pytest.raises(OSError, match=words):
            open_file(path)
    for path in (loop, tmp_path / "none"):
        with pytest.raises(OSError):
            open_file(path)
    assert resolved(loop / "below") == loop / "below"


@pytest.mark.parametrize("name", ["config.toml", "auth.json"])
@pytest.mark.parametrize("kind", ["fifo", "link to a fifo", "loop"])
def test_a_home_whose_files_cannot_be_read_is_refused(name: str, kind: str, tmp_path: Path, fifo: Path) -> None:
    user = tmp_path / "user"
    user.mkdir()
    if kind == "fifo":
        os.mkfifo(user / name)
    else:
        (user / name).symlink_to(fifo if kind == "link to a fifo" else user / name)
    for work in (
        lambda: make_home(tmp_path / "own", user, follow=False),
        lambda: ensure_home({"CODEX_HOME": str(user)}),
    ):
        with pytest.raises(HomeError, match=f"{user / name} cannot be read: .*; it has to be a file that you can read"):
            work()
    assert not (tmp_path / "own").exists()


def test_files_of_a_dataset_that_are_none_are_said(tmp_path: Path, fifo: Path, loop: Path) -> None:
    task = tmp_path / "tasks" / "a"
    task.mkdir(parents=True)
    (tmp_path / "tasks" / "dataset.toml").symlink_to(fifo)
    for path in (fifo, loop, tmp_path / "tasks"):
        with pytest.raises(DatasetError, match="cannot be read: "):
            load(path)
    (tmp_path / "tasks" / "dataset.toml").unlink()
    for name in ("prompt.md", "task.toml", "task.json"):
        (task / name).symlink_to(fifo)
        with pytest.raises(DatasetError, match=r"cannot be read: .*Not a regular file"):
            load(tmp_path / "tasks")
        (task / name).unlink()
    with pytest.raises(DatasetError, match="cannot be read: Not a regular file"):
        Template.read(fifo)
    with pytest.raises(PricesError, match="Not a regular file; expected a TOML file of prices"):
        read_prices(fifo)


@pytest.mark.parametrize(
    "where", ["CODEX_HOME", "--home", "--output", "auth.json", "cwd", "DATASET", "score", "attach"]
)
def test_a_loop_of_links_is_one_error(where: str, tmp_path: Path, loop: Path) -> None:
    home, data = tmp_path / "home", tmp_path / "d.jsonl"
    home.mkdir()
    cwd = f', "cwd": "{loop}"' if where == "cwd" else ""
    data.write_text(f'{{"prompt": "hello"{cwd}}}\n')
    if where == "auth.json":
        (home / "auth.json").symlink_to("auth.json")
    arguments = ["batch", str(loop if where == "DATASET" else data), "-o", str(tmp_path / "out")]
    if where == "--home":
        arguments += ["--home", str(loop)]
    if where == "--output":
        arguments[-1] = str(loop)
    if where in ("score", "attach"):
        arguments = [where, str(loop)] + (["--scorer", "exact"] if where == "score" else [])
    done = codex_pool(*arguments, home=loop if where == "CODEX_HOME" else home, cwd=tmp_path, limit_s=LIMIT_S)
    assert done.returncode == (3 if where in ("CODEX_HOME", "auth.json") else 2), done.stderr
    assert "Traceback" not in done.stderr and str(home if where == "auth.json" else loop) in done.stderr, done.stderr


@pytest.mark.parametrize("verb", ["run", "serve", "batch"])
def test_no_verb_waits_for_a_fifo(verb: str, tmp_path: Path, fifo: Path) -> None:
    home, data = tmp_path / "home", tmp_path / "d.jsonl"
    home.mkdir()
    (home / "config.toml").symlink_to(fifo)
    data.write_text('{"prompt": "hello"}\n')
    arguments = {"run": ["hello"], "serve": ["--workers", "1"], "batch": [str(data), "-o", str(tmp_path / "out")]}[verb]
    done = codex_pool(verb, *arguments, home=home, cwd=tmp_path, limit_s=LIMIT_S)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("batch: ")]
    assert done.returncode == 3 and len(errors) == 1, done.stderr
    assert f"{home / 'config.toml'} cannot be read: Not a regular file" in done.stderr
