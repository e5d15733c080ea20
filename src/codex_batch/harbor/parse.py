"""The text of a task.toml as a task, or all that is wrong with it, each with its line and key. Pure."""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import tomli

from .keys import Problem, check
from .task import ARTIFACTS, NEWEST, REWARD, Artifact, Environment, Healthcheck, Step, Task, Verifier

_UNITS_MB = {"G": 1024.0, "M": 1.0, "K": 1 / 1024}
_ELEMENT = re.compile(r"\[(\d+)\]")


class TaskError(ValueError):
    """A task that cannot be used; `problems` holds all that is wrong with it, each with file and line."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def parse(text: str, where: str, *, ignored: Collection[str] = ()) -> Task:
    """The task of the text of a task.toml; `where` is the name of the file in messages.

    Keys in `ignored`, as in `environment.storage_mb`, are taken out where they would be refused because they are not
    supported. Raises TaskError.
    """
    try:
        value = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise TaskError([f"{where}:{line[1] if line else 1}: not TOML: {error}"]) from None
    except RecursionError as error:
        raise TaskError([f"{where}:1: cannot be read: {error}"]) from None
    problems = []
    for problem in (*check(value), *_contradictions(value)):
        if problem.is_unsupported and _ELEMENT.sub("", problem.key) in ignored:
            _take_out(value, problem.key)
        else:
            problems.append(problem)
    if problems:
        raise TaskError([_located(text, where, problem) for problem in problems])
    return _task(value)


def _located(text: str, where: str, problem: Problem) -> str:
    remedy = ""
    if problem.is_unsupported:
        name = _ELEMENT.sub("", problem.key)
        remedy = f"; take it out, or leave it out of account with --ignore-key {name}"
    return f"{where}:{line_of(text, problem.key)}: {problem.key}: {problem.message}{remedy}"


def line_of(text: str, key: str) -> int:
    """The line at which a key, as in `environment.gpus` or `steps[2].name`, seems to stand; 1 if it is not found."""
    *parents, name = _ELEMENT.sub("", key).split(".")
    table, wanted = ".".join(parents), _ELEMENT.search(key)
    element = int(wanted[1]) if wanted else 0
    counts: dict[str, int] = {}
    current, found = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*(\[\[?)\s*([^\]]+?)\s*\]", line)
        if header:
            current = re.sub(r"[\s\"']", "", header[2])
            if header[1] == "[[":
                counts[current] = counts.get(current, 0) + 1
        first = key.split("[")[0]
        if element and counts.get(first, element) != element:
            continue
        names = f"{current}." if current else ""
        if header and current == (f"{table}.{name}" if table else name):
            return number
        written = re.match(r"\s*([\w.\"'-]+)\s*=", line)
        if written and names + re.sub(r"[\"']", "", written[1]) == (f"{table}.{name}" if table else name):
            return number
        if header and current == table:
            # An inline table, or a key that is missing: its table has to do.
            found = number
    return found


def _take_out(value: Any, key: str) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        element = _ELEMENT.search(parent)
        value = value[_ELEMENT.sub("", parent)]
        value = value[int(element[1]) - 1] if element else value
    value.pop(name, None)


# Keys that are right by themselves.


def _contradictions(value: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with keys beside each other; what `check` finds wrong is passed over."""
    environment = _table_of(value, "environment")
    if "version" in value and "schema_version" in value and value["version"] != value["schema_version"]:
        yield Problem("version", f"is {value['version']!r} beside schema_version; expected one of them")
    yield from _sizes(environment)
    network = _network(environment)
    phases = [("", value), *((f"steps[{n}].", step) for n, step in enumerate(_steps_of(value), 1))]
    for path, phase in phases:
        for name in ("agent", "verifier"):
            mode = _table_of(phase, name).get("network_mode")
            if mode in ("public", "no-network") and (mode == "public") != network:
                yield Problem(
                    f"{path}{name}.network_mode",
                    "differs from that of environment; the container has one network for all of its life",
                    is_unsupported=True,
                )
    yield from _of_steps(value)
    yield from _of_artifacts(value)


def _sizes(environment: Mapping[str, Any]) -> Iterator[Problem]:
    size, in_mb = environment.get("memory"), environment.get("memory_mb")
    if isinstance(size, str) and in_mb is not None:
        megabytes = _megabytes(size)
        if megabytes is not None and megabytes != in_mb:
            yield Problem("environment.memory", f"is {size}, and memory_mb is {in_mb}; expected one of them")


def _of_steps(value: Mapping[str, Any]) -> Iterator[Problem]:
    steps = _steps_of(value)
    if not steps and "multi_step_reward_strategy" in value:
        yield Problem("multi_step_reward_strategy", "is for a task with [[steps]], which are missing")
    seen: dict[str, int] = {}
    for number, step in enumerate(steps, 1):
        name = step.get("name")
        if name is None:
            yield Problem(f"steps[{number}].name", "is missing; expected the name of a directory below steps/")
        elif isinstance(name, str):
            folded = unicodedata.normalize("NFC", name).casefold()
            if folded in seen:
                yield Problem(f"steps[{number}].name", f"is {name!r} as that of step {seen[folded]}; expected another")
            seen.setdefault(folded, number)
        user, of_task = _table_of(step, "agent").get("user"), _table_of(value, "agent").get("user")
        if user is not None and user != of_task:
            yield Problem(
                f"steps[{number}].agent.user", "differs from agent.user; an agent has one user", is_unsupported=True
            )
    for path, each in [("", value), *((f"steps[{number}].", step) for number, step in enumerate(steps, 1))]:
        check_up = each.get("healthcheck") if path else _table_of(each, "environment").get("healthcheck")
        if isinstance(check_up, dict) and "command" not in check_up:
            yield Problem(f"{path or 'environment.'}healthcheck.command", "is missing; expected a shell command")


