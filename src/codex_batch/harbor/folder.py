"""A task folder of Harbor: its files, and the task that they describe.

fix-rounding/
  task.toml                     limits, users, variables, resources (schema 1.0 to 1.4)
  instruction.md                the prompt
  environment/Dockerfile        the image, unless task.toml names one
  tests/test.sh                 the verifier, with any other files; the agent never sees them
  solution/solve.sh             the solution (may be missing)
  steps/NAME/                   instruction.md, tests/, solution/, workdir/ of each step of a task with steps
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from codex_app_server._runtime.files import read_text_file, resolved

from .parse import TaskError, parse
from .task import Step, Task

TASK, INSTRUCTION, TEST, SOLVE, SETUP = "task.toml", "instruction.md", "test.sh", "solve.sh", "setup.sh"
_SEVERAL = "a task of several containers; expected environment/Dockerfile or a docker_image"
# Files by which Harbor would not build the Dockerfile, or give the agent a history.
_NOT_SUPPORTED = {
    "environment/docker-compose.yaml": _SEVERAL,
    "environment/docker-compose.yml": _SEVERAL,
    "trajectory.json": "a history that an agent begins with; expected none",
}
_IGNORE_FILE = ".harborignore"
_READ_HERE = (
    *(TASK, INSTRUCTION, "environment", "environment/Dockerfile", "tests", f"tests/{TEST}", "solution"),
    *(f"solution/{SOLVE}", "workdir", f"workdir/{SETUP}", "steps"),
)
_CANARY = re.compile(r"(<!--.*canary.*-->|#.*canary.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TaskFolder:
    """A task and its folder."""

    path: Path
    task: Task
    prompts: tuple[str, ...]

    @property
    def build(self) -> Path | None:
        """The directory that the image is built of; None where task.toml names one."""
        return None if self.task.environment.image is not None else self.path / "environment"

    def tests_of(self, step: Step) -> list[Path]:
        """The directories whose files stand in /tests for a step, the later over the earlier ones."""
        return [path for path in self._places(step, "tests") if path.is_dir()]

    def solution_of(self, step: Step) -> Path | None:
        """The directory of the solution of a step, its own or that of the task; None if there is none."""
        places = [path for path in self._places(step, "solution") if path.is_dir()]
        return places[-1] if places else None

    def workdir_of(self, step: Step) -> Path | None:
        """The directory whose files stand in the working directory from a step on, if it has one."""
        path = self.path / "steps" / step.name / "workdir"
        return path if step.name and path.is_dir() else None

    def _places(self, step: Step, name: str) -> list[Path]:
        return [self.path / name, *([self.path / "steps" / step.name / name] if step.name else [])]


def read_folder(path: Path, *, ignored: Collection[str] = (), oracle: bool = False) -> TaskFolder:
    """The task of a folder; with `oracle` it has to have a solution. Raises TaskError with all that is wrong."""
    text = _text(path / TASK, "expected the description of a task")
    task = parse(text, str(path / TASK), ignored=ignored)
    problems = [
        f"{path / name}: {problem}; use Harbor for it"
        for name, problem in _NOT_SUPPORTED.items()
        if (path / name).exists()
    ]
    problems += [f"{each}: is not supported; take out what it leaves out" for each in sorted(_ignore_files(path))]
    problems += [
        f"{each}: is a link that leads out of the task; put what it leads to in its place" for each in _links_out(path)
    ]
    folder = TaskFolder(path, task, ())
    if folder.build is not None and not (path / "environment" / "Dockerfile").is_file():
        problems.append(
            f"{path}: has neither environment/Dockerfile nor environment.docker_image; expected one of them"
        )
    prompts = []
    for step in task.steps:
        where = path / "steps" / step.name if step.name else path
        try:
            prompts.append(_instruction(where / INSTRUCTION))
        except TaskError as error:
            problems += error.problems
        problems += _missing(folder, step, oracle)
    if problems:
        raise TaskError(problems)
    return TaskFolder(path, task, tuple(prompts))


def _missing(folder: TaskFolder, step: Step, oracle: bool) -> list[str]:
    """Return which scripts of a step are missing."""
    where = folder.path / "steps" / step.name if step.name else folder.path
    problems = []
    if not any((place / TEST).is_file() for place in folder.tests_of(step)):
        problems.append(f"{where}: has no tests/{TEST}; expected the script that writes the reward")
    solution = folder.solution_of(step)
    if oracle and (solution is None or not (solution / SOLVE).is_file()):
        problems.append(f"{where}: has no solution/{SOLVE}; expected one for --oracle")
    return problems


def _ignore_files(path: Path) -> list[Path]:
    places = [path / "tests", path / "solution", *path.glob("steps/*/tests"), *path.glob("steps/*/solution")]
    return [found for place in places for found in place.rglob(_IGNORE_FILE)]


def _links_out(path: Path) -> Iterator[Path]:
    """Yield what is read on this machine by a link to another place, where a change would not be noticed.

    Other links, as those below tests, are put into the container as links.
    """
    for above in (path, *sorted(path.glob("steps/*"))):
        for name in _READ_HERE:
            place = above / name
            # Of a directory that is a link itself, what is in it is not named as well.
            is_own = place.is_symlink() or (place.exists() and not place.parent.is_symlink())
            if is_own and not resolved(place).is_relative_to(resolved(path)):
                yield place


def _instruction(path: Path) -> str:
    text = without_canary(_text(path, "expected the prompt of the task"))
    if not text.strip():
        raise TaskError([f"{path}: is empty; expected the prompt of the task"])
    return text


def without_canary(text: str) -> str:
    """An instruction without the comments at its beginning that mark a benchmark, which an agent is not to see."""
    lines = text.split("\n")
    marks = next((n for n, line in enumerate(lines) if not _CANARY.fullmatch(line.strip())), len(lines))
    first = next((n for n, line in enumerate(lines[marks:], marks) if line.strip()), len(lines))
    return "\n".join(lines[first:])


def _text(path: Path, expected: str) -> str:
    try:
        # Some editors on Windows begin a file with such a mark.
        return read_text_file(path).removeprefix("\ufeff")
    except FileNotFoundError:
        raise TaskError([f"{path}: no such file; {expected}"]) from None
    except UnicodeDecodeError:
        raise TaskError([f"{path}: not UTF-8; {expected}"]) from None
    except OSError as error:
        raise TaskError([f"{path}: cannot be read: {error.strerror}; {expected}"]) from None
