"""A row of SWE-bench over a repository of a few lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CODE = "def add(a, b):\n    return a - b\n\n\ndef same(a):\n    return a\n"
FIX = CODE.replace("a - b", "a + b")
BROKEN = FIX.replace("return a\n", "return None\n")
OLD_TEST = "from calc import same\n\n\ndef test_same():\n    assert same(1) == 1\n"
TEST = (
    "from calc import add, same\n\n\ndef test_same():\n    assert same(1) == 1\n\n\n"
    "def test_add():\n    assert add(2, 3) == 5\n"
)
TEST_PATCH = (
    "diff --git a/test_calc.py b/test_calc.py\n--- a/test_calc.py\n+++ b/test_calc.py\n@@ -1,5 +1,9 @@\n"
    "-from calc import same\n+from calc import add, same\n \n \n def test_same():\n     assert same(1) == 1\n"
    "+\n+\n+def test_add():\n+    assert add(2, 3) == 5\n"
)
PYTEST = f"{sys.executable} -m pytest -rA -p no:cacheprovider -c /dev/null --rootdir . {{files}}"
_SHORT = """
import test_calc
for name in dir(test_calc):
    if name.startswith("test_"):
        try:
            getattr(test_calc, name)()
            print("PASSED test_calc.py::" + name)
        except AssertionError:
            print("FAILED test_calc.py::" + name)
"""
# The same results in a fraction of the time.
SHORT = f"{sys.executable} -c '{_SHORT}'"


def make_repository(path: Path) -> str:
    """Make the repository; its commit."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "calc.py").write_text(CODE)
    (path / "test_calc.py").write_text(OLD_TEST)
    named = ["-c", "user.name=x", "-c", "user.email=x@y"]
    for command in (["init", "-q"], ["add", "calc.py", "test_calc.py"], [*named, "commit", "-qm", "Base"]):
        subprocess.run(["git", "-C", str(path), *command], check=True, timeout=30)
    done = subprocess.run(
        ["git", "-C", str(path), "rev-parse", "HEAD"], check=True, timeout=30, capture_output=True, text=True
    )
    return done.stdout.strip()


def row(commit: str) -> dict[str, Any]:
    """A row as the published files have it."""
    return {
        "instance_id": "owner__calc-1",
        "repo": "owner/calc",
        "base_commit": commit,
        "problem_statement": "add(2, 3) is -1; expected 5.",
        "hints_text": "",
        "created_at": "2026-01-01T00:00:00Z",
        "version": "1.0",
        "patch": "diff --git a/calc.py b/calc.py\n",
        "test_patch": TEST_PATCH,
        "FAIL_TO_PASS": json.dumps(["test_calc.py::test_add"]),
        "PASS_TO_PASS": json.dumps(["test_calc.py::test_same"]),
        "environment_setup_commit": commit,
    }
