"""The marks of tests and the make targets that run them: nothing runs where what it needs was not installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from own_targets import OWN_TARGETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROGRAMS = ("Makefile", ".ci/run", "scripts/bare_steps.sh", "tests/chaos/__main__.py")


def test_each_mark_with_a_target_of_its_own_is_left_out_of_all_others() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    described = dict(mark.split(": ", 1) for mark in options["markers"])
    own = {
        name
        for name, words in described.items()
        if (target := re.search(r"\bmake (test-\w+|chaos)\)?$", words)) and target[1] not in ("test-slow", "test-bare")
    }
    assert own == {*OWN_TARGETS}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in own - {"chaos"}:
        assert re.search(rf'-m (\w+ |")?.*\b{name}\b', makefile), f"no target of the Makefile runs -m {name}"


def test_the_marks_to_leave_out_are_named_in_one_place() -> None:
    for program in PROGRAMS:
        for expression in re.findall(r"""-m "([^"]+)"|-m (\w+)""", (ROOT / program).read_text(encoding="utf-8")):
            words = " ".join(expression)
            left_out = {*re.findall(r"\w+", words.partition("not")[2])} & {*OWN_TARGETS}
            assert not left_out, f"{program}: -m {words!r}: expected 'not own_target'"


@pytest.mark.parametrize("name", ["clients", "containers", "fleet", "versions"])
def test_all_of_these_directories_is_left_out(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*command, "-m", "not own_target", f"tests/{name}"], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    # 5: none.
    assert found.returncode == 5, found.stdout + found.stderr
