"""RolloutArchive: copies of codex's session files, its rollouts, for the run directory: redacted, compressed, bounded.

Of one attempt these are the file of its thread, those of the threads that it was forked from, and those of its
sub-agents. codex names them `sessions/YYYY/MM/DD/rollout-TIME-THREAD.jsonl`.
"""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from codex_app_server._runtime import threads

from ..redaction.redactor import NOTHING, Redactor
from ..store import EventLog, Rollout
from ..store.rollouts import CUT, ORIGIN, OWN, SUB_AGENT

# Of a longer file the beginning and the end are kept.
HEAD_BYTES, TAIL_BYTES = 24 * 2**20, 8 * 2**20
# A longer line is left out: a picture, or the output of a tool that is one.
LINE_BYTES = 4 * 2**20
# Of one attempt.
MAX_THREADS, ATTEMPT_BYTES = 64, 128 * 2**20

_THREAD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SPAWN = "spawn_agent"
_NAMES_OTHERS = re.compile(rb'"session_meta"|"spawn_agent"|agent_id')
_log = logging.getLogger("codex_batch")


class _Item(msgspec.Struct):
    type: str = ""
    tool: str = ""
    receiver_thread_ids: list[str] = []


class _Payload(msgspec.Struct):
    type: str = ""
    forked_from_id: str | None = None
    name: str = ""
    call_id: str = ""
    output: Any = None
    item: _Item | None = None


class _Spawned(msgspec.Struct):
    agent_id: str | None = None


class _Line(msgspec.Struct):
    type: str = ""
    payload: _Payload | None = None


_decode = msgspec.json.Decoder(_Line).decode


class RolloutArchive:
    """Reads session files of codex; none if it is not `is_on`. Never fails: what cannot be read is noted."""

    def __init__(self, redactor: Redactor = NOTHING, *, is_on: bool = True) -> None:
        self._redactor = redactor
        self._is_on = is_on

    async def of(self, thread_id: str, path: str | None) -> list[Rollout]:
        """Return the session files of an attempt whose thread is stored in `path`; none of one that is not stored."""
        if path is None or not self._is_on:
            return []
        return await threads.in_thread(self.read, thread_id, Path(path))

    def read(self, thread_id: str, path: Path) -> list[Rollout]:
        """Return the session file of a thread, and those of the threads that belong to it."""
        waiting: deque[Rollout] = deque([Rollout(thread_id)])
        found: list[Rollout] = []
        known, room_bytes = {thread_id}, ATTEMPT_BYTES
        while waiting:
            one = waiting.popleft()
            if room_bytes <= 0 or len(found) == MAX_THREADS:
                bounds = f"{MAX_THREADS} threads and {ATTEMPT_BYTES:,} bytes"
                found.append(msgspec.structs.replace(one, note=f"left out: an attempt may have {bounds}"))
                continue
            try:
                read, others = self._read(one, path if one.relation == OWN else _file_of(path, one.thread_id))
            except Exception as error:
                # An archive is no reason for a sample to fail.
                if not isinstance(error, OSError):
                    _log.exception("the session file of thread %s was not archived", one.thread_id)
                why = self._redactor.text(f"{type(error).__name__}: {error}")
                read, others = msgspec.structs.replace(one, note=f"cannot be read: {why}"), []
            found.append(read)
            room_bytes -= read.size_bytes - read.cut_bytes
            for other in others:
                if other.thread_id not in known:
                    known.add(other.thread_id)
                    waiting.append(other)
        return found

    def _read(self, one: Rollout, path: Path) -> tuple[Rollout, list[Rollout]]:
        """Return a thread's file, and the threads that it names. Raises OSError."""
        log, others, cut_bytes, spawns = EventLog(self._redactor), [], 0, set[str]()
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            for line, left_out_bytes in kept_lines(file, size_bytes):
                cut_bytes += left_out_bytes
                others += _others(line, one.thread_id, spawns)
                if log.add(line):
                    log.compress()
        note = f"{cut_bytes:,} of {size_bytes:,} bytes were left out" if cut_bytes else None
        lines = log.member()
        return msgspec.structs.replace(one, size_bytes=size_bytes, cut_bytes=cut_bytes, note=note, lines=lines), others


def kept_lines(file: IO[bytes], size_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Yield the lines of a file that are kept, each with the number of bytes that it stands for but does not have.

    A last line that has no end is still being written, and is not there yet.
    """
    is_long = size_bytes > HEAD_BYTES + TAIL_BYTES
    yield from _lines_until(file, HEAD_BYTES if is_long else size_bytes)
    if is_long:
        begin = file.tell()
        file.seek(max(begin, size_bytes - TAIL_BYTES))
        while (part := file.readline(LINE_BYTES)) and not part.endswith(b"\n"):
            pass
        yield _cut(file.tell() - begin)
        yield from _lines_until(file, size_bytes)


def _lines_until(file: IO[bytes], end: int) -> Iterator[tuple[bytes, int]]:
    while file.tell() < end:
        line = file.readline(LINE_BYTES + 1)
        length, is_whole = len(line), line.endswith(b"\n")
        while line and not line.endswith(b"\n"):
            line = file.readline(LINE_BYTES)
            length += len(line)
        if is_whole:
            yield line[:-1], 0
        elif length > LINE_BYTES:
            yield _cut(length)
        else:
            return


def _cut(count_bytes: int) -> tuple[bytes, int]:
    return msgspec.json.encode({"type": CUT, "payload": {"bytes": count_bytes}}), count_bytes


def _others(line: bytes, thread_id: str, spawns: set[str]) -> list[Rollout]:
    """The threads that a line names as this one's origin, or as its sub-agents; `spawns` are calls that start some.

    Newer versions of codex name a sub-agent in an item and in the output of the call, older ones only there.
    """
    if not _NAMES_OTHERS.search(line):
        return []
    try:
        payload = _decode(line).payload
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    if payload is None:
        return []
    named: list[Any] = [(payload.forked_from_id, ORIGIN)]
    if payload.item is not None and payload.item.tool == _SPAWN:
        named += [(each, SUB_AGENT) for each in payload.item.receiver_thread_ids]
    if payload.type == "function_call" and payload.name == _SPAWN:
        spawns.add(payload.call_id)
    elif payload.call_id in spawns and isinstance(payload.output, str):
        named.append((_agent_id(payload.output), SUB_AGENT))
    return [Rollout(name, relation, thread_id) for name, relation in named if name and _THREAD_ID.fullmatch(name)]


def _agent_id(output: str) -> str | None:
    try:
        return msgspec.json.decode(output, type=_Spawned).agent_id
    except (msgspec.DecodeError, RecursionError):
        return None


def _file_of(path: Path, thread_id: str) -> Path:
    """The file of another thread in the home of the one at `path`. Raises FileNotFoundError."""
    ending = f"-{thread_id}.jsonl"
    # The newest days first: it is of the same day, mostly.
    for day in sorted(path.parents[3].glob("*/*/*"), reverse=True):
        with os.scandir(day) as entries:
            for entry in entries:
                if entry.name.endswith(ending):
                    return day / entry.name
    raise FileNotFoundError(f"no session file of thread {thread_id} in {path.parents[3]}")
