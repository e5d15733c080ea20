"""A dataset: JSON lines, one sample each. Pure: bytes in, samples out, or everything that is wrong with them.

    {"prompt": "..."}
    {"id": "a", "prompt": "...", "cwd": "repo", "model": "...", "effort": "low", "sandbox": "workspace-write",
     "output_schema": {...}, "timeout_s": 600, "metadata": {...}}

Only `prompt` is required; an optional field may be null. Blank lines are skipped. `id` is the line's number unless
given. `cwd` is relative to the dataset's directory. `timeout_s` limits a turn in seconds, from when it is started.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_DEPTH = 100
SANDBOXES = ("read-only", "workspace-write", "danger-full-access")

_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}


class DatasetError(ValueError):
    """A dataset that cannot be run; `problems` holds everything that is wrong, each as `file:line: field: ...`."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt of a batch. `cwd` is absolute; `timeout_s` in seconds; None is what codex's configuration says."""

    id: str
    prompt: str
    cwd: str | None = None
    model: str | None = None
    effort: str | None = None
    sandbox: str | None = None
    output_schema: dict[str, Any] | None = None
    timeout_s: float | None = None
    metadata: dict[str, Any] | None = None

    @property
    def digest(self) -> str:
        """Of everything that the answer depends on: two samples with one digest ask the same."""
        asked = [self.prompt, self.cwd, self.model, self.effort, self.sandbox, self.output_schema]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def parse(
    data: bytes, name: str, directory: Path, *, is_directory: Callable[[Path], bool] = Path.is_dir
) -> list[Sample]:
    """The samples of a dataset; `name` is what messages call it, `directory` where a relative `cwd` begins.

    Raises DatasetError with all problems at once.
    """
    samples: list[Sample] = []
    problems: list[str] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = _decode(line)
        except ValueError as error:
            problems.append(f"{name}:{number}: {error}")
            continue
        if not isinstance(value, dict):
            problems.append(f"{name}:{number}: the line is {_describe(value)}; expected a JSON object")
            continue
        wrong = [f"{name}:{number}: {field}: {problem}" for field, problem in _check(value, directory, is_directory)]
        identity = value.get("id")
        if not isinstance(identity, str):
            identity = str(number)
        if identity in line_of:
            wrong.append(
                f"{name}:{number}: id: {_quote(identity)} is already the id of line {line_of[identity]}; "
                "expected one of its own"
            )
        line_of.setdefault(identity, number)
        if wrong:
            problems += wrong
        else:
            samples.append(_sample(value, identity, directory))
    if not line_of and not problems:
        problems.append(f"{name}: the dataset is empty; expected JSON objects, one a line, with at least a prompt")
    if problems:
        raise DatasetError(problems)
    return samples


def read(path: Path) -> list[Sample]:
    """The samples of a file. Raises DatasetError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DatasetError([f"{path}: no such file; expected a dataset of JSON lines"]) from None
    except OSError as error:
        raise DatasetError([f"{path}: cannot be read: {error.strerror}; expected a dataset of JSON lines"]) from None
    return parse(data, str(path), path.parent)


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1} of the line; expected JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON: {error.msg} at column {error.colno}; expected one JSON object on the line"
        ) from None
    except RecursionError:
        raise ValueError("not readable: nested too deeply; expected a JSON object of ordinary depth") from None
    except ValueError as error:
        raise ValueError(f"not readable: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; expected a number")


def _check(value: dict[str, Any], directory: Path, is_directory: Callable[[Path], bool]) -> Iterator[tuple[str, str]]:
    """(field, problem) of all that is wrong with one line."""
    if "prompt" not in value:
        yield "prompt", "is missing; expected a non-empty string"
    for field, content in value.items():
        expected = _EXPECTED.get(field)
        if expected is None:
            known = ", ".join(_EXPECTED)
            yield _printable(field), f"is not a field of a sample; expected one of {known}; put your own into metadata"
            continue
        if content is None and field != "prompt":
            continue
        wanted, is_right = expected
        if not is_right(content):
            yield field, f"is {_describe(content)}; expected {wanted}"
            continue
        trouble = _trouble(content)
        if trouble is not None:
            yield field, trouble
        elif field == "cwd" and not is_directory(directory / content):
            yield (
                field,
                f"{_quote(content)} is not a directory (looked at {directory / content}); expected an existing one",
            )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_path(value: Any) -> bool:
    return _is_text(value) and "\0" not in value


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


# Field -> what is expected, in words and as a check.
_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "id": ("a non-empty string", _is_text),
    "prompt": ("a non-empty string", _is_text),
    "cwd": ("the path of a directory", _is_path),
    "model": ("a non-empty string", _is_text),
    "effort": ("a non-empty string", _is_text),
    "sandbox": (f"one of {', '.join(SANDBOXES)}", SANDBOXES.__contains__),
    "output_schema": ("an object, a JSON schema", _is_object),
    "timeout_s": ("a number of seconds above 0", _is_seconds),
    "metadata": ("an object", _is_object),
}


def _sample(value: dict[str, Any], identity: str, directory: Path) -> Sample:
    fields = {field: content for field, content in value.items() if content is not None}
    if "cwd" in fields:
        fields["cwd"] = str((directory / fields["cwd"]).resolve())
    return Sample(**{**fields, "id": identity})


def _describe(value: Any) -> str:
    if value is None:
        return "null"
    return f"{_quote(value)}, {_KINDS[type(value)]}"


def _quote(value: Any) -> str:
    try:
        text = _printable(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        text = "..."
    return text if len(text) <= 60 else text[:57] + "..."


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _trouble(value: Any) -> str | None:
    """What keeps a value, right as it is, from being written down and sent."""
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
