"""Parts that all scorers share: their input, their result, and the form of their options. Pure."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from codex_app_server._runtime.text import cut

from ..container import ContainerSession

DEFAULT_TIMEOUT_S = 300.0
TEXT_CHARACTERS = 2_000
_QUOTED = 100
# The squares of values up to it are added up without overflow.
LARGEST = 1e100
MOST_NESTED = 100
CONTAINER_GONE = (
    "the container that the agent worked in is not there any more, and with it what was not in the workspace: run the "
    "sample again"
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class ScorerError(ValueError):
    """Scorers that cannot be used; `problems` holds everything that is wrong, each as `where: field: ...`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class Scored(Protocol):
    """The fields of a sample that scorers read."""

    @property
    def id(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def variant(self) -> str: ...
    @property
    def prompts(self) -> tuple[str, ...]: ...
    @property
    def target(self) -> Any: ...
    @property
    def metadata(self) -> dict[str, Any] | None: ...
    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def output_schema(self) -> dict[str, Any] | None: ...


class Ask(Protocol):
    """Asks a model through the pool; the text of its answer. Raises AppServerError or TimeoutError."""

    async def __call__(
        self, prompt: str, output_schema: dict[str, Any], *, model: str | None, effort: str | None, timeout_s: float
    ) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreContext:
    """Input of a scorer: a sample and its outcome.

    `responses` holds the final response of each turn. `workspace` is where codex worked, None if it is not there any
    more; `diff` what it changed there. What a scorer leaves goes to `artifacts`. `ask` is the judge's way to a model.
    """

    sample: Scored
    final_response: str | None
    responses: tuple[str | None, ...] = ()
    workspace: Path | None = None
    diff: bytes | None = None
    artifacts: Path
    ask: Ask | None = None
    session: ContainerSession | None = None
    """The container that the agent worked in, while it runs."""
    in_container: bool = False
    """True if the agent worked in a container, there or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Result of one scorer for one sample.

    `passed` is None where the scorer knows no right and wrong. With an `error` the scorer itself failed: the sample is
    not scored by it, and `value` means nothing.
    """

    scorer: str
    value: float
    passed: bool | None = None
    answer: str | None = None
    explanation: str | None = None
    metadata: dict[str, Any] | None = None
    error: str | None = None
    duration_ms: int = 0
    others: tuple[Score, ...] = ()
    """Further scores that came with this one, each by a name of its own."""
    is_missing: bool = False
    """True if there is no score by this name, only `others`."""


class ScoringFailed(Exception):
    """The scorer itself failed, whatever the answer was."""


class Option(NamedTuple):
    """One option of a scorer: what is expected, in words and as a check."""

    wanted: str
    is_right: Callable[[Any], bool]


@dataclass(frozen=True)
class Scorer(ABC):
    """One way to score. `spec` is plain JSON that parse_scorer makes the same scorer of; paths in it are absolute."""

    name: str
    options: Mapping[str, Any]
    directory: Path = field(repr=False)
    """Directory of relative paths in the options."""

    type: ClassVar[str]
    known: ClassVar[dict[str, Option]] = {}
    required: ClassVar[tuple[str, ...]] = ()
    main: ClassVar[str | None] = None
    """The option that stands behind the colon in the short form."""
    paths: ClassVar[tuple[str, ...]] = ()
    needs_workspace: ClassVar[bool] = False
    needs_model: ClassVar[bool] = False
    starts_process: ClassVar[bool] = False
    """True of a scorer that waits for a process of the user; one that does not, and asks no model, computes."""

    @property
    def spec(self) -> dict[str, Any]:
        return {"type": self.type, "name": self.name, **self.options}

    @property
    def version(self) -> str:
        """The version of a scorer that comes with another distribution, on which its scores depend; else empty."""
        return ""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and the highest value that it gives; None where the user's code decides on that."""
        return 0.0, 1.0

    @property
    def private(self) -> list[Path]:
        """Files that an agent is not to read before it is scored."""
        return [Path(source) for source in self.spec.get("files", {}).values()]

    def check(self) -> list[str]:
        """Return what is wrong with the options beyond their types, each as `field: problem`."""
        return []

    def check_sample(self, sample: Scored) -> str | None:
        """Return why this scorer cannot score a sample, whatever its answer; None if it can."""
        return None

    @abstractmethod
    async def score(self, context: ScoreContext) -> Score:
        """The score. Raises ScoringFailed when it could not be found out."""

    def verdict(self, passed: bool, answer: str | None = None, explanation: str | None = None, **more: Any) -> Score:
        """Right or wrong."""
        return self.graded(1.0 if passed else 0.0, passed, answer, explanation, **more)

    def graded(
        self,
        value: float,
        passed: bool | None,
        answer: str | None = None,
        explanation: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Score:
        """A score of a value. Raises ScoringFailed for one that no mean can be made of."""
        if not -LARGEST <= value <= LARGEST:
            raise ScoringFailed(f"reported the value {value!r}; expected a finite number, up to {LARGEST:g}")
        return Score(
            scorer=self.name,
            value=value,
            passed=passed,
            answer=shortened(answer),
            explanation=shortened(explanation),
            metadata=None if metadata is None else writable(metadata),
        )


def shortened(text: str | None, characters: int = TEXT_CHARACTERS) -> str | None:
    """The beginning and the end of a text too long for a record, as UTF-8 can carry it."""
    if text is None:
        return None
    if len(text) > characters:
        half = characters // 2 - 3
        text = f"{text[:half]} [...] {text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode()


def writable(value: Any, depth: int = 0) -> Any:
    """A JSON value as every JSON reader can hold it: numbers that are not finite as null, those too large as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(2**63) <= value < 2**64 else _digits(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict | list | tuple) and depth >= MOST_NESTED:
        return "..."
    if isinstance(value, dict):
        return {writable(str(key)): writable(part, depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [writable(part, depth + 1) for part in value]
    return value


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:
        return f"{value:#x}"


def quote(value: Any) -> str:
    """A value as it stands in messages."""
    value = value[:_QUOTED] if isinstance(value, str) else value
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return cut(text, 60)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def is_number(value: Any) -> bool:
    """Return True for a number that a float can hold."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 10**300
    return isinstance(value, float) and math.isfinite(value)


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


TEXT = Option("a non-empty string", is_text)
FLAG = Option("true or false", is_flag)
NUMBER = Option("a number", is_number)
POSITIVE = Option("a number of seconds above 0", lambda value: is_number(value) and value > 0)
NOT_NEGATIVE = Option("a number of at least 0", lambda value: is_number(value) and value >= 0)
OBJECT = Option("an object", lambda value: isinstance(value, dict))
NAME = Option("a name of letters, digits, '_', '-' and '.', at most 64 of them", is_name)
TARGET = Option(
    "a string, a number or a list of strings",
    lambda value: (
        isinstance(value, str)
        or is_number(value)
        or (isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value))
    ),
)


def targets(options: Mapping[str, Any], sample: Scored) -> list[str]:
    """Return the targets that a scorer compares with: its own `target`, else the sample's; empty if there is none."""
    target = options.get("target")
    target = sample.target if target is None else target
    if target is None:
        return []
    if isinstance(target, list):
        return [str(item) for item in target]
    return [str(target)]


def no_target(sample: Scored) -> str | None:
    """The problem of a scorer that has nothing to compare with."""
    return "has no target; give the sample one, or the scorer"
