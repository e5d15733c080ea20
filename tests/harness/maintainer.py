"""Running the maintainer script's staging subcommands, and what their tests share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "update_sdk_artifacts.py"
TAGS = {
    "macosx_11_0_arm64",
    "macosx_10_9_x86_64",
    "musllinux_1_1_aarch64",
    "musllinux_1_1_x86_64",
    "win_arm64",
    "win_amd64",
}


def program(path: Path, text: str) -> Path:
    """A small executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def stage(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`update_sdk_artifacts.py ARGUMENTS`, to its end."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, cwd=cwd)


def staged(*arguments: str | Path) -> str:
    """Stages and returns what was said on stderr."""
    done = stage(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr


def refused(*arguments: str | Path) -> str:
    """Stages in vain; returns the one line that says why."""
    done = stage(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr.strip()


def files(directory: Path) -> set[str]:
    """All files below, relative, with slashes."""
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
