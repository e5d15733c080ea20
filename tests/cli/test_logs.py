"""`codex-pool logs`, doctor and debug-bundle at a daemon of null app-servers that logs to a file."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import codex_pool as command
from programs import running
from waiting import until

from codex_app_server.testing import null_app_server
from codex_pool import Pool
from codex_pool.worker.stderr_log import MAX_LINES, WINDOW_S, StderrLog
from codex_pool_cli.log_tail import LogTail, OfWorker

SECRET = "logged-secret-9f8e7d6c"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "pool.log"
    path.write_text("a\nb\n")
    return path


def test_lines_are_read_as_they_come(log: Path) -> None:
    tail = LogTail(log)
    assert tail.last() == ["a", "b"] and tail.more() == []
    with log.open("a") as file:
        file.write("c\nhal")
    assert tail.more() == ["c"]
    with log.open("a") as file:
        file.write("f\n")
    assert tail.more() == ["half"]
    tail.close()


def test_a_file_that_was_rotated_or_truncated_is_read_on(log: Path) -> None:
    tail = LogTail(log)
    tail.last()
    with log.open("a") as file:
        file.write("last of the old\n")
    log.rename(log.with_suffix(".1"))
    assert tail.more() == ["last of the old"]
    log.write_text("first of the new\n")
    assert tail.more() == ["first of the new"]
    os.truncate(log, 0)
    assert tail.more() == []
    log.write_text("again\n")
    assert tail.more() == ["again"]
    tail.close()


def test_lines_of_a_worker_are_its_own_and_those_that_name_it() -> None:
    lines = [
        "2026-11-29 10:00:00.123 INFO supervisor[1] w0.1-aa is ready",
        "2026-11-29 10:00:00.123 INFO supervisor[1] w0.11-aa is ready",
        "2026-11-29 10:00:00.123 WARNING worker[7] app-server: Error: no",
        "  a line of its traceback",
        "2026-11-29 10:00:00.123 WARNING broker[2] another",
        "  and its traceback",
    ]
    chosen = OfWorker("w0.1-aa", 7)
    assert [line for line in lines if chosen.takes(line)] == [lines[0], lines[2], lines[3]]
    everything = OfWorker(None)
    assert all(everything.takes(line) for line in lines)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("Error: no such model", True),
        ("\x1b[31mERROR\x1b[0m", True),
        ("2026-11-29T10:00:00.1Z  WARN codex_core::client: retrying", True),
        ("2026-11-29T10:00:00.1Z ERROR codex_core: failed", True),
        ("2026-11-29T10:00:00.1Z  INFO codex_core: started", False),
        ("thread 'main' panicked at src/x.rs:1:2:", True),
        ("   0: <unknown>", False),
        ("Stack backtrace:", False),
        # The pool reports it, with the remedy.
        ("2026-11-29T10:00:00.1Z ERROR codex_app_server: Invalid configuration; using defaults. x:1:2: bad", False),
        ("hello", False),
        ("", False),
    ],
)
def test_warnings_and_errors_of_an_app_server_are_logged_and_backtraces_are_not(line: str, told: bool) -> None:
    assert bool(StderrLog().take(line, 1.0)) is told


def test_a_burst_of_an_app_servers_stderr_is_cut_and_counted() -> None:
    log = StderrLog()
    assert sum(len(log.take("Error: x", 1.0)) for _ in range(MAX_LINES + 5)) == MAX_LINES
    assert log.take("Error: y", 1.0 + WINDOW_S) == [
        "app-server: 5 lines of its stderr left out",
        "app-server: Error: y",
    ]


@pytest.fixture
def daemon(runtime_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CODEX_POOL_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    (runtime_directory / "codex-pool").mkdir(mode=0o700)
    log = tmp_path / "pool.log"
    endpoint = f"ipc://{runtime_directory}/codex-pool/default.sock"
    config = null_app_server()
    script = 'echo "Error: no such model" >&2; echo "   0: <unknown>" >&2; exec "$@"'
    config.launch_args_override = ("/bin/sh", "-c", script, "sh", *config.argv())
    with Pool(1, config, endpoint=endpoint, log_file=log):
        yield log


def test_the_log_of_a_daemon_is_shown_and_in_its_bundle(daemon: Path, tmp_path: Path) -> None:
    until(lambda: "app-server: Error" in daemon.read_text())
    with daemon.open("a") as file:
        file.write(f"2026-11-29 10:00:00.123 WARNING broker[1] it was {SECRET}\n")
    done = command("logs")
    assert done.returncode == 0 and "w0.1-" in done.stdout and SECRET not in done.stdout
    assert "[redacted SOME_TOKEN]" in done.stdout
    assert len(command("logs", "-n", "1").stdout.splitlines()) == 1
    of_worker = command("logs", "0").stdout
    assert "broker" not in of_worker and "<unknown>" not in of_worker
    assert "] app-server: Error: no such model\n" in of_worker
    bad = command("logs", "9")
    assert bad.returncode == 2 and "slot 9 has no worker now; there are slots 0" in bad.stderr

    found = json.loads(command("doctor", "--json", home=tmp_path / "home").stdout)["findings"]
    assert [each["level"] for each in found if each["check"] == "daemon"] == ["ok"]
    bundle = tmp_path / "bundle.tar.gz"
    assert command("debug-bundle", "-o", str(bundle), home=tmp_path / "home").returncode == 0
    with tarfile.open(bundle) as archive:
        content = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}  # type: ignore[union-attr]
    assert "is ready" in content["codex-pool-debug/log.txt"] and not any(SECRET in text for text in content.values())
    assert json.loads(content["codex-pool-debug/status.json"])["trace"]["events"]


def test_a_log_is_followed(daemon: Path) -> None:
    with running("logs", "-f", "-n", "0") as program:
        line = "2026-11-29 10:00:00.123 INFO broker[1] "
        # Until the command reads, lines are of before it.
        for number in range(100):
            with daemon.open("a") as file:
                file.write(f"{line}{number}\n")
            try:
                program.wait_for_line(line, "stdout", 0.3)
                break
            except AssertionError:
                continue
        assert program.wait_for_line(line, "stdout", 1.0)
        assert program.end() == 130


def test_a_daemon_without_a_log_file_says_where_its_log_is(runtime_directory: Path) -> None:
    (runtime_directory / "codex-pool").mkdir(mode=0o700)
    with Pool(1, null_app_server(), endpoint=f"ipc://{runtime_directory}/codex-pool/default.sock"):
        done = command("logs")
    assert done.returncode == 1 and "serve --log-file FILE" in done.stderr and done.stdout == ""
