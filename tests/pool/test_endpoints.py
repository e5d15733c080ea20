"""Directories that sockets lie in: made private, and otherwise left as they are."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from programs import codex_pool

from codex_app_server.testing import null_app_server
from codex_pool import Pool
from codex_pool.protocol import endpoints
from codex_pool.protocol.endpoints import EndpointError, check_private, make_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o1777)
    return path


def test_a_new_directory_is_private_and_what_is_above_it_is_not_touched(tmp_path: Path) -> None:
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o755)
    make_private(above / "new" / "er")
    assert mode(above / "new" / "er") == 0o700 and mode(above) == 0o755


@pytest.mark.parametrize("bits", [0o700, 0o500, 0o740, 0o744])
def test_a_private_directory_is_used_as_it_is(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "d"
    path.mkdir()
    path.chmod(bits)
    make_private(path)
    check_private(path)
    assert mode(path) == bits


@pytest.mark.parametrize("bits", [0o755, 0o711, 0o710, 0o720, 0o702, 0o1777, 0o2775])
def test_a_directory_of_others_is_refused_and_left_as_it_is(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "d"
    path.mkdir()
    path.chmod(bits)
    for check in (make_private, check_private):
        with pytest.raises(EndpointError, match=rf"{path} has mode {bits:04o}.*chmod 700 {path}"):
            check(path)
    assert mode(path) == bits


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(EndpointError, match="is not a directory"):
            make_private(tmp_path / name)
    with pytest.raises(EndpointError, match="cannot be made"):
        make_private(tmp_path / "file" / "below")


def test_a_runtime_directory_that_others_use_is_refused(runtime_directory: Path) -> None:
    path = runtime_directory / "codex-pool"
    path.mkdir()
    path.chmod(0o755)
    with pytest.raises(EndpointError, match="chmod 700"):
        endpoints.runtime_directory()
    assert mode(path) == 0o755


def test_a_pool_is_refused_before_anything_starts(shared: Path) -> None:
    with pytest.raises(EndpointError, match="0700"):
        Pool(1, null_app_server(), endpoint=f"ipc://{shared}/p.sock").start()
    assert list(shared.iterdir()) == [] and mode(shared) == 0o1777


@pytest.mark.parametrize("options", [[], ["--demo"], ["--listen", "tcp://127.0.0.1:7601"]])
def test_serve_is_refused_before_anything_is_made(shared: Path, tmp_path: Path, options: list[str]) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    done = codex_pool("serve", "--endpoint", f"ipc://{shared}/p.sock", *options, home=home)
    assert done.returncode == 2, done.stderr
    assert f"chmod 700 {shared}" in done.stderr and "Traceback" not in done.stderr
    assert list(shared.iterdir()) == [] and mode(shared) == 0o1777
    assert list(home.iterdir()) == [] and not Path(os.environ["XDG_STATE_HOME"]).exists()


@pytest.mark.real
def test_directories_that_a_user_names_keep_their_modes(tmp_path: Path, home: Path) -> None:
    """Directories of a run, of a home, and of the log; keys of others are refused, see the tests of keys."""
    out = tmp_path / "out"
    for path in (out, home):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "[[text hello]]"}\n')
    done = codex_pool("batch", str(data), "--home", str(home), "--workers", "1", "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert mode(out) == 0o755 and mode(home) == 0o755
