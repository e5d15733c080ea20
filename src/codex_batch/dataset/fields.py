"""The fields of a sample: what each must be, in words and as a check, and the sample they make. Pure.

Only a prompt is required; an optional field may be null. Relative paths begin at the directory of the dataset.
`timeout_s` limits a turn in seconds, from when it is started.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from codex_app_server._runtime.files import resolved
from codex_app_server._runtime.text import cut
from codex_pool.sandbox_modes import SANDBOX_MODES

from ..container.spec import ContainerSpec
from .sample import Sample

MAX_DEPTH = 100

IsDirectory = Callable[[Path], bool]
_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}


def check(
    value: dict[str, Any], directory: Path, is_directory: IsDirectory, *, ignored: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """(field, problem) of all that is wrong with one sample's fields; those in `ignored` are checked elsewhere."""
    if "prompt" not in value and "prompts" not in value:
        yield "prompt", "is missing; expected a non-empty string"
    elif "prompt" in value and "prompts" in value:
        yield "prompts", "stands beside prompt; expected one of them"
    for field, content in value.items():
        expected = _EXPECTED.get(field)
        if expected is None:
            if field not in ignored:
                known = ", ".join(_EXPECTED)
                yield (
                    printable(field),
                    f"is not a field of a sample{similar(field, _EXPECTED)}; expected one of {known}; put your own "
                    "into metadata, or name columns with --field prompt=COLUMN",
                )
            continue
        if content is None and field not in ("prompt", "prompts"):
            continue
        wanted, is_right = expected
        if not is_right(content):
            yield field, f"is {describe(content)}; expected {wanted}"
            continue
        trouble = _encoding_problem(content)
        if trouble is not None:
            yield field, trouble
        elif field == "cwd" and not is_directory(directory / content):
            yield field, _no_directory(content, directory)
        elif field == "workspace":
            for part, problem in _check_workspace(content, directory, is_directory):
                yield f"workspace.{printable(part)}" if part else field, problem
        elif field == "limits":
            for part, problem in _check_limits(content):
                yield f"limits.{printable(part)}", problem
        elif field == "container":
            for part, problem in _check_container(content, directory, is_directory):
                yield f"container.{printable(part)}", problem
    if value.get("cwd") is not None and value.get("workspace") is not None:
        yield "workspace", "stands beside cwd; expected one of them: a sample works in its workspace"


def make(value: dict[str, Any], identity: str, directory: Path) -> Sample:
    """The sample of fields that `check` found nothing wrong with."""
    fields = {field: content for field, content in value.items() if content is not None and field in _EXPECTED}
    fields["prompts"] = (fields.pop("prompt"),) if "prompt" in fields else tuple(fields["prompts"])
    for name in ("tags", "scorers"):
        if name in fields:
            fields[name] = tuple(fields[name])
    if "cwd" in fields:
        fields["cwd"] = str(resolved(directory / fields["cwd"]))
    if "workspace" in fields:
        workspace = fields["workspace"] = {key: part for key, part in fields["workspace"].items() if part is not None}
        for name in ("template", "git"):
            if name in workspace and not _is_url(workspace[name]):
                workspace[name] = str(resolved(directory / workspace[name]))
    if "container" in fields:
        container = {key: part for key, part in fields["container"].items() if part is not None}
        if "build" in container:
            container["build"] = str(resolved(directory / container["build"]))
        fields["container"] = ContainerSpec(**container)
    return Sample(**{**fields, "id": identity, "directory": str(directory)})


def _no_directory(content: str, directory: Path) -> str:
    return f"{quote(content)} is not a directory (looked at {directory / content}); expected an existing one"


def _check_workspace(value: dict[str, Any], directory: Path, is_directory: IsDirectory) -> Iterator[tuple[str, str]]:
    for part, content in value.items():
        expected = _WORKSPACE.get(part)
        if expected is None:
            yield part, f"is not a field of a workspace; expected some of {', '.join(_WORKSPACE)}"
        elif content is not None and not expected[1](content):
            yield part, f"is {describe(content)}; expected {expected[0]}"
        elif part == "template" and content is not None and not is_directory(directory / content):
            yield part, _no_directory(content, directory)
    given = [part for part in ("template", "git", "files") if value.get(part) is not None]
    if not given:
        yield "", "says not what is in it; expected template (a directory), git and commit, or files"
    elif "template" in given and "git" in given:
        yield "git", "stands beside template; expected one of them"
    if (value.get("git") is None) != (value.get("commit") is None):
        missing, there = ("commit", "git") if value.get("commit") is None else ("git", "commit")
        yield missing, f"is missing beside {there}; expected both"


def _check_container(value: dict[str, Any], directory: Path, is_directory: IsDirectory) -> Iterator[tuple[str, str]]:
    for part, content in value.items():
        expected = _CONTAINER.get(part)
        if expected is None:
            yield part, f"is not a field of a container; expected some of {', '.join(_CONTAINER)}"
        elif content is None:
            continue
        elif not expected[1](content):
            yield part, f"is {describe(content)}; expected {expected[0]}"
        elif part == "build" and not is_directory(directory / content):
            yield part, _no_directory(content, directory)
    if value.get("image") is not None and value.get("build") is not None:
        yield "build", "stands beside image; expected one of them"


def _check_limits(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for part, content in value.items():
        if part not in _LIMITS:
            yield part, f"is not a limit; expected some of {', '.join(_LIMITS)}"
        elif content is not None and not _LIMITS[part][1](content):
            yield part, f"is {describe(content)}; expected {_LIMITS[part][0]}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**100


def identity_of(value: Any) -> str | None:
    """An id as text; None if it is none."""
    return str(value) if _is_whole(value) else value if isinstance(value, str) else None


def _is_path(value: Any) -> bool:
    return _is_text(value) and "\0" not in value


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(part) for part in value)


