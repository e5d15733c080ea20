"""The log of a process: its lines, and a writer that a terminal, a pipe or a disk can neither block nor end."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_disk import small_disk

from codex_pool.runtime import log
from codex_pool.runtime.writer import Writer

LIMIT_S = 20.0
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ([A-Z]+) ([a-z-]+)\[(\d+)\] (.*)")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.01)


def marker(number: int) -> bytes:
    return b"# %d lost\n" % number


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(fd)


# Lines.


def test_a_line_says_when_how_grave_and_who() -> None:
    line = log.line_of(1_700_000_000.1239, "INFO", "broker", 12, "a\nb\x1b[31m ü 100%").decode()
    match = LINE.fullmatch(line.removesuffix("\n"))
    assert match is not None and match.groups() == ("INFO", "broker", "12", r"a\nb\x1b[31m ü 100%")
    assert ".123 " in line


@pytest.mark.parametrize("letter", ["x", "é", "😀", "\x00", "\udc80"])
def test_a_long_message_is_cut_to_what_a_pipe_takes_at_once(letter: str) -> None:
    line = log.line_of(0.0, "INFO", "broker", 12, letter * 100_000)
    assert len(line) <= 4096 and line.count(b"\n") == 1 and line.endswith(b"\n")
    assert line.decode()


def test_a_record_that_cannot_be_formatted_is_logged_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("codex_pool.test")
    # Of pytest, which lets it fail.
    monkeypatch.setattr(logging.getLogger("codex_pool"), "propagate", False)
    with log.to_file("batch", tmp_path / "log"):
        logger.info("%d", "no number")
        logger.debug("too little")
        logger.info("100%% %s", "sure")
        try:
            raise ValueError("of\ntwo lines")
        except ValueError:
            logger.exception("an error")
    lines = (tmp_path / "log").read_text().splitlines()
    assert "a record that cannot be formatted: '%d'" in lines[0]
    assert lines[1].endswith(f"INFO batch[{os.getpid()}] 100% sure") and lines[2].endswith("an error")
    assert lines[3] == "  Traceback (most recent call last):" and lines[-2:] == ["  ValueError: of", "  two lines"]


# The writer.


def test_lines_are_written_in_order(pipe: tuple[int, int]) -> None:
    writer = Writer(pipe[1], 1000, marker)
    writer.write(b"one\n")
    writer.write(b"two\n")
    assert writer.settle(LIMIT_S)
    assert os.read(pipe[0], 100) == b"one\ntwo\n"
    writer.close()
    assert os.fstat(pipe[1]), "it is not the writer's to close"


def test_a_pipe_that_nobody_reads_loses_lines_and_says_so_when_it_is_read_again(pipe: tuple[int, int]) -> None:
    reasons: list[OSError | None] = []
    writer = Writer(pipe[1], 10_000, marker, on_loss=reasons.append)
    began = time.monotonic()
    numbers = itertools.count()

    def write(lines: int) -> None:
        for number in itertools.islice(numbers, lines):
            writer.write(b"%09d\n" % number)

    while writer.settle(0.5):
        write(500)
    assert writer.lost == 0 and not reasons
    write(10_000)
    assert not writer.settle(60.0), "it knows that it is in vain"
    assert time.monotonic() - began < LIMIT_S
    lost = writer.lost
    assert lost >= 9_000 and reasons == [None]
    text = b""
    while not text.endswith(b"lost\n"):
        text += os.read(pipe[0], 65536)
    *lines, said = text.splitlines()
    assert [int(line) for line in lines] == list(range(next(numbers) - lost)) and said == b"# %d lost" % lost
    writer.write(b"again\n")
    assert os.read(pipe[0], 100) == b"again\n" and writer.lost == lost
    writer.close()


def test_a_pipe_whose_reader_is_gone_loses_lines(pipe: tuple[int, int]) -> None:
    reasons: list[OSError | None] = []
    writer = Writer(pipe[1], 1000, marker, on_loss=reasons.append)
    os.close(pipe[0])
    for _ in range(3):
        writer.write(b"line\n")
        assert writer.settle(LIMIT_S)
    assert writer.lost == 3 and [type(reason) for reason in reasons] == [BrokenPipeError]
    writer.close()


def test_a_terminal_that_is_closed_loses_lines() -> None:
    controller, terminal = pty.openpty()
    writer = Writer(terminal, 1000, marker)
    writer.write(b"line\n")
    assert writer.settle(LIMIT_S) and os.read(controller, 100) == b"line\r\n"
    os.close(controller)
    writer.write(b"line\n")
    assert writer.settle(LIMIT_S) and writer.lost == 1
    writer.close()
    os.close(terminal)


def test_a_closed_descriptor_loses_lines(pipe: tuple[int, int]) -> None:
    writer = Writer(pipe[1], 1000, marker)
    os.close(pipe[1])
    writer.write(b"line\n")
    assert writer.settle(LIMIT_S) and writer.lost == 1
    writer.close()


def test_a_descriptor_that_somebody_made_non_blocking_is_waited_for(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    writer = Writer(pipe[1], 200_000, marker)
    for number in range(15_000):
        writer.write(b"%09d\n" % number)
    text = b""
    while text.count(b"\n") < 15_000:
        text += os.read(pipe[0], 65536)
    assert writer.settle(LIMIT_S) and writer.lost == 0 and not os.get_blocking(pipe[1])
    writer.close()


def test_a_full_disk_loses_lines_and_says_so_once_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        file = disk.seen / "log"
        writer = Writer(None, 1000, marker, path=str(file))
        writer.write(b"before\n")
        assert writer.settle(LIMIT_S)
        disk.fill()
        # The page that is there has room for more.
        for _ in range(100):
            writer.write(b"x" * 99 + b"\n")
            assert writer.settle(LIMIT_S)
        lost = writer.lost
        assert lost > 50
        disk.make_room()
        writer.write(b"after\n")
        writer.close()
        lines = file.read_bytes().splitlines()
        assert lines[0] == b"before" and lines[-2:] == [b"# %d lost" % lost, b"after"]
        assert lines.count(b"x" * 99) == 100 - lost


def test_the_number_is_written_although_nothing_more_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codex_pool.runtime.writer.RETRY_S", 0.05)
    directory = tmp_path / "removed"
    writer = Writer(None, 1000, marker, path=str(directory / "log"))
    writer.write(b"line\n")
    assert writer.settle(LIMIT_S) and writer.lost == 1
    directory.mkdir()
    until(lambda: (directory / "log").exists() and (directory / "log").read_bytes() == b"# 1 lost\n", "the number")
    writer.close()


def test_a_file_that_is_removed_or_replaced_is_opened_again(tmp_path: Path) -> None:
    file = tmp_path / "log"
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.set_inheritable(fd, True)
    writer = Writer(fd, 1000, marker, path=str(file))

    def write(line: bytes) -> None:
        writer.write(line)
        assert writer.settle(LIMIT_S)

    write(b"first\n")
    file.rename(tmp_path / "log.1")
    write(b"second\n")
    assert ((tmp_path / "log.1").read_bytes(), file.read_bytes()) == (b"first\n", b"second\n")
    file.unlink()
    write(b"third\n")
    assert file.read_bytes() == b"third\n" and os.get_inheritable(fd) and writer.lost == 0
    # What is started with this descriptor writes there too.
    os.write(fd, b"other\n")
    assert file.read_bytes() == b"third\nother\n"
    writer.close()
    os.close(fd)


def test_a_finaliser_may_log_while_the_thread_takes_a_line(pipe: tuple[int, int]) -> None:
    def marked(number: int) -> bytes:
        # Within the lock, as a finaliser would be called.
        writer.write(b"nested\n")
        return marker(number)

    writer = Writer(pipe[1], 20, marked)
    writer.write(b"x" * 30 + b"\n")
    writer.write(b"line\n")
    text = b""
    while not text.endswith(b"nested\n"):
        text += os.read(pipe[0], 100)
    assert text == b"# 1 lost\nline\nnested\n" and writer.lost == 1
    writer.close()


def test_a_thread_that_cannot_be_had_is_tried_again(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(pipe[1], 1000, marker)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        writer.write(b"one\n")
    writer.write(b"two\n")
    assert writer.settle(LIMIT_S) and os.read(pipe[0], 100) == b"one\ntwo\n"
    writer.close()


# A process.

PROCESS = """
import logging, sys, threading, warnings
from codex_pool.runtime import log
log.begin("broker", *sys.argv[2:])
for number in range(int(sys.argv[1])):
    logging.getLogger("codex_pool.x").info("%d: %s", number, "x" * 60)
