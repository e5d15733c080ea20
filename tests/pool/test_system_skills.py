"""SystemSkills: records when codex's system skills are installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from codex_pool.supervisor.sqlite_homes import root_of
from codex_pool.supervisor.system_skills import MARKER, SystemSkills


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    root_of(home).mkdir(parents=True)
    binary = tmp_path / "codex"
    binary.write_bytes(b"one")
    binary.chmod(0o755)
    return home


def skills(home: Path) -> SystemSkills:
    return SystemSkills(str(root_of(home)), [str(home.parent / "codex"), "app-server"])


def mark(home: Path, text: str = "fingerprint") -> None:
    (home / MARKER).parent.mkdir(parents=True, exist_ok=True)
    (home / MARKER).write_text(text)


def test_they_are_installed_once_a_pool_has_started_with_them(home: Path) -> None:
    assert not skills(home).are_installed
    mark(home)
    assert not skills(home).are_installed, "another version may have written them"
    skills(home).note()
    assert skills(home).are_installed


def test_another_version_writes_its_own(home: Path) -> None:
    mark(home)
    skills(home).note()
    mark(home, "of another version, which was started on this home")
    assert not skills(home).are_installed
    mark(home)
    assert skills(home).are_installed
    (home.parent / "codex").write_bytes(b"another")
    assert not skills(home).are_installed


def test_a_codex_that_installs_none_does_not_slow_each_start(home: Path) -> None:
    skills(home).note()
    assert skills(home).are_installed


def test_a_binary_may_have_a_name_that_is_not_utf8(home: Path) -> None:
    binary = Path(os.fsdecode(os.fsencode(home.parent) + b"/codex-\xff"))
    os.rename(home.parent / "codex", binary)
    mark(home)
    found = SystemSkills(str(root_of(home)), [str(binary), "app-server"])
    found.note()
    assert found.are_installed


def test_what_cannot_be_read_or_written_is_no_error(home: Path) -> None:
    mark(home)
    (home / "codex-pool" / "system-skills.json").write_bytes(b"\xff{")
    assert not skills(home).are_installed
    os.unlink(home.parent / "codex")
    skills(home).note()
    assert not skills(home).are_installed
    (home / MARKER).unlink()
    (home / MARKER).mkdir()
    assert not skills(home).are_installed
