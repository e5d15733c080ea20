"""Paths that the system refuses to the command: one line that names the path and the remedy, and nothing is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import LIMIT_S, environment

pytestmark = pytest.mark.real


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with what nobody can read, and what nobody can write to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CODEX_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tasks.jsonl").write_text('{"id": "a", "prompt": "hello"}\n')
    closed, fixed = tmp_path / "closed", tmp_path / "fixed"
    for path in (closed, fixed):
        path.mkdir()
    shutil.copy("tasks.jsonl", closed)
    shutil.copy("tasks.jsonl", "closed.jsonl")
    for path, mode in ((closed, 0), (Path("closed.jsonl"), 0), (fixed, 0o555)):
        path.chmod(mode)
    yield tmp_path
    for path in (closed, fixed):
        path.chmod(0o700)


def refused(script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A shell script in which `codex-pool` is the command. Modes of files hold for it, also if this is root."""
    # Root is above them by capabilities, which it can do without.
    as_any_user = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    script = f'codex-pool() {{ "$PYTHON" -m codex_pool_cli "$@"; }}; {script}'
    return subprocess.run(
        [*as_any_user, "bash", "-c", script],
        env={**environment(None), "PYTHON": sys.executable, **environ},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


SLOW = "printf '#!/bin/sh\\nexec sleep 60' >slow; chmod +x slow; "
GONE = "mkdir gone; cd gone; rmdir ../gone; "
REMOVED = "codex-pool: the working directory has been removed; change to one that exists\n"
SOCKETS = "the directory for sockets, cannot be made: "


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("codex-pool batch closed.jsonl --demo -o out", 2, "closed.jsonl: cannot be read: Permission denied"),
        ("codex-pool batch closed --demo -o out", 2, "closed/dataset.toml: cannot be read: Permission denied"),
        ("codex-pool batch closed/tasks.jsonl --demo -o out", 2, "closed/tasks.jsonl: cannot be read: Permission"),
        ("codex-pool batch tasks.jsonl --demo -o closed/x", 2, "closed/x cannot be a run directory: Permission"),
        ("codex-pool batch tasks.jsonl --demo -o fixed/x", 2, "fixed/x cannot be a run directory: Permission"),
        ("ulimit -f 8; codex-pool batch tasks.jsonl --demo -o out", 2, "limit of the size of files (ulimit -f)"),
        ("codex-pool batch tasks.jsonl -o out --home closed", 3, "closed cannot be written: codex keeps threads and"),
        (GONE + "codex-pool batch tasks.jsonl --demo -o out", 2, REMOVED),
        (GONE + "codex-pool batch ../tasks.jsonl --demo -o ../out", 2, REMOVED),
        (GONE + "codex-pool runs list", 2, REMOVED),
        (GONE + "codex-pool keys new bob", 3, REMOVED),
        ("ulimit -v 200000; codex-pool run --demo hello", 3, "; limits of this shell: ulimit -v 200000"),
        (
            SLOW + "codex-pool run --demo --codex-bin ./slow hello",
            3,
            "the turn was not begun within 30 s: the app-server",
        ),
        ("XDG_RUNTIME_DIR=$PWD/closed codex-pool status", 2, SOCKETS + "Permission denied; set XDG_RUNTIME_DIR"),
        ("XDG_RUNTIME_DIR=$PWD/fixed codex-pool run hello", 2, SOCKETS + "Permission denied; set XDG_RUNTIME_DIR"),
        ("XDG_RUNTIME_DIR=$PWD/tasks.jsonl codex-pool status", 2, SOCKETS + "Not a directory; set XDG_RUNTIME_DIR"),
        ("XDG_RUNTIME_DIR=run codex-pool status", 2, "XDG_RUNTIME_DIR is 'run'; expected an absolute path"),
        ("HOME=$PWD/closed codex-pool account", 3, "closed/.codex: Permission denied; give this user the permission"),
        ("HOME=$PWD/closed codex-pool keys list", 3, "codex-pool/keys: Permission denied; give this user the perm"),
        ("HOME=$PWD/closed codex-pool serve", 3, "closed/.codex cannot be made: Permission denied; set CODEX_HOME"),
    ],
)
def test_what_is_refused_is_named(script: str, code: int, words: str, place: Path) -> None:
    done = refused(script)
    assert "Traceback" not in done.stderr and "[Errno" not in done.stderr, done.stderr
    assert words in done.stderr and done.returncode == code, done
    assert len(done.stderr.splitlines()) <= 4
