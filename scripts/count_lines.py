#!/usr/bin/env python3
"""Count hand-written lines of src/ at one commit, or compare two.

    python scripts/count_lines.py [COMMIT [COMMIT]]

Without a commit it counts the files of the working tree. What a program has written (`generated/`) is left out. Files
of `_sync/` and `_async/` that have the same name are twins: the longer one counts. Lines are counted as they are, and
without blank lines and comments.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
ENDINGS = (".py", ".js", ".css", ".html")


def files_at(commit: str | None) -> Iterator[tuple[PurePosixPath, str]]:
    """The hand-written files of src/ with their text; `commit` None is the working tree."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src"]
    if commit is not None:
        command = ["git", "ls-tree", "-r", "--name-only", commit, "src"]
    for name in git(*command[1:]).splitlines():
        path = PurePosixPath(name)
        if path.suffix not in ENDINGS or "generated" in path.parts:
            continue
        if commit is not None:
            yield path, git("show", f"{commit}:{name}")
        elif (ROOT / name).is_file():
            yield path, (ROOT / name).read_text(encoding="utf-8")


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, timeout=60)
    return done.stdout.decode()


def code_lines(path: PurePosixPath, text: str) -> int:
    """Lines that hold more than blanks and comments; docstrings count."""
    if path.suffix != ".py":
        return sum(1 for line in text.splitlines() if line.strip())
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)


def twin_of(path: PurePosixPath) -> PurePosixPath:
    """The name under which twins are counted."""
    return PurePosixPath(*("_async" if part == "_sync" else part for part in path.parts))


def count(commit: str | None) -> tuple[Counter[str], Counter[str]]:
    """Lines, and lines without blanks and comments, by package."""
    longest: dict[PurePosixPath, tuple[int, int]] = {}
    for path, text in files_at(commit):
        size = len(text.splitlines()), code_lines(path, text)
        name = twin_of(path)
        longest[name] = max(longest.get(name, (0, 0)), size)
    lines: Counter[str] = Counter()
    code: Counter[str] = Counter()
    for path, (all_lines, of_code) in longest.items():
        lines[path.parts[1]] += all_lines
        code[path.parts[1]] += of_code
    return lines, code


def main(commits: list[str]) -> None:
    if len(commits) > 2 or any(commit.startswith("-") for commit in commits):
        raise SystemExit(f"usage: {Path(__file__).name} [COMMIT [COMMIT]]; got {' '.join(commits)}")
    lines, code = count(commits[0] if commits else None)
    then_lines, then_code = count(commits[1]) if len(commits) == 2 else (lines, code)
    print(f"{'package':20} {'lines':>16} {'without blanks':>16}")
    for package in [*sorted({*lines, *then_lines}), "all"]:
        figures = [
            sum(counts.values()) if package == "all" else counts[package]
            for counts in (lines, then_lines, code, then_code)
        ]
        shown = figures[::2] if len(commits) < 2 else [f"{b:,} ({b - a:+,})" for a, b in (figures[:2], figures[2:])]
        print(f"{package:20} {shown[0]:>16} {shown[1]:>16}")


if __name__ == "__main__":
    main(sys.argv[1:])
