"""Session files of codex as they are archived: found, redacted, bounded, and never a reason to fail."""

from __future__ import annotations

import asyncio
import io
import json
import zlib
from pathlib import Path

import pytest
from rollout_files import THREADS, lines, write_home

from codex_batch.redaction.redactor import Redactor
from codex_batch.run import rollout_archive
from codex_batch.run.rollout_archive import RolloutArchive, kept_lines
from codex_batch.store import Rollout

pytestmark = pytest.mark.quick


def text_of(rollout: Rollout) -> bytes:
    assert rollout.lines is not None
    return zlib.decompress(rollout.lines, 16 + zlib.MAX_WBITS)


def read(path: Path, name: str, redactor: Redactor | None = None) -> list[Rollout]:
    return RolloutArchive(redactor or Redactor()).read(THREADS[name], path)


def test_a_file_is_kept_as_it_is(tmp_path: Path) -> None:
    (rollout,) = read(write_home(tmp_path, "commands")["commands"], "commands")
    assert text_of(rollout).splitlines() == lines("commands")
    assert (rollout.relation, rollout.parent_id, rollout.cut_bytes, rollout.note) == ("own", None, 0, None)
    assert rollout.size_bytes == len(text_of(rollout))


def test_a_sub_agent_of_the_next_day_and_the_origin_of_a_fork_are_found(tmp_path: Path) -> None:
    path = write_home(tmp_path, "sub-agents")["sub-agents"]
    write_home(tmp_path, "child", day="2026/12/01")
    own, child = read(path, "sub-agents")
    assert (child.thread_id, child.relation, child.parent_id) == (THREADS["child"], "sub-agent", own.thread_id)
    assert text_of(child).splitlines() == lines("child")
    paths = write_home(tmp_path, "origin", "fork")
    own, origin = read(paths["fork"], "fork")
    assert (origin.thread_id, origin.relation, origin.parent_id) == (THREADS["origin"], "origin", THREADS["fork"])


def test_a_sub_agent_is_found_by_the_output_of_its_call_alone(tmp_path: Path) -> None:
    """codex 0.147 writes no item of it."""
    paths = write_home(tmp_path, "sub-agents", "child")
    rest = [line for line in lines("sub-agents") if b"CollabAgentToolCall" not in line]
    paths["sub-agents"].write_bytes(b"".join(line + b"\n" for line in rest))
    assert [each.thread_id for each in read(paths["sub-agents"], "sub-agents")][1:] == [THREADS["child"]]
    # The same words in the output of another call start none.
    other = [line.replace(b'"name":"spawn_agent"', b'"name":"other"') for line in rest]
    paths["sub-agents"].write_bytes(b"".join(line + b"\n" for line in other))
    assert len(read(paths["sub-agents"], "sub-agents")) == 1


def test_what_is_missing_is_noted(tmp_path: Path) -> None:
    path = write_home(tmp_path, "sub-agents")["sub-agents"]
    own, child = read(path, "sub-agents")
    assert own.lines is not None
    assert child.lines is None and child.note is not None
    assert child.note.startswith("cannot be read: FileNotFoundError: no session file of thread")
    path.unlink()
    (own,) = read(path, "sub-agents")
    assert own.lines is None and own.note is not None and "No such file" in own.note


def test_a_file_that_cannot_be_taken_apart_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr(rollout_archive, "_others", fail)
    (rollout,) = read(write_home(tmp_path, "commands")["commands"], "commands")
    assert (rollout.lines, rollout.note) == (None, "cannot be read: ValueError: no")


def test_secrets_are_taken_out(tmp_path: Path) -> None:
    redactor = Redactor({"NAME": "unsupported custom tool call"})
    (rollout,) = read(write_home(tmp_path, "commands")["commands"], "commands", redactor)
    assert b"unsupported custom tool call" not in text_of(rollout)
    assert b'"output":"[redacted NAME]: apply_patch"' in text_of(rollout)


def test_nothing_is_read_without_a_path_or_when_it_is_off(tmp_path: Path) -> None:
    path = write_home(tmp_path, "commands")["commands"]
    assert asyncio.run(RolloutArchive().of("t", None)) == []
    assert asyncio.run(RolloutArchive(is_on=False).of("t", str(path))) == []


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in {"HEAD_BYTES": 100, "TAIL_BYTES": 50, "LINE_BYTES": 40}.items():
        monkeypatch.setattr(rollout_archive, name, count)


def kept(data: bytes) -> list[tuple[bytes, int]]:
    return list(kept_lines(io.BytesIO(data), len(data)))


@pytest.mark.usefixtures("small")
def test_of_a_long_file_the_middle_is_left_out_and_counted() -> None:
    data = b"".join(b"line %04d\n" % number for number in range(100))
    found = kept(data)
    ((marker, cut),) = [each for each in found if each[1]]
    assert json.loads(marker) == {"type": "codex_pool_cut", "payload": {"bytes": cut}}
    rest = [line for line, left_out in found if not left_out]
    assert rest[:10] == [b"line %04d" % number for number in range(10)]
    assert rest[-1] == b"line 0099"
    assert len(data) == cut + sum(len(line) + 1 for line in rest)


@pytest.mark.usefixtures("small")
def test_a_long_line_is_left_out_and_the_lines_around_it_are_kept() -> None:
    assert kept(b"before\n" + b"x" * 99 + b"\nafter\n") == [
        (b"before", 0),
        (b'{"type":"codex_pool_cut","payload":{"bytes":100}}', 100),
        (b"after", 0),
    ]


@pytest.mark.usefixtures("small")
def test_a_line_that_is_still_written_is_not_there_yet() -> None:
    assert kept(b"one\ntwo") == [(b"one", 0)]


def test_an_attempt_has_a_bound_of_threads_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_home(tmp_path, "sub-agents", "child")
    monkeypatch.setattr(rollout_archive, "ATTEMPT_BYTES", 1)
    own, child = read(paths["sub-agents"], "sub-agents")
    assert own.lines is not None and child.lines is None
    assert child.note == "left out: an attempt may have 64 threads and 1 bytes"
