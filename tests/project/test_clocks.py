"""Steps of the system's clock change no wait. Clocks are injected: nothing here steps the machine's.

What waits is measured by CLOCK_MONOTONIC. The system's clock is for display, for records, and for times that come from
elsewhere: of tokens, and of a reset of the account's rate limit.
"""

from __future__ import annotations

import ast
import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_bench import Bench
from test_account_holder import HOUR, NOW, decide, due, login

import codex_app_server
import codex_batch
import codex_pool
import codex_pool_cli
from codex_batch.manage import runs
from codex_batch.store import Entry, RecordRow, RunDirectory, SampleRow
from codex_pool.account.auth_content import RUNTIME_WINDOW_S
from codex_pool.account.holder import Ask, Holder, Lineage
from codex_pool.protocol import wire

DAY = 86400.0
STEPS = [2 * DAY, -2 * DAY, -HOUR]

# Who reads the system's clock, or times of files, and for what.
READS = {
    "codex_app_server/_runtime/bundled_tools.py": "a cache is renewed when the file has another time, whatever it is",
    "codex_app_server/testing/_null_app_server.py": "a time in a notification, for benchmarks",
    "codex_app_server/testing/loopback/server.py": "a time in a delta, for benchmarks",
    "codex_app_server/testing/issuer.py": "tokens of tests",
    "codex_pool/supervisor/codex_upgrades.py": "a binary is another one when its file has another time, whatever it is",
    "codex_pool/supervisor/self_upgrade.py": "a package is another one when its file has another time, whatever it is",
    "codex_pool_cli/checks/home.py": "the age of a log-in, for display",
    "codex_pool_cli/checks/keys.py": "how long a key is valid, for display",
    "codex_pool_cli/checks/system.py": "a step of the system's clock is what it looks for",
    "codex_pool_cli/debug_bundle.py": "the name of a file, and the time of what it holds",
    "codex_pool/account/auth_file.py": "a file is read again when it has another time, whatever it is",
    "codex_pool/account/auth_content.py": "a time in a file is read, or written",
    "codex_pool/account/loop.py": "the expiry of tokens, see the tests here",
    "codex_batch/export/inspect_log.py": "display",
    "codex_batch/export/harbor/values.py": "display",
    "codex_batch/gates/junit.py": "display",
    "codex_batch/report/units.py": "display",
    "codex_batch/hosts/remote_executor.py": "records",
    "codex_batch/run/executor.py": "records",
    "codex_batch/run/harbor_attempt.py": "records",
    "codex_batch/run/harbor_steps.py": "records",
    "codex_batch/run/local_executor.py": "records",
    "codex_batch/run/monitor.py": "a file is read again when it has another time, whatever it is",
    "codex_batch/run/recovery.py": "records",
    "codex_batch/run/sample_task.py": "records",
    "codex_batch/scoring/dependencies.py": "a large file is another one when it has another time, whatever it is",
    "codex_batch/store/directory.py": "records",
    "codex_batch/view/live_result.py": "a run is read again when its files have other times, whatever they are",
    "codex_batch/workspace/large_files.py": "a file is another one when it has another time, whatever it is",
    "codex_pool_cli/account.py": "display",
    "codex_pool_cli/keys.py": "display",
    "codex_pool_cli/runs.py": "display",
    "codex_pool_cli/runs_list.py": "display",
    "codex_pool/runtime/log.py": "display",
    "codex_pool/auth/keys.py": "records; keys expire by it; a file is read again when it has another time",
    "codex_pool/broker/audit_log.py": "display",
    "codex_pool/auth/usage_store.py": "records of workers that are gone are kept for 30 days",
    "codex_pool/broker/usage_writer.py": "rows of the present day are read",
    "codex_pool/auth/ownership.py": "records of threads that are gone are kept for 7 days",
    "codex_pool/gateway/listeners/pages.py": "a file is read again when it has another time, whatever it is",
    "codex_pool/supervisor/token_holder.py": "a file is read again when it has another time, whatever it is",
    "codex_pool/supervisor/sqlite_homes.py": "which of several homes is taken first",
    "codex_pool/supervisor/system_skills.py": "a binary is another one when its file has another time, whatever it is",
    "codex_pool/supervisor/lock.py": "a list is written again when its file has another time, whatever it is",
    "codex_pool/tracer/process.py": "the offset of Unix time, once for all spans, for display",
    "codex_pool/supervisor/broker_child.py": "the offset of Unix time, once for all brokers, see the tests here",
}
CLOCKS = {
    ("time", "time"),
    ("time", "time_ns"),
    ("time", "localtime"),
    ("time", "gmtime"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
    ("datetime", "fromtimestamp"),
    ("date", "today"),
}
FILE_TIMES = {"st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "st_atime", "st_atime_ns", "getmtime", "getctime"}


def readers(root: Path) -> Iterator[str]:
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert not {name.name for name in node.names} & {"time", "time_ns"}, f"{path}: import the module"
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if (owner, node.attr) in CLOCKS or node.attr in FILE_TIMES:
                yield path.relative_to(root.parent).as_posix()


def test_whoever_reads_the_systems_clock_is_known_to_wait_for_nothing_by_it() -> None:
    packages = (codex_app_server, codex_pool, codex_batch, codex_pool_cli)
    found = {name for package in packages for name in readers(Path(package.__file__ or "").parent)}
    assert found == READS.keys()


# Tokens: their times are the issuer's.


@pytest.mark.parametrize("step_s", STEPS)
def test_tokens_that_have_lasted_for_their_time_are_not_given_whatever_the_clock_says(step_s: float) -> None:
    holder, lineage = Holder(), Lineage().with_login(login("r1")).with_login(login("r2"))
    assert due(holder, login("r2"), NOW, at=100.0) is not None
    assert decide(holder, "r1", login("r2"), lineage, at=160.0, now=NOW + 60).status == 200
    late = 100.0 + HOUR
    assert decide(holder, "r1", login("r2"), lineage, at=late, now=NOW + HOUR + step_s) == Ask("r2", write=True)


@pytest.mark.parametrize("step_s", [-2 * DAY, -HOUR])
def test_a_clock_that_was_stepped_back_does_not_put_off_the_refresh(step_s: float) -> None:
    holder, usable_s = Holder(), HOUR - RUNTIME_WINDOW_S
    before = due(holder, login("r1"), NOW, at=100.0)
    assert before is not None and due(holder, login("r1"), NOW + 600 + step_s, at=700.0) == pytest.approx(before - 600)
    assert due(holder, login("r1"), NOW + usable_s + step_s, at=100.0 + usable_s) == 0.0


def test_a_clock_that_was_stepped_forward_does_not_have_it_refresh_again_and_again() -> None:
    holder = Holder()
    assert due(holder, login("r1"), NOW, at=100.0) is not None
    assert due(holder, login("r1"), NOW + 2 * DAY, at=101.0) == 0.0
    waits = [due(holder, login(f"r{n}"), NOW + 2 * DAY, at=100.0 * n) for n in range(2, 5)]
    assert waits == [(HOUR - RUNTIME_WINDOW_S) / 2] * 3


# The reset of a rate limit: its time is the provider's.


@pytest.mark.parametrize("step_s", [0.0, *STEPS])
def test_a_step_of_the_clock_changes_no_pause(step_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a broker that starts after it: the offset is the supervisor's."""
    offset = NOW - 1000.0
    first, second = Bench(slots=1, unix_offset=offset), Bench(slots=1, unix_offset=offset)
    monkeypatch.setattr(time, "time", lambda: NOW + step_s)
    for bench in (first, second):
        bench.now = 1060.0
        worker = bench.register("w0")
        bench.from_worker(worker, wire.Limited("usageLimitExceeded", round(NOW + 360)))
        assert bench.status()["rateLimiter"]["pausedMs"] == 300_000


# Runs that are followed.


def test_samples_that_end_after_the_clock_was_stepped_back_are_told(tmp_path: Path) -> None:
    told: queue.Queue[SampleRow] = queue.Queue()
    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        directory.launch({"dataset": {"name": "d.jsonl"}})
        directory.load([Entry(str(n), 1, "d", {"id": str(n), "prompts": ["p"]}) for n in range(2)], "d")
        follower = threading.Thread(target=runs.tail, args=(tmp_path, 0, True, told.put))
        follower.start()
        for n, ended_at in ((1, NOW), (2, NOW - 2 * DAY)):
            start = directory.start_attempt(n, "k", None).result(5)
            record = RecordRow("completed", 1, ended_at=ended_at)
            directory.finish(start, record, {"status": "completed"}).result(5)
            assert told.get(timeout=20).id == str(n - 1)
        directory.outcome("finished", {})
    follower.join(20)
    assert not follower.is_alive()
