"""Standard streams of the command that are closed, full, or whose reader is gone: no traceback, and no work is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import LIMIT_S, environment

pytestmark = pytest.mark.real

COMMAND = [sys.executable, "-m", "codex_pool_cli"]
READER_GONE = 141
TASKS = '{"id": "a", "prompt": "hello", "target": "x"}\n'


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tasks.jsonl").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done."""
    path = tmp_path_factory.mktemp("done")
    (path / "tasks.jsonl").write_text(TASKS)
    shell(f"batch {path}/tasks.jsonl --demo --workers 1 --scorer exact -o {path}/run")
    return path / "run"


def shell(arguments: str, redirection: str = "") -> subprocess.CompletedProcess[str]:
    """`codex-pool ARGUMENTS REDIRECTION` as a shell runs it; the exit code is that of the command."""
    script = f'"$0" -m codex_pool_cli {arguments} {redirection}'
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", script, sys.executable],
        env=environment(None),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


PRINTING = ["--help", "--version", "batch --help", "runs list RUN", "runs show RUN", "runs tail RUN", "runs export RUN"]
PRINTING += ["report RUN -o page.html", "keys show-server --keys keys", "run --demo hello"]


@pytest.mark.parametrize("arguments", PRINTING)
def test_a_verb_that_prints(arguments: str, done: Path, directory: Path) -> None:
    arguments = arguments.replace("RUN", str(done))
    plain = shell(arguments)
    assert plain.returncode == 0, plain.stderr
    closed = shell(arguments, ">&-")
    assert (closed.returncode, closed.stderr) == (0, plain.stderr)
    gone = shell(arguments, "| true")
    # It may have been printed before the reader was gone.
    assert gone.returncode in (0, READER_GONE) and gone.stderr == plain.stderr
    full = shell(arguments, ">/dev/full")
    words = "codex-pool: standard output cannot be written: No space left on device; what was to be printed is not "
    assert full.returncode == 1 and full.stderr == f"{plain.stderr}{words}complete\n"
    for redirection in ("2>&-", "2>/dev/full", "<&-"):
        other = shell(arguments, redirection)
        assert (other.returncode, len(other.stdout)) == (0, len(plain.stdout))


@pytest.fixture
def gone() -> Iterator[int]:
    """A pipe that nobody reads from."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_a_reader_that_is_gone_ends_a_turn_as_sigpipe_does(gone: int) -> None:
    done = subprocess.run([*COMMAND, "run", "--demo", "hello"], stdout=gone, stderr=subprocess.PIPE, timeout=LIMIT_S)
    assert (done.returncode, done.stderr) == (READER_GONE, b"")


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_batch_goes_on_whatever_its_streams_are(redirection: str, directory: Path) -> None:
    done = shell("batch tasks.jsonl --demo --workers 1 --json -o out", redirection)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (directory / "out" / "results.jsonl").read_text().count('"completed"') == 1
    # A file that got the number of a closed stream would hold what was printed.
    assert "launch" not in (directory / "out" / "pool.log").read_text()


def test_scoring_goes_on_without_a_reader(done: Path, gone: int) -> None:
    command = [*COMMAND, "score", str(done), "--json"]
    found = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
    assert found.returncode == 0
    assert found.stderr.count("standard output cannot be written: Broken pipe; scoring goes on") == 1


def test_a_daemon_goes_on_without_a_reader(gone: int) -> None:
    with subprocess.Popen(
        [*COMMAND, "serve", "--demo", "--workers", "1", "--json"], stdout=gone, stderr=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stderr is not None
        try:
            lines = []
            for line in daemon.stderr:
                lines.append(line)
                if "stop  Ctrl-C" in line:
                    break
            assert daemon.poll() is None, lines
            assert any("Broken pipe; the daemon goes on" in line for line in lines), lines
            daemon.send_signal(signal.SIGTERM)
            daemon.stderr.read()
            assert daemon.wait(LIMIT_S) == 0
        finally:
            daemon.kill()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("batch - --demo -o out", "the dataset is empty"),
        ("run --demo -", "the prompt is empty; give a text as PROMPT, or `-` and the text on stdin"),
        ("run --demo ''", "the prompt is empty"),
        ("login --api-key", "no API key"),
    ],
)
def test_what_is_to_be_read_from_a_closed_stdin_is_empty(arguments: str, words: str, directory: Path) -> None:
    done = shell(arguments, "<&-")
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
