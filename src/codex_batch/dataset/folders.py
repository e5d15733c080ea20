"""A directory of task folders: one task a folder, with its workspace and what only its scorers may see.

    evals/
      dataset.toml        fields that every task has unless it sets its own (or dataset.json; may be missing)
      fix-rounding/       a task; the folder's name is its id
        task.toml         fields of a sample (or task.json; may be missing)
        prompt.md         the prompt; prompt-1.md, prompt-2.md, ... are turns of one thread
        workspace/        copied for each attempt: this the agent sees
        tests/, ...       anything else: stays here, for scorers

Relative paths begin at the task's folder. Folders whose name begins with `.` or `_` are none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli

from codex_app_server._runtime.files import read_text_file

from ..harbor.folder import INSTRUCTION, TASK
from .row import DatasetRow
from .sample import DatasetError

WORKSPACE = "workspace"
_TURN = re.compile(r"prompt-([0-9]+)\.md")
_NOT_OF_ALL = ("id", "prompt", "prompts")


class _Wrong(Exception):
    def __init__(self, where: str, problem: str) -> None:
        self.where = where
        super().__init__(problem)


def folders(directory: Path) -> Iterator[DatasetRow]:
    """The tasks of a directory by name. Raises DatasetError when what all tasks share cannot be read."""
    try:
        common, _, common_lines = _fields(directory, "dataset")
    except _Wrong as error:
        raise DatasetError([f"{error.where}: {error}"]) from None
    except OSError as error:
        raise _unreadable(directory, error) from None
    problems = [
        f"{common_lines[name]}: {name}: is of one task; expected it there" for name in _NOT_OF_ALL if name in common
    ]
    if problems:
        raise DatasetError(problems)
    try:
        found = sorted(directory.iterdir())
    except OSError as error:
        raise _unreadable(directory, error) from None
    for folder in found:
        if folder.is_dir() and not folder.name.startswith((".", "_")):
            yield _task(folder, common, common_lines)


def _unreadable(directory: Path, error: OSError) -> DatasetError:
    where = directory if error.filename is None else error.filename
    return DatasetError([f"{where}: cannot be read: {error.strerror}; expected task folders that this user can read"])


def _task(folder: Path, common: dict[str, Any], common_lines: dict[str, str]) -> DatasetRow:
    where = str(folder)
    if (folder / INSTRUCTION).is_file() and (folder / TASK).is_file():
        return DatasetRow(where, folder.name, {}, "is a task of Harbor; expected --format harbor for it", folder)
    try:
        own, where, lines = _fields(folder, "task")
        prompts = _prompts(folder)
    except _Wrong as error:
        return DatasetRow(error.where, folder.name, {}, str(error), folder)
    except OSError as error:
        return DatasetRow(where, folder.name, {}, f"cannot be read: {error}", folder)
    value = {**common, **own}
    for name, (content, written) in prompts.items():
        if name in own:
            return DatasetRow(
                where, folder.name, {}, f"{name}: stands here and in {written}; expected one of them", folder
            )
        value[name], lines[name] = content, written
    workspace = value.get("workspace")
    if (folder / WORKSPACE).is_dir():
        if workspace is None:
            value["workspace"] = {"template": WORKSPACE}
        elif isinstance(workspace, dict) and not {"template", "git"} & workspace.keys():
            value["workspace"] = {"template": WORKSPACE, **workspace}
    return DatasetRow(where, folder.name, value, directory=folder, wheres={**common_lines, **lines})


def _fields(folder: Path, name: str) -> tuple[dict[str, Any], str, dict[str, str]]:
    """Return the fields of NAME.toml or NAME.json, the name of the file, and the place of each field. Raises _Wrong."""
    toml, plain = folder / f"{name}.toml", folder / f"{name}.json"
    if toml.exists() and plain.exists():
        raise _Wrong(str(toml), f"stands beside {plain.name}; expected one of them")
    if toml.exists():
        value = _toml(toml)
        return value, str(toml), {field: f"{toml}:{_line(toml, field)}" for field in value}
    if plain.exists():
        value = _json(plain)
        return value, str(plain), {field: f"{plain}:{_line(plain, field)}" for field in value}
    return {}, str(folder), {}


def _toml(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = tomli.loads(read_text_file(path))
    except OSError as error:
        raise _Wrong(str(path), f"cannot be read: {error.strerror}; expected a file of TOML") from None
    except UnicodeDecodeError:
        raise _Wrong(str(path), "not UTF-8; expected TOML in UTF-8") from None
    except tomli.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise _Wrong(f"{path}:{line[1] if line else 1}", f"not TOML: {error}") from None
    return value


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text_file(path))
    except OSError as error:
        raise _Wrong(str(path), f"cannot be read: {error.strerror}; expected a file of JSON") from None
    except json.JSONDecodeError as error:
        raise _Wrong(f"{path}:{error.lineno}", f"not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise _Wrong(str(path), f"not readable: {error}; expected JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise _Wrong(f"{path}:1", "holds no JSON object; expected one")
    return value


def _line(path: Path, field: str) -> int:
    """The line at which a field seems to begin; 1 when it is written in another way."""
    name = re.escape(field)
    begins = re.compile(rf'\s*\[*\s*["\']?{name}["\']?\s*[\].=:]')
    lines = read_text_file(path).splitlines()
    return next((number for number, line in enumerate(lines, 1) if begins.match(line)), 1)


def _prompts(folder: Path) -> dict[str, tuple[Any, str]]:
    """`prompt` or `prompts` with the file it comes from, if there are files for it."""
    turns = {int(match[1]): path for path in folder.iterdir() if (match := _TURN.fullmatch(path.name))}
    single = folder / "prompt.md"
    if single.exists() and turns:
        raise _Wrong(str(single), f"stands beside {turns[min(turns)].name}; expected one of them")
    try:
        if single.exists():
            return {"prompt": (read_text_file(single), f"{single}:1")}
        if not turns:
            return {}
        if sorted(turns) != list(range(1, len(turns) + 1)):
            found = ", ".join(turns[number].name for number in sorted(turns))
            raise _Wrong(str(folder), f"has {found}; expected prompts numbered from 1 without a gap")
        texts = [read_text_file(turns[number]) for number in sorted(turns)]
        return {"prompts": (texts, f"{turns[1]}:1")}
    except UnicodeDecodeError:
        where = single if single.exists() else folder
        raise _Wrong(str(where), "not UTF-8; expected a prompt in UTF-8") from None
