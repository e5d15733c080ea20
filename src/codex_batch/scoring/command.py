"""The command scorer: it runs in the workspace after the agent; its exit code counts, or what it printed."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

from codex_app_server._runtime import threads
from codex_app_server._runtime.files import resolved

from ..container import ContainerError
from . import process
from .numerals import numbers
from .scorer import (
    CONTAINER_GONE,
    DEFAULT_TIMEOUT_S,
    NUMBER,
    OBJECT,
    POSITIVE,
    Option,
    Score,
    ScoreContext,
    Scorer,
    ScoringFailed,
    is_number,
    is_text,
    quote,
)

_PART_CHARACTERS = 256 * 1024
# Names of responses and diff: in a list, in the environment, in a request.
_LONG_TEXT_DEPTH = 3
# How shells, env, xargs and others report that a program could not be started (POSIX, 2.8.2).
NOT_STARTED = {126: "cannot be executed", 127: "no such program"}
_COMMAND = Option(
    "a shell command, or a list of a program and its arguments",
    lambda value: is_text(value) or (isinstance(value, list) and bool(value) and all(map(is_text, value))),
)


class Command(Scorer):
    """Scorer that runs a command.

    `parse` selects what counts: the `exit` code, the last `number` printed, or the `json` object of the last line.

    `files` maps paths in the workspace to files or directories that are put there first: what the agent was not to see.
    """

    type: ClassVar[str] = "command"
    known: ClassVar = {
        "command": _COMMAND,
        "timeout_s": POSITIVE,
        "parse": Option("exit, number or json", ("exit", "number", "json").__contains__),
        "threshold": NUMBER,
        "files": OBJECT,
        "env": OBJECT,
    }
    required: ClassVar = ("command",)
    main: ClassVar = "command"
    needs_workspace: ClassVar = True
    starts_process: ClassVar = True

    @property
    def spec(self) -> dict[str, Any]:
        files = {to: str(resolved(self.directory / source)) for to, source in self.options.get("files", {}).items()}
        return {**super().spec, **({"files": files} if files else {})}

    @property
    def bounds(self) -> tuple[float, float] | None:
        return super().bounds if self.options.get("parse", "exit") == "exit" else None

    def check(self) -> list[str]:
        problems = []
        for to, source in self.options.get("files", {}).items():
            if not is_text(to) or Path(to).is_absolute() or ".." in Path(to).parts or not Path(to).parts:
                problems.append(f"files: {quote(to)} is no path inside the workspace")
            if not is_text(source):
                problems.append(f"files: {quote(to)}: {quote(source)}; expected the path of a file or directory")
            elif not (self.directory / source).exists():
                problems.append(f"files: {quote(to)}: {self.directory / source}: no such file or directory")
        for name, value in self.options.get("env", {}).items():
            if not isinstance(value, str) or "\0" in value or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                problems.append(f"env: {quote(name)}: {quote(value)}; expected the name of a variable and a string")
        return problems

    async def score(self, context: ScoreContext) -> Score:
        workspace = context.workspace
        if workspace is None:
            raise ScoringFailed("the workspace is not there any more")
        for to, source in self.options.get("files", {}).items():
            try:
                await threads.in_thread(put, workspace, to, self.directory / source)
            except OSError as error:
                raise ScoringFailed(f"files: {to}: {error}") from None
        limit_s = self.options.get("timeout_s", DEFAULT_TIMEOUT_S)
        finished = await self._run(context, workspace, limit_s)
        self._keep(context.artifacts, finished)
        stdout, stderr = (text.decode("utf-8", "replace") for text in (finished.stdout, finished.stderr))
        metadata: dict[str, Any] = {"exit_code": finished.exit_code}
        if finished.timed_out:
            return self.graded(0.0, False, None, f"the command took more than {limit_s:g} s", metadata)
        printed = (stdout + ("\n" + stderr if stderr.strip() else "")).strip()
        if finished.exit_code in NOT_STARTED:
            why = printed.splitlines()[-1][-500:] if printed else "the shell says no more"
            raise ScoringFailed(f"cannot be started: {finished.words} ({NOT_STARTED[finished.exit_code]}): {why}")
        parse = self.options.get("parse", "exit")
        if parse == "exit":
            passed = finished.exit_code == 0
            explanation = finished.words if not printed else f"{finished.words}: {printed}"
            return self.graded(float(passed), passed, None, explanation, metadata)
        if parse == "number":
            found = await threads.in_thread(numbers, stdout)
            if not found:
                raise ScoringFailed(f"printed no number ({finished.words}): {printed[-500:]}")
            return self.graded(found[-1], self._passes(found[-1]), f"{found[-1]:g}", finished.words, metadata)
        return self._from_json_line(stdout, finished.words, printed)

    async def _run(self, context: ScoreContext, workspace: Path, limit_s: float) -> process.ProcessResult:
        """Run the command in the container that the agent worked in, or on this machine if that was in none."""
        command = self.options["command"]
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        env = {
            "CODEX_POOL_SAMPLE_ID": context.sample.id.replace("\0", ""),
            "CODEX_POOL_EPOCH": str(context.sample.epoch),
            "CODEX_POOL_VARIANT": context.sample.variant,
            **self.options.get("env", {}),
        }
        question = asked(context)
        if not context.in_container:
            stdin = await encoded(question)
            env = process.environment(env)
            return await process.run(argv, directory=workspace, stdin=stdin, timeout_s=limit_s, env=env)
        session = context.session
        if session is None:
            raise ScoringFailed(CONTAINER_GONE)
        # Paths are those inside; the artifacts are not.
        stdin = await encoded({**question, "workspace": session.workdir, "artifacts": None})
        try:
            ran = await session.run(argv, env=env, timeout_s=limit_s, stdin=stdin)
        except ContainerError as error:
            raise ScoringFailed(str(error)) from None
        return process.ProcessResult(ran.exit_code, None, ran.timed_out, ran.stdout, ran.stderr)

    def _passes(self, value: float) -> bool:
        return bool(value >= self.options.get("threshold", 1.0))

    def _from_json_line(self, stdout: str, words: str, printed: str) -> Score:
        line = next((line for line in reversed(stdout.splitlines()) if line.strip()), "")
        try:
            output = json.loads(line)
        except (ValueError, RecursionError):
            raise ScoringFailed(f"its last line is not JSON ({words}): {printed[-500:]}") from None
        return score_of_output(self, output, self.options.get("threshold", 1.0))

    def _keep(self, artifacts: Path, finished: process.ProcessResult) -> None:
        text = b"%b\n--- stderr ---\n%b\n--- %b ---\n" % (finished.stdout, finished.stderr, finished.words.encode())
        artifacts.mkdir(parents=True, exist_ok=True)
        (artifacts / f"{self.name}.log").write_bytes(text)


def score_of_output(scorer: Scorer, output: Any, threshold: float) -> Score:
    """The score of what a process or function reported: a boolean, a number, or an object with `value` and more.

    Raises ScoringFailed.
    """
    if isinstance(output, bool):
        return scorer.verdict(output)
    if is_number(output):
        return scorer.graded(float(output), output >= threshold)
    known = ("value", "passed", "answer", "explanation", "metadata")
    if not isinstance(output, dict):
        raise ScoringFailed(
            f"reported {quote(output)}; expected true, false, a number, or an object with {', '.join(known)}"
        )
    strange = [key for key in output if key not in known]
    if strange:
        raise ScoringFailed(f"reported {', '.join(map(quote, strange))}; expected an object with {', '.join(known)}")
    value: Any = output.get("value")
    passed: Any = output.get("passed")
    if isinstance(value, bool):
        value, passed = float(value), value if passed is None else passed
    if value is None and isinstance(passed, bool):
        value = float(passed)
    if not is_number(value):
        raise ScoringFailed(f"reported the value {quote(value)}; expected a number, true or false")
    if passed is None:
        passed = value >= threshold
    if not isinstance(passed, bool):
        raise ScoringFailed(f"reported passed is {quote(passed)}; expected true or false")
    metadata = output.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise ScoringFailed(f"reported metadata is {quote(metadata)}; expected an object")
    answer, explanation = (
        None if (text := output.get(key)) is None else str(text) for key in ("answer", "explanation")
    )
    return scorer.graded(float(value), passed, answer, explanation, metadata)


def asked(context: ScoreContext) -> dict[str, Any]:
    """Return the JSON that a process of the user gets on its standard input."""
    sample = context.sample
    return {
        "id": sample.id,
        "epoch": sample.epoch,
        "variant": sample.variant,
        "prompts": list(sample.prompts),
        "target": sample.target,
        "metadata": sample.metadata,
        "tags": list(sample.tags),
        "final_response": context.final_response,
        "responses": list(context.responses),
        "workspace": None if context.workspace is None else str(context.workspace),
        "diff": None if context.diff is None else context.diff.decode("utf-8", "replace"),
        "artifacts": str(context.artifacts),
    }


async def encoded(value: Any) -> bytes:
    """A value as JSON; of long texts a part at a time, so that nothing else on the event loop waits for them."""
    parts = []
    async for part in _parts(value):
        parts.append(part)
    return "".join(parts).encode()


async def _parts(value: Any, depth: int = 0) -> AsyncIterator[str]:
    if isinstance(value, str) and len(value) > _PART_CHARACTERS:
        yield '"'
        for at in range(0, len(value), _PART_CHARACTERS):
            yield json.dumps(value[at : at + _PART_CHARACTERS])[1:-1]
            await asyncio.sleep(0)
        yield '"'
    elif isinstance(value, dict | list) and value and depth < _LONG_TEXT_DEPTH:
        is_dict = isinstance(value, dict)
        yield "{" if is_dict else "["
        for number, each in enumerate(value):
            yield ", " if number else ""
            if is_dict:
                yield f"{json.dumps(str(each))}: "
            async for part in _parts(value[each] if is_dict else each, depth + 1):
                yield part
        yield "}" if is_dict else "]"
    else:
        yield json.dumps(value)


def put(workspace: Path, to: str, source: Path) -> None:
    """Put a file or directory into a workspace, in place of what is there. Follows no link that the agent laid."""
    path = workspace
    parts = Path(to).parts
    for part in parts[:-1]:
        path = path / part
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            path.unlink()
        path.mkdir(exist_ok=True)
    _put(path / parts[-1], source)


def _put(path: Path, source: Path) -> None:
    if source.is_dir():
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            path.unlink()
        path.mkdir(exist_ok=True)
        for inner in source.iterdir():
            _put(path / inner.name, inner)
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    shutil.copy2(source, path)
