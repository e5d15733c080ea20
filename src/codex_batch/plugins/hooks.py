"""On-record hooks by name: those that come with codex-pool, and those of plug-ins, checked before a run starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable

from . import discovery, hook_process
from .discovery import ON_RECORD, Plugin, PluginError

BUILT_IN = {
    "opentelemetry": Plugin(ON_RECORD, "opentelemetry", "codex_batch.opentelemetry:SampleSpans", "codex-pool"),
}
COMMAND = [sys.executable, hook_process.__file__]
CHECK_LIMIT_S = 60.0


def hooks_of(names: Iterable[str]) -> tuple[Plugin, ...]:
    """Return the hooks of these names, each once, imported in a process of their own to see that they can be.

    Raises PluginError.
    """
    wanted = list(dict.fromkeys(names))
    plugins = BUILT_IN
    if not all(name in BUILT_IN for name in wanted):
        plugins = {**discovery.find(ON_RECORD, BUILT_IN), **BUILT_IN}
    for name in wanted:
        if name not in plugins:
            raise PluginError(f"no hook {name!r}; expected one of {', '.join(plugins)}; {discovery.LIST}")
        _check(plugins[name])
    return tuple(plugins[name] for name in wanted)


def _check(plugin: Plugin) -> None:
    if plugin.problem is not None:
        raise PluginError(f"{plugin} is not used: {plugin.problem}")
    request = json.dumps({"value": plugin.value, "run": None}).encode() + b"\n"
    try:
        done = subprocess.run(COMMAND, input=request, capture_output=True, timeout=CHECK_LIMIT_S, cwd="/")
        answer = json.loads(done.stdout.partition(b"\n")[0])
        problem = answer.get("failed")
    except subprocess.TimeoutExpired:
        problem = f"that took more than {CHECK_LIMIT_S:.0f} s"
    except ValueError:
        problem = f"its process ended without an answer: {done.stderr.decode('utf-8', 'replace')[-300:]!r}"
    if problem is not None:
        remedy = "upgrade or remove that distribution"
        if plugin.name in BUILT_IN:
            remedy = "pip install 'codex-pool[otel]'"
        raise PluginError(f"{plugin} cannot be used: {plugin.value}: {problem}; {remedy}")