def _is_target(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(part, str) for part in value)
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _is_scorers(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(part) or isinstance(part, dict) for part in value)


def _is_url(value: str) -> bool:
    """Return True if git would take it for a remote repository: scheme://..., or host:path."""
    head = value.split("/", 1)[0]
    return "://" in value or (":" in head and not head.startswith("."))


def _is_files(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(_is_inside(name) and isinstance(text, str) for name, text in value.items())
    )


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return _is_path(name) and bool(parts) and not name.startswith("/") and not {"..", ".git"} & set(parts)


def _is_revision(value: Any) -> bool:
    return _is_path(value) and not value.startswith("-") and not any(part.isspace() for part in value)


def _is_word(value: Any) -> bool:
    """Return True for what may stand for itself in a command line."""
    return _is_path(value) and not value.startswith("-") and not any(part.isspace() for part in value)


def _is_place_inside(value: Any) -> bool:
    return _is_path(value) and value.startswith("/") and value.strip("/") != "" and ".." not in value.split("/")


def _is_environment(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _VARIABLE.fullmatch(name) and isinstance(text, str) and "\0" not in text for name, text in value.items()
    )


def _is_directory_text(value: Any) -> bool:
    return _is_path(value) and not value.startswith("-")


_SECONDS = ("a number of seconds above 0", _is_seconds)
_COUNT = ("a whole number above 0", _is_count)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_Expected = tuple[str, Callable[[Any], bool]]

# Field -> what is expected, in words and as a check.
_EXPECTED: dict[str, _Expected] = {
    "id": ("a non-empty string, or a whole number", lambda value: _is_text(value) or _is_whole(value)),
    "prompt": ("a non-empty string", _is_text),
    "prompts": ("a list of non-empty strings", lambda value: _is_texts(value) and bool(value)),
    "cwd": ("the path of a directory", _is_path),
    "model": ("a non-empty string", _is_text),
    "effort": ("a non-empty string", _is_text),
    "sandbox": (f"one of {', '.join(SANDBOX_MODES)}", SANDBOX_MODES.__contains__),
    "output_schema": ("an object, a JSON schema", _is_object),
    "timeout_s": _SECONDS,
    "metadata": ("an object", _is_object),
    "tags": ("a list of non-empty strings", _is_texts),
    "target": ("a string, a number or a list of strings", _is_target),
    "scorers": ("a list of scorers, each an object or its short form, a string", _is_scorers),
    "workspace": ("an object", _is_object),
    "limits": ("an object", _is_object),
    "container": ("an object", _is_object),
}
_WORKSPACE: dict[str, _Expected] = {
    "template": ("the path of a directory", _is_path),
    "git": ("the path or URL of a repository", _is_directory_text),
    "commit": ("a commit, tag or branch", _is_revision),
    "files": ("an object of file contents by relative path", _is_files),
    "setup": ("a shell command, or a list of them", lambda value: _is_text(value) or (_is_texts(value) and value)),
    "setup_timeout_s": _SECONDS,
}
_CONTAINER: dict[str, _Expected] = {
    "image": ("the name of an image", _is_word),
    "build": ("the path of a directory with a Dockerfile", _is_directory_text),
    "build_timeout_s": _SECONDS,
    "cpus": ("a number of processors above 0", _is_seconds),
    "memory_mb": _COUNT,
    "processes": _COUNT,
    "user": ("a user, or USER:GROUP", _is_word),
    "workdir": ("an absolute path inside, not /", _is_place_inside),
    "environment": ("an object of strings by the names of variables", _is_environment),
    "network": ("true or false", lambda value: isinstance(value, bool)),
}
_LIMITS: dict[str, _Expected] = {
    "wall_s": _SECONDS,
    "idle_s": _SECONDS,
    "tokens": _COUNT,
    "turns": _COUNT,
    "tool_calls": _COUNT,
}
FIELDS = _EXPECTED.keys()
# What a table has to write as JSON.
STRUCTURED = frozenset({"prompts", "output_schema", "metadata", "tags", "scorers", "workspace", "limits", "container"})


def describe(value: Any) -> str:
    if value is None:
        return "null"
    kind = _KINDS.get(type(value))
    return f"{quote(value)}, {kind}" if kind else f"{quote(str(value))}, of type {type(value).__name__}"


def quote(value: Any) -> str:
    try:
        text = printable(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        text = "..."
    return cut(text, 60)


def similar(name: str, known: Iterable[str]) -> str:
    """A question for what was probably meant, to stand behind a wrong name; "" if nothing is close to it."""
    found = difflib.get_close_matches(name[:100], list(known), 1, 0.7)
    return f" (did you mean {quote(found[0])}?)" if found else ""


def printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _encoding_problem(value: Any) -> str | None:
    """Return why an otherwise valid value cannot be stored and sent; None if it can."""
    stack = [(value, 1)]
    while stack:
        part, depth = stack.pop()
        if depth > MAX_DEPTH:
            return f"is nested more than {MAX_DEPTH} levels deep; expected something flatter"
        if isinstance(part, str):
            for character in part:
                if "\ud800" <= character <= "\udfff":
                    escape = f"\\u{ord(character):04x}"
                    return f"has a lone surrogate ({escape}), which UTF-8 cannot carry; expected Unicode text"
        elif isinstance(part, dict):
            stack += [(inner, depth + 1) for pair in part.items() for inner in pair]
        elif isinstance(part, list):
            stack += [(inner, depth + 1) for inner in part]
        elif isinstance(part, float) and not math.isfinite(part):
            return "has a number that no JSON reader can hold; expected finite numbers"
    return None
