"""The supervisor's relatives: neither a child that is stopped nor a parent that does not read can stop it."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time

import msgspec

from codex_pool.supervisor.child_process import Child

ECHO = [
    sys.executable,
    "-c",
    "import sys\nfor line in sys.stdin: sys.stdout.write(line); sys.stdout.flush()",
]
# Fills its stdout, whose reader sleeps, and says on stderr how far it has come.
REPORTER = """
import os, sys
from codex_pool.supervisor.child_process import Reports
reports = Reports()
for number in range(3000):
    reports.add({"event": "slots", "number": number, "filler": "x" * 100})
reports.add({"event": "ready"})
print("written", file=sys.stderr, flush=True)
sys.stdin.readline()
reports.last({"event": "failed"})
"""


class Arguments(msgspec.Struct):
    """Arguments that a child is started with."""

    name: str


def gather(child: Child, count: int, timeout_s: float = 10.0) -> list[dict[str, object]]:
    """So many reports of a child that gets on with what waits for it."""
    records: list[dict[str, object]] = []
    deadline = time.monotonic() + timeout_s
    while len(records) < count:
        assert time.monotonic() < deadline, f"{len(records)} of {count}"
        child.flush()
        found, ended = child.reports()
        assert not ended
        records += found
        time.sleep(0.002)
    return records


def test_a_child_that_is_stopped_does_not_stop_its_parent() -> None:
    child = Child(ECHO, Arguments("a"))
    os.kill(child.pid, signal.SIGSTOP)
    filler = "x" * 10_000
    for number in range(100):
        child.send({"number": number, "filler": filler})
    assert not child.flush(), "a pipe holds less than that"
    os.kill(child.pid, signal.SIGCONT)
    records = gather(child, 101)
    assert records[0] == {"name": "a"}
    assert [record["number"] for record in records[1:]] == list(range(100)), "in order, each once, none by halves"
    child.close_stdin()
    assert child.reap(10) == "exit code 0"


def test_long_start_arguments_are_written_as_the_child_reads() -> None:
    """Not at the next tick of a clock: a pipe holds 64 KiB."""
    child, reported = Child(ECHO, Arguments("a" * 500_000)), False

    def on_reports() -> None:
        nonlocal reported
        reported = bool(child.reports()[0])

    with selectors.DefaultSelector() as selector:
        child.watch(selector, on_reports)
        assert len(selector.get_map()) == 2
        while not reported:
            events = selector.select(10)
            assert events, "nothing to do, and the arguments have not come back"
            for key, _ in events:
                key.data()
        assert child.last_report == {"name": "a" * 500_000}
        assert len(selector.get_map()) == 1
        child.send({"more": "b"})
        child.unwatch(selector)
        assert not selector.get_map()
    child.close_stdin()
    assert child.reap(10) == "exit code 0"


def test_a_child_that_has_not_read_its_arguments_can_be_asked_to_end() -> None:
    child = Child(["/bin/sleep", "60"], Arguments("a" * 500_000))
    with selectors.DefaultSelector() as selector:
        child.watch(selector, lambda: None)
        child.close_stdin()
        assert len(selector.get_map()) == 1
        child.unwatch(selector)
        assert not selector.get_map()
    child.kill()
    assert child.reap(10) == "killed by SIGKILL"


def test_a_child_that_is_dead_is_told_nothing() -> None:
    child = Child(["/bin/true"], Arguments("a"))
    while not child.reports()[1]:
        time.sleep(0.002)
    for _ in range(10):
        child.send({"filler": "x" * 100_000})
    assert child.flush() and child.reap(10) == "exit code 0"
    child.send({"after": "its end"})


def test_what_a_child_says_that_is_no_report_is_ignored() -> None:
    script = r"""printf 'not json\n[1]\n7\n\377\n{"a":"\377"}\n%s\n{"event": "ready"}\n' """ + "[" * 9000
    child = Child(["/bin/sh", "-c", script], Arguments("a"))
    records: list[dict[str, object]] = []
    while True:
        found, ended = child.reports()
        records += found
        if ended:
            break
        time.sleep(0.002)
    assert records == [{"event": "ready"}] and child.last_report == {"event": "ready"}
    child.reap(10)


def test_a_parent_that_does_not_read_does_not_stop_the_supervisor() -> None:
    reporter = subprocess.Popen(
        [sys.executable, "-c", REPORTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert reporter.stdin is not None and reporter.stdout is not None and reporter.stderr is not None
    assert reporter.stderr.readline() == b"written\n", "it was not held up"
    reporter.stdin.write(b"\n")
    reporter.stdin.close()
    records = [json.loads(line) for line in reporter.stdout]
    reporter.stdout.close()
    reporter.stderr.close()
    assert reporter.wait(10) == 0
    assert [record["event"] for record in records[-3:]] == ["slots", "ready", "failed"]
    assert records[-3]["number"] == 2999, "the last states, whatever was left out before them"
    numbers = [record["number"] for record in records if "number" in record]
    assert numbers == sorted(numbers) and len(numbers) < 2999