def _of_artifacts(value: Mapping[str, Any]) -> Iterator[Problem]:
    for path, each in [("", value), *((f"steps[{n}].", step) for n, step in enumerate(_steps_of(value), 1))]:
        found = each.get("artifacts")
        for number, artifact in enumerate(found if isinstance(found, list) else (), 1):
            if isinstance(artifact, dict) and "source" not in artifact:
                yield Problem(f"{path}artifacts[{number}].source", "is missing; expected a path in the container")


def _table_of(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def _steps_of(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = value.get("steps")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _network(environment: Mapping[str, Any]) -> bool:
    """True if the container has the network, which is so unless a task says otherwise."""
    if "network_mode" in environment:
        return bool(environment["network_mode"] == "public")
    return environment.get("allow_internet") is not False


# The task.


def _task(value: Mapping[str, Any]) -> Task:
    agent, package = _table_of(value, "agent"), _table_of(value, "task")
    of_all = _artifacts(value.get("artifacts", ()))
    convention = Artifact(ARTIFACTS, _below_root(ARTIFACTS))
    if not any(each.source.rstrip("/") == ARTIFACTS for each in of_all):
        of_all = (convention, *of_all)
    verifier = _verifier(_table_of(value, "verifier"), None)
    steps = tuple(_step(each, agent, verifier, of_all) for each in _steps_of(value))
    alone = Step("", agent.get("timeout_sec"), verifier, artifacts=of_all)
    metadata = {name: package[name] for name in package if name != "name"}
    metadata |= {"source": value["source"]} if "source" in value else {}
    return Task(
        schema=value.get("schema_version", value.get("version", NEWEST)),
        name=package.get("name"),
        environment=_environment(_table_of(value, "environment")),
        steps=steps or (alone,),
        user=_user(agent.get("user")),
        is_mean=value.get("multi_step_reward_strategy", "mean") == "mean",
        solution_environment=_table_of(value, "solution").get("env", {}),
        metadata=_plain({**metadata, **_table_of(value, "metadata")}),
    )


def _step(
    value: Mapping[str, Any], agent: Mapping[str, Any], verifier: Verifier, artifacts: tuple[Artifact, ...]
) -> Step:
    least = value.get("min_reward", {})
    return Step(
        name=value["name"],
        timeout_s=_table_of(value, "agent").get("timeout_sec", agent.get("timeout_sec")),
        verifier=_verifier(_table_of(value, "verifier"), verifier),
        min_reward=least if isinstance(least, dict) else {REWARD: least},
        healthcheck=_healthcheck(value.get("healthcheck")),
        artifacts=(*artifacts, *_artifacts(value.get("artifacts", ()))),
    )


def _verifier(value: Mapping[str, Any], of_task: Verifier | None) -> Verifier:
    """A verifier; that of a step has the variables and the user of the task's, and a limit of its own."""
    environment: Mapping[str, str] = value.get("env", {})
    user = _user(value.get("user"))
    if of_task is not None:
        environment, user = {**of_task.environment, **environment}, user or of_task.user
    return Verifier(value.get("timeout_sec", Verifier().timeout_s), environment, user)


def _environment(value: Mapping[str, Any]) -> Environment:
    memory_mb = value.get("memory_mb")
    if memory_mb is None and "memory" in value:
        memory_mb = _megabytes(value["memory"])
    return Environment(
        image=value.get("docker_image"),
        build_timeout_s=value.get("build_timeout_sec", Environment().build_timeout_s),
        cpus=value.get("cpus"),
        memory_mb=memory_mb,
        workdir=value.get("workdir"),
        network=_network(value),
        variables=value.get("env", {}),
        healthcheck=_healthcheck(value.get("healthcheck")),
    )


def _healthcheck(value: Mapping[str, Any] | None) -> Healthcheck | None:
    if value is None:
        return None
    return Healthcheck(**{name.replace("_sec", "_s"): part for name, part in value.items()})


def _artifacts(value: Any) -> tuple[Artifact, ...]:
    tables = [{"source": each} if isinstance(each, str) else each for each in value]
    return tuple(Artifact(each["source"], each.get("destination") or _below_root(each["source"])) for each in tables)


def _below_root(path: str) -> str:
    return str(PurePosixPath(*(part for part in PurePosixPath(path).parts if part != "/")))


def _user(value: Any) -> str | None:
    return None if value is None else str(value)


def _megabytes(size: str) -> int | None:
    size = size.strip().upper()
    try:
        return int(float(size[:-1]) * _UNITS_MB[size[-1]])
    except (ValueError, KeyError, IndexError):
        return None


def _plain(value: Any) -> Any:
    """A value of TOML as one of JSON: times as text."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value.isoformat() if isinstance(value, dt.date | dt.time) else value
