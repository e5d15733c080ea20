"""Rows of SWE-bench as samples: the issue is the prompt, the repository at its base commit the workspace.

`write_tasks` makes a directory with `tasks.jsonl`, a dataset, and `check.py`, which its scorer runs if there is a
command for tests. Neither the fix nor the tests of a row are shown to the agent; the fix is in no file.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from codex_app_server._runtime.files import resolved, write_atomic

from . import swebench_check
from .fields import FIELDS
from .harbor_tasks import HarborOptions
from .row import DatasetRow
from .sample import DatasetError
from .sources import opened

TASKS, CHECK = "tasks.jsonl", "check.py"
# In the workspace, where the scorer puts it.
CHECK_IN_WORKSPACE = ".swebench/check.py"
SCORER = "resolved"
TIMEOUT_S = 1_800
WORKDIR = "/testbed"
PROMPT = """\
Resolve the issue below in the repository in your working directory. Change the code, not its tests: other tests than
those that you see decide whether the issue is resolved.

<issue>
{issue}
</issue>
"""
_TEXTS = ("instance_id", "repo", "base_commit", "problem_statement", "test_patch")
_TESTS = ("FAIL_TO_PASS", "PASS_TO_PASS")
# Further columns that scorers and reports may use.
_KEPT = ("repo", "version", "base_commit", "environment_setup_commit", "difficulty", "created_at")
_REPO = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """Options of a conversion. `repositories`: a directory with clones, None for GitHub.

    `test_command`: a shell command that runs tests, in which `{files}` stands for the files of the test patch; None
    makes samples without a scorer.
    """

    repositories: Path | None = None
    test_command: str | None = None
    images: bool = False
    """True if samples ask for a container of the image of their row."""


class _Wrong(ValueError):
    def __init__(self, column: str | None, problem: str) -> None:
        self.column = column
        super().__init__(problem)


def write_tasks(
    source: Path | str,
    directory: Path,
    conversion: Conversion,
    *,
    format: str | None = None,
    stdin: IO[bytes] | None = None,
) -> int:
    """Write the tasks of a dataset of SWE-bench; return how many.

    Raises DatasetError with all that is wrong, and OSError.
    """
    if conversion.images and "container" not in FIELDS:
        raise DatasetError(["--images: this codex-pool runs no containers for samples; expected a later one"])
    problems: list[str] = []
    written: list[bytes] = []
    names: set[str] = set()
    with ExitStack() as stack:
        for row in opened(source, format, stdin, stack, HarborOptions()).rows:
            try:
                sample = _sample(row, conversion)
            except _Wrong as error:
                problems.append(row.locate(str(error), error.column))
                continue
            if sample["id"] in names:
                problems.append(row.locate(f"{sample['id']!r} is there already; expected each once", "instance_id"))
            names.add(sample["id"])
            written.append(json.dumps(sample, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    if problems or not written:
        raise DatasetError(problems or [f"{source}: has no rows; expected some of SWE-bench"])
    directory.mkdir(parents=True, exist_ok=True)
    if conversion.test_command is not None:
        shutil.copyfile(str(swebench_check.__file__), directory / CHECK)
    write_atomic(directory / TASKS, b"".join(written))
    return len(written)


def _sample(row: DatasetRow, conversion: Conversion) -> dict[str, Any]:
    if row.problem is not None:
        raise _Wrong(None, row.problem)
    texts = {name: _text(row.value, name) for name in _TEXTS}
    tests = {name: _tests(row.value, name) for name in _TESTS}
    if not _REPO.fullmatch(texts["repo"]):
        raise _Wrong("repo", f"is {texts['repo']!r}; expected OWNER/NAME")
    metadata = {name: row.value[name] for name in _KEPT if row.value.get(name) is not None}
    sample: dict[str, Any] = {
        "id": texts["instance_id"],
        "prompt": PROMPT.format(issue=texts["problem_statement"].strip()),
        "workspace": {"git": _repository(texts["repo"], conversion.repositories), "commit": texts["base_commit"]},
        "sandbox": "workspace-write",
        "tags": [texts["repo"]],
        "metadata": metadata,
    }
    if conversion.test_command is not None:
        metadata |= {**tests, "test_patch": texts["test_patch"], "test_command": conversion.test_command}
        sample["scorers"] = [
            {
                "type": "command",
                "name": SCORER,
                "command": ["python3", CHECK_IN_WORKSPACE],
                "parse": "json",
                "timeout_s": TIMEOUT_S,
                "files": {CHECK_IN_WORKSPACE: CHECK},
            }
        ]
    if conversion.images:
        sample["container"] = {"image": image_of(row.value), "workdir": WORKDIR}
    return sample


def image_of(row: Mapping[str, Any]) -> str:
    """Return the image of an instance: that of its row, else the published one, by SWE-bench's rule for names."""
    named = row.get("image") or row.get("image_name")
    if isinstance(named, str) and named:
        return named
    return f"swebench/sweb.eval.x86_64.{row['instance_id'].lower().replace('__', '_1776_')}:latest"


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if isinstance(value, str) and (value.strip() or name == "test_patch"):
        return value
    raise _Wrong(
        name, f"is {'missing' if value is None else repr(value)}; expected a text, as rows of SWE-bench have it"
    )


def _tests(row: Mapping[str, Any], name: str) -> list[str]:
    """The names of tests: a list, or one as JSON, as the published files have it."""
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise _Wrong(name, f"is {value[:60]!r}; expected a list of names, or one as JSON") from None
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value
    raise _Wrong(name, f"is {value!r}; expected a list of names, or one as JSON")


def _repository(repo: str, directory: Path | None) -> str:
    if directory is None:
        return f"https://github.com/{repo}.git"
    places = list(_places(repo, directory))
    for place in places:
        if place.is_dir():
            return str(resolved(place))
    looked = ", ".join(map(str, places[:3]))
    raise _Wrong(
        "repo", f"{repo} has no clone (looked for {looked}); clone it there: git clone https://github.com/{repo}"
    )


def _places(repo: str, directory: Path) -> Iterator[Path]:
    owner, _, name = repo.partition("/")
    for ending in ("", ".git"):
        for place in (f"{owner}/{name}", f"{owner}__{name}", name):
            yield directory / f"{place}{ending}"