print("printed", file=sys.stderr)
thread = threading.Thread(target=lambda: 1 / 0)
thread.start(); thread.join()
print("worked", log.lost(), flush=True)
sys.stdin.read()
raise SystemExit("the last words")
"""


def process(stderr: int, *arguments: str, lines: int = 5000) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(lines), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


def worked(child: subprocess.Popen[bytes]) -> int:
    """Wait for its work and its end; how many lines it has lost."""
    assert child.stdout is not None and child.stdin is not None
    words = child.stdout.readline().split()
    assert words[:1] == [b"worked"]
    child.stdin.close()
    assert child.wait(LIMIT_S) == 1
    child.stdout.close()
    return int(words[1])


def test_a_process_works_and_ends_whose_log_nobody_reads(pipe: tuple[int, int]) -> None:
    assert worked(process(pipe[1])) > 0
    os.close(pipe[1])
    text = b""
    while part := os.read(pipe[0], 65536):
        text += part
    for line in text.decode().splitlines():
        assert LINE.fullmatch(line), line


def test_a_process_works_whose_terminal_is_closed() -> None:
    controller, terminal = pty.openpty()
    child = process(terminal)
    os.close(controller)
    os.close(terminal)
    worked(child)


def test_a_process_works_whose_disk_is_full() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    child = process(fd, "/dev/full")
    os.close(fd)
    assert worked(child) > 0


def test_what_is_printed_and_raised_is_logged(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as file:
        # Fewer than may wait, however late the writer's thread gets to run.
        child = process(file.fileno(), str(tmp_path / "log"), lines=1500)
    (tmp_path / "log").rename(tmp_path / "log.1")
    assert worked(child) == 0
    lines = [path.read_text().splitlines() for path in (tmp_path / "log.1", tmp_path / "log") if path.exists()]
    found = [LINE.fullmatch(line) for part in lines for line in part]
    assert all(found) and len([match for match in found if match is not None and match[1] == "INFO"]) == 1500
    words = [match[4] for match in found if match is not None and match[1] == "ERROR"]
    assert words[0] == "printed" and words[-1] == "the last words"
    assert "ZeroDivisionError: division by zero" in words
