"""On-record hooks of a run: processes beside it that never hold it up, and whose failures are counted."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from plugin_distributions import write_distribution

from codex_batch.plugins.discovery import ON_RECORD, Plugin, PluginError
from codex_batch.plugins.hooks import hooks_of
from codex_batch.run import record_hooks
from codex_batch.run.record_hooks import RecordHooks, rows

MODULE = """
import os, sys, time

class Keep:
    def __init__(self, run):
        self.file = open(run["path"], "a")
    def __call__(self, record):
        print("a word", file=sys.stderr)
        self.file.write(f"{record['id']}\\n")
    def close(self):
        self.file.write("closed\\n")
        self.file.close()

def raising(run):
    def hook(record):
        if record["id"] == 1:
            raise LookupError("not this one")
    return hook

def dying(run):
    def hook(record):
        os._exit(7)
    return hook

def hanging(run):
    open(run["path"], "w").write(str(os.getpid()))
    def hook(record):
        time.sleep(600)
    return hook

def refusing(run):
    raise RuntimeError("no server is named")

def nothing(run):
    return 3

def without():
    pass
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ("Keep", "raising", "dying", "hanging", "refusing", "nothing", "without")
    points = {name.lower(): f"hooking:{name}" for name in names} | {"gone": "not_there:f", "opentelemetry": "hooking:f"}
    site = write_distribution(tmp_path / "site", "hooking", {ON_RECORD: points}, {"hooking": MODULE})
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    return tmp_path / "log"


def deliver(name: str, log: Path, count: int) -> tuple[dict[str, Any], list[str]]:
    """Give a hook `count` records; return its counts, and what was shown."""
    shown: list[str] = []

    async def run() -> dict[str, Any]:
        plugin = Plugin(ON_RECORD, name, f"hooking:{name}", "hooking 1.0")
        hooks = RecordHooks([plugin], {"path": str(log) + ".kept"}, log, shown.append)
        for number in range(count):
            hooks.offer(json.dumps({"id": number}).encode() + b"\n")
        await hooks.close()
        return hooks.counts()[name]

    return asyncio.run(run()), shown


def test_a_hook_gets_each_record_in_order_and_is_closed(log: Path) -> None:
    counts, shown = deliver("Keep", log, 3)
    assert counts == {"delivered": 3, "failed": 0, "left_out": 0, "error": None} and shown == []
    assert Path(f"{log}.kept").read_text() == "0\n1\n2\nclosed\n"
    assert log.read_text() == "a word\n" * 3
    assert rows({"Keep": counts}) == [("on record: Keep", "3 records")]


def test_a_hook_that_raises_is_named_once_and_counted(log: Path) -> None:
    counts, shown = deliver("raising", log, 3)
    assert (counts["delivered"], counts["failed"], counts["left_out"]) == (2, 1, 0)
    assert shown == [
        "the plug-in 'raising' of codex_pool.on_record in hooking 1.0: LookupError: not this one; the run goes on, and "
        "its records are not affected"
    ]
    assert rows({"raising": counts}) == [
        ("on record: raising", "2 records, 1 failed; last error: LookupError: not this one")
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dying", "its process died with exit code 7"),
        ("refusing", "RuntimeError: no server is named"),
        ("nothing", "TypeError: hooking:nothing returned int; expected a function that takes a record"),
    ],
)
def test_a_hook_whose_process_ends_is_started_again_some_times(log: Path, name: str, words: str) -> None:
    counts, shown = deliver(name, log, 6)
    assert (counts["delivered"], counts["failed"], counts["left_out"]) == (0, 6, 0)
    assert len(shown) == 1 and words in shown[0], shown
    assert counts["error"] == "it is not started again after 4 processes"


def test_a_hook_that_hangs_holds_up_nothing_but_the_end_and_that_not_for_long(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_hooks, "CLOSE_LIMIT_S", 1.0)
    monkeypatch.setattr(record_hooks, "WAITING", 5)
    counts, shown = deliver("hanging", log, 8)
    assert (counts["delivered"], counts["failed"], counts["left_out"]) == (0, 0, 8)
    assert "records are left out: it is slower than the run: more than 5 records wait for it" in shown[0]
    assert counts["error"] == "records are left out: it did not take them within 1 s of the run's end"
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path(f"{log}.kept").read_text()), 0)


def test_a_hook_that_takes_too_long_for_a_record_gets_a_new_process(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_hooks, "RECORD_LIMIT_S", 0.5)
    counts, shown = deliver("hanging", log, 2)
    assert (counts["failed"], counts["left_out"]) == (2, 0) and "it took more than 0.5 s" in shown[0]


def test_hooks_are_found_by_name_once_each(log: Path) -> None:
    assert [plugin.value for plugin in hooks_of(["keep", "raising", "keep"])] == ["hooking:Keep", "hooking:raising"]
    # The one of codex-pool goes before one of that name.
    assert [plugin.distribution for plugin in hooks_of(["opentelemetry"])] == ["codex-pool"]
    assert hooks_of([]) == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("other", r"no hook 'other'; expected one of .*keep.*; codex-pool plugins lists what is installed"),
        ("gone", r"in hooking 1\.0 cannot be used: not_there:f: ModuleNotFoundError: .*; upgrade or remove"),
        ("without", r"cannot be used: hooking:without: TypeError: too many positional arguments; upgrade or remove"),
    ],
)
def test_a_hook_that_cannot_be_used_is_refused_before_the_run(log: Path, name: str, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        hooks_of([name])


def test_the_hook_of_codex_pool_is_refused_without_its_extra(log: Path) -> None:
    # A module of that name, in place of the package.
    (log.parent / "site" / "opentelemetry.py").write_text("")
    with pytest.raises(
        PluginError, match=r"'opentelemetry' .* ModuleNotFoundError: .*; pip install 'codex-pool\[otel\]'"
    ):
        hooks_of(["opentelemetry"])
