"""The python scorer: a function of the user, `module:function`, called in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.machinery import PathFinder
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, ClassVar

from codex_app_server._runtime.files import resolved

from . import call, process
from .command import asked, encoded, score_of_output
from .scorer import (
    DEFAULT_TIMEOUT_S,
    NUMBER,
    OBJECT,
    POSITIVE,
    TEXT,
    Option,
    Score,
    ScoreContext,
    Scorer,
    ScoringFailed,
    quote,
)

CHECK_LIMIT_S = 60.0
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_COMMAND = [sys.executable, call.__file__]


class Python(Scorer):
    """The function gets one dictionary (see docs/guides/scoring.md) and `arguments` as keywords.

    It returns a bool, a number, or a dictionary with `value` and more. Modules are looked for in `path` first, the
    directory of the dataset unless told.
    """

    type: ClassVar[str] = "python"
    known: ClassVar = {
        "function": Option(
            "module:function", lambda value: isinstance(value, str) and _FUNCTION.fullmatch(value) is not None
        ),
        "path": TEXT,
        "arguments": OBJECT,
        "timeout_s": POSITIVE,
        "threshold": NUMBER,
    }
    required: ClassVar[tuple[str, ...]] = ("function",)
    main: ClassVar[str | None] = "function"
    starts_process: ClassVar = True

    @property
    def spec(self) -> dict[str, Any]:
        return {**super().spec, "path": self._path}

    @property
    def _path(self) -> str:
        return str(resolved(self.directory / self.options.get("path", ".")))

    @property
    def bounds(self) -> None:
        return None

    @property
    def private(self) -> list[Path]:
        """The function's module, or the package that it is in, compiled or not; nothing of one that is installed."""
        places = [self._path, *_pythonpath()]
        modules = self._function.partition(":")[0].split(".")
        for number, module in enumerate(modules):
            spec = PathFinder.find_spec(module, places)
            if spec is None:
                return []
            if spec.submodule_search_locations is not None:
                places = list(spec.submodule_search_locations)
            elif number == 0 and spec.origin is not None:
                places = [spec.origin, os.path.dirname(cache_from_source(spec.origin))]
        return [Path(place) for place in places if os.path.exists(place)]

    @property
    def _function(self) -> str:
        """`module:function`."""
        return str(self.options["function"])

    def _request(self, context: Any) -> dict[str, Any]:
        return {
            "path": self._path,
            "function": self._function,
            "arguments": self.options.get("arguments", {}),
            "check": context is None,
            "context": context,
        }

    def _environment(self) -> dict[str, str]:
        return process.environment({"PYTHONPATH": os.pathsep.join(_pythonpath())})

    def check(self) -> list[str]:
        """Check that the function exists and takes these arguments. Runs its module, in a process of its own."""
        if not Path(self._path).is_dir():
            return [f"path: {self._path} is not a directory; expected the one that holds the module"]
        function = self._function
        problem = self._import_problem()
        return [] if problem is None else [f"function: {function}: {problem} (looked in {self._path} first)"]

    def _import_problem(self) -> str | None:
        """Return why the function cannot be called with these arguments. Runs its module, in a process of its own."""
        try:
            done = subprocess.run(
                _COMMAND,
                input=json.dumps(self._request(None)).encode(),
                capture_output=True,
                timeout=CHECK_LIMIT_S,
                cwd=self._path,
                env=self._environment(),
            )
        except subprocess.TimeoutExpired:
            return f"importing it took more than {CHECK_LIMIT_S:.0f} s"
        return _answer(done.stdout, done.stderr).get("failed")

    async def score(self, context: ScoreContext) -> Score:
        limit_s = self.options.get("timeout_s", DEFAULT_TIMEOUT_S)
        context.artifacts.mkdir(parents=True, exist_ok=True)
        finished = await process.run(
            _COMMAND,
            directory=Path(self._path),
            stdin=await encoded(self._request(asked(context))),
            timeout_s=limit_s,
            env=self._environment(),
        )
        if finished.timed_out:
            raise ScoringFailed(f"the function took more than {limit_s:g} s")
        answer = _answer(finished.stdout, finished.stderr)
        if "failed" in answer:
            raise ScoringFailed(f"the function failed: {answer['failed']}")
        return score_of_output(self, answer["said"], self.options.get("threshold", 1.0))


def _pythonpath() -> list[str]:
    """The places of PYTHONPATH, for code of the user's own, which finds there what it finds in the user's shell.

    Absolute, because the function runs elsewhere, and what was meant from here is to mean the same there. Without the
    empty ones: they are left by `PYTHONPATH=$PYTHONPATH:...` more often than meant, and would be the directory that the
    function runs in.
    """
    return [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]


def _answer(stdout: bytes, stderr: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(stdout)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        return {"failed": f"its process ended without an answer: {quote(stderr.decode('utf-8', 'replace')[-500:])}"}
    return answer
