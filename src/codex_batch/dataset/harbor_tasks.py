"""A directory of task folders of Harbor, or one such folder, as rows of a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codex_app_server._runtime.files import resolved

from ..harbor.content import content_digest
from ..harbor.folder import TASK, TaskFolder, read_folder
from ..harbor.parse import TaskError
from ..harbor.task import REWARD
from ..harbor.variables import UnsetVariable, values_of
from .row import DatasetRow
from .sample import DatasetError
from .trees import tree_digest


@dataclass(frozen=True, slots=True)
class HarborOptions:
    """`ignored` are keys that are not supported and are left out of account, as `environment.storage_mb`; with `oracle`
    the solutions are run instead of an agent."""

    ignored: frozenset[str] = frozenset()
    oracle: bool = False


def tasks(directory: Path, options: HarborOptions) -> Iterator[DatasetRow]:
    """The tasks of a directory by name, or that of a directory that is one itself.

    Raises DatasetError when the directory cannot be read.
    """
    if (directory / TASK).is_file():
        yield from _task(resolved(directory), options)
        return
    try:
        found = sorted(directory.iterdir())
    except OSError as error:
        raise DatasetError([f"{directory}: cannot be read: {error.strerror}; expected task folders"]) from None
    for folder in found:
        if folder.is_dir() and not folder.name.startswith((".", "_")):
            yield from _task(resolved(folder), options)


def _task(path: Path, options: HarborOptions) -> Iterator[DatasetRow]:
    """The row of a task, or a row for each problem with it."""
    try:
        folder = read_folder(path, ignored=options.ignored, oracle=options.oracle)
        digest = tree_digest(path)
        unset = list(_unset(folder, options.oracle))
        if unset:
            raise TaskError([f"{path / TASK}: {problem}" for problem in unset])
    except TaskError as error:
        for problem in error.problems:
            where, _, message = problem.partition(": ")
            yield DatasetRow(where, path.name, {}, message, path)
    except ValueError as error:
        yield DatasetRow(str(path), path.name, {}, str(error), path)
    else:
        harbor = {
            "task": str(path),
            "digest": digest,
            "content": content_digest(path),
            "oracle": options.oracle,
            "ignored": sorted(options.ignored),
        }
        yield DatasetRow(str(path / TASK), path.name, _fields(folder), directory=path, harbor=harbor)


def _unset(folder: TaskFolder, oracle: bool) -> Iterator[str]:
    """Yield which variables refer to one that the environment of this process has not."""
    task = folder.task
    tables = [("environment.env", task.environment.variables)]
    tables += [(f"steps.{step.name}.verifier.env", step.verifier.environment) for step in task.steps if step.name]
    tables += [] if task.has_steps else [("verifier.env", task.steps[0].verifier.environment)]
    tables += [("solution.env", task.solution_environment)] if oracle else []
    for name, variables in tables:
        try:
            values_of(variables, os.environ)
        except UnsetVariable as error:
            yield f"{name}: {error}"


def _fields(folder: TaskFolder) -> dict[str, Any]:
    """The fields of the sample of a task."""
    task = folder.task
    metadata = dict(task.metadata)
    if task.name is not None:
        metadata["task"] = task.name
    return {
        "prompts": list(folder.prompts),
        "container": _container(folder),
        "timeout_s": None if task.has_steps else task.steps[0].timeout_s,
        "metadata": metadata or None,
        "tags": [tag for tag in metadata.get("tags") or metadata.get("keywords") or () if isinstance(tag, str)],
        "scorers": [{"type": "harbor", "name": REWARD}],
    }


def _container(folder: TaskFolder) -> dict[str, Any]:
    environment, build = folder.task.environment, folder.build
    found = {
        "image": environment.image,
        "build": None if build is None else str(build),
        "build_timeout_s": None if build is None else environment.build_timeout_s,
        "cpus": environment.cpus,
        "memory_mb": environment.memory_mb,
        "user": folder.task.user,
        "workdir": environment.workdir,
        "environment": dict(environment.variables),
        "network": environment.network,
    }
    return {name: value for name, value in found.items() if value not in (None, {})}
