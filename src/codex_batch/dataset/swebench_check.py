"""Check a workspace as SWE-bench does: its tests in place, do the tests pass that have to?

A scorer runs this file alone in the workspace, with the sample as JSON on stdin. It restores the files of the test
patch as they were, applies the patch, and runs the command for tests, which must print results as `pytest -rA` does.
The last line that it prints is the score.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_RESULT = re.compile(r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (\S.*)")
_FILE = re.compile(r"^diff --git a/(.+?) b/(.+)$", re.MULTILINE)
_PASSED = ("PASSED", "XFAIL")
_SHOWN = 10


def files_of(patch: str) -> list[str]:
    """Return the files that a patch makes, changes or removes."""
    found = [name for pair in _FILE.findall(patch) for name in pair]
    return list(dict.fromkeys(found))


def results_of(output: str) -> dict[str, str]:
    """Return the result of each test by its name, and by what of it is before a space, as SWE-bench's lists have it.

    The last one counts: pytest's own summary comes after all that tests print.
    """
    found: dict[str, str] = {}
    for line in output.splitlines():
        match = _RESULT.match(line)
        if match:
            name = match[2].split(" - ")[0].strip()
            found[name] = found[name.split()[0]] = match[1]
    return found


def score(results: dict[str, str], to_pass: Sequence[str], to_stay: Sequence[str]) -> dict[str, Any]:
    """Return the score as the command scorer reads it: 1 if all tests of both lists have passed, else 0."""
    wrong = [name for name in (*to_pass, *to_stay) if results.get(name) not in _PASSED]
    words = [f"{name}: {results.get(name, 'no result')}" for name in wrong[:_SHOWN]]
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return {
        "value": float(not wrong),
        "passed": not wrong,
        "explanation": f"not passed: {'; '.join(words)}{more}" if wrong else "all tests have passed",
        "metadata": {
            "fail_to_pass": _share(results, to_pass),
            "pass_to_pass": _share(results, to_stay),
        },
    }


def _share(results: dict[str, str], names: Sequence[str]) -> str:
    return f"{sum(results.get(name) in _PASSED for name in names)}/{len(names)}"


def _git(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    # The repository of this directory, never one that it lies in.
    command = ["git", "-c", "core.hooksPath=/dev/null", "--git-dir=.git", "--work-tree=.", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, errors="replace", check=False)


def restore(names: Iterable[str]) -> None:
    """Restore files as they were before the agent came, which is the first commit; remove those that were not there."""
    git = Path(".git")
    first = _git("rev-list", "--max-parents=0", "HEAD").stdout.split()
    if not first or git.is_symlink() or not git.is_dir():
        fail("the workspace has no commit that its files can be restored from")
    for name in names:
        if _git("checkout", first[-1], "--", name).returncode:
            path = Path(name)
            if path.is_symlink() or path.is_file():
                path.unlink()


def fail(problem: str) -> None:
    """End without a score: that is no fault of the agent."""
    sys.exit(f"swebench: {problem}")


def main() -> None:
    metadata = json.load(sys.stdin)["metadata"]
    patch = metadata["test_patch"]
    names = files_of(patch)
    if patch.strip():
        restore(names)
        applied = _git("apply", "--whitespace=nowarn", "-", stdin=patch)
        if applied.returncode:
            fail(f"the test patch cannot be applied: {applied.stderr.strip()}")
    there = [name for name in names if Path(name).exists()]
    command = metadata["test_command"].replace("{files}", shlex.join(there))
    done = subprocess.run(
        command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    output = done.stdout.decode("utf-8", "replace")
    print(output)
    results = results_of(output)
    if not results:
        fail(f"`{command}` printed no results of tests (exit code {done.returncode}); expected those of pytest -rA")
    print(json.dumps(score(results, metadata["FAIL_TO_PASS"], metadata["PASS_TO_PASS"])))


if __name__ == "__main__":
    main()
