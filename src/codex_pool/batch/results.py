"""The run directory: what a batch leaves on disk, and how a later run goes on from it. The only writer of these files.

    results.jsonl   one record a sample that ended, never two of one id; what stands here as completed is done
    journal.jsonl   append-only: each attempt's start, before its turn is dispatched, and its end; superseded records
    run.json        what was run: arguments, versions, counts; written at the start and at the end
    lock            held by the run that is under way; its pid
    pool.log        what the pool's processes logged
    home/, work/    the run's CODEX_HOME; a directory for each sample that names none

A finished sample is on the disk (fsync) in results.jsonl before anything else is told. What is rewritten is written
beside and renamed over. A file cut at any byte loses at most its last line.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .dataset import Sample
from .policy import STATUSES, Outcome

SCHEMA_VERSION = 1

RESULTS, JOURNAL, RUN, LOCK, LOG, HOME, WORK = (
    "results.jsonl",
    "journal.jsonl",
    "run.json",
    "lock",
    "pool.log",
    "home",
    "work",
)
_TEMPORARY = ".partial"
_OUTCOME = tuple(field.name for field in fields(Outcome))

Record = dict[str, Any]


class RunDirectoryError(ValueError):
    """A run directory that cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Start:
    """An attempt that was started: what to look for when nobody knows how it ended."""

    sample_id: str
    attempt: int
    key: str
    thread_id: str | None


class RunDirectory:
    """The files of one run, held by this process until `close`. Methods may be called from any thread.

    Raises RunDirectoryError when the directory cannot be used, is in use, or belongs to something else.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        self._write_lock = threading.Lock()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(path)
        except OSError as error:
            raise RunDirectoryError(f"{path} cannot be a run directory: {error.strerror}; name another") from None
        try:
            self._refuse_foreign()
            if fresh:
                self._clear()
            self._load()
        except BaseException:
            os.close(self._lock)
            raise
        self._results: int | None = None
        self._journal: int | None = None

    def file(self, name: str) -> Path:
        return self.path / name

    # What an earlier run left.

    def records(self) -> dict[str, Record]:
        """The latest record of each sample that has one."""
        return dict(self._records)

    def is_done(self, sample: Sample) -> bool:
        record = self._records.get(sample.id)
        return record is not None and record["status"] == "completed"

    def unfinished(self, sample: Sample) -> Start | None:
        """The attempt at a sample that an earlier run started and never saw the end of."""
        return self._open.get(sample.id)

    def check_samples(self, samples: Iterable[Sample], dataset: str) -> None:
        """Raises RunDirectoryError when what stands here are results of other samples."""
        by_id = {sample.id: sample for sample in samples}
        strangers = [sample_id for sample_id in self._records if sample_id not in by_id]
        if strangers:
            raise RunDirectoryError(
                f"{self.file(RESULTS)} holds results of other samples, not in {dataset}: {_some(strangers)}; "
                "use another directory, or --fresh to remove what is there"
            )
        changed = [
            sample.id
            for sample in by_id.values()
            if self.is_done(sample) and self._digests.get(sample.id, sample.digest) != sample.digest
        ]
        if changed:
            raise RunDirectoryError(
                f"{self.file(RESULTS)} holds results of samples that had another prompt or other settings than in "
                f"{dataset} now: {_some(changed)}; use another directory, or --fresh to remove what is there, or take "
                "their lines out to run them again"
            )

    # A run.

    def begin(self, pending: Iterable[Sample]) -> None:
        """From now on only finished samples stand in results.jsonl: what is to be run again is set aside."""
        again = {sample.id for sample in pending}
        self._journal = os.open(self.file(JOURNAL), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        for start, record in self._unnoted:
            self._end(start, {name: record.get(name) for name in _OUTCOME}, "noted by a later run")
        for sample_id, record in self._records.items():
            if sample_id in again:
                self._note("superseded", id=sample_id, record=record)
        os.fsync(self._journal)
        self._rewrite_results(record for sample_id, record in self._records.items() if sample_id not in again)
        self._results = os.open(self.file(RESULTS), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def start_attempt(self, sample: Sample, key: str, thread_id: str | None) -> Start:
        """Note an attempt; call it before its turn is dispatched. It survives the death of this process."""
        with self._write_lock:
            number = self._attempts[sample.id] = self._attempts.get(sample.id, 0) + 1
            start = self._open[sample.id] = Start(sample.id, number, key, thread_id)
            self._note("start", id=sample.id, attempt=number, key=key, thread_id=thread_id, digest=sample.digest)
        return start

    def end_attempt(self, start: Start, outcome: Outcome, *, note: str | None = None) -> None:
        """An attempt that another one follows, or that nobody counts."""
        with self._write_lock:
            self._end(start, asdict(outcome), note)

    def finish(self, sample: Sample, start: Start, outcome: Outcome, *, note: str | None = None) -> Record:
        """The sample has ended: its record is on the disk when this returns."""
        record: Record = {
            "schema_version": SCHEMA_VERSION,
            "id": sample.id,
            "status": outcome.status,
            "final_response": outcome.final_response,
            "error": outcome.error,
            "usage": outcome.usage,
            "thread_id": outcome.thread_id,
            "turn_id": outcome.turn_id,
            "worker": outcome.worker,
            "attempts": start.attempt,
            "queued_ms": outcome.queued_ms,
            "duration_ms": outcome.duration_ms,
            "metadata": sample.metadata,
        }
        with self._write_lock:
            assert self._results is not None
            _write(self._results, [record])
            os.fsync(self._results)
            self._records[sample.id] = record
            self._end(start, asdict(outcome), note)
        return record

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Write run.json."""
        text = json.dumps({"schema_version": SCHEMA_VERSION, **run}, ensure_ascii=False, indent=2) + "\n"
        _replace(self.file(RUN), text.encode("utf-8", "backslashreplace"))

    def close(self, order: Iterable[Sample] | None = None) -> None:
        """Put the results in the order of the dataset, those not run again included, and let the directory go."""
        with self._write_lock:
            if self._results is not None and order is not None:
                self._rewrite_results(self._records[sample.id] for sample in order if sample.id in self._records)
            for descriptor in (self._results, self._journal):
                if descriptor is not None:
                    os.close(descriptor)
            self._results = self._journal = None
            os.close(self._lock)

    def work_directory(self, sample: Sample) -> str:
        """The directory a sample works in; its own below work/ if it names none."""
        if sample.cwd is not None:
            return sample.cwd
        path = self.file(WORK) / safe_name(sample.id)
        path.mkdir(parents=True, exist_ok=True)
        return str(path.resolve())

    # Reading.

    def _refuse_foreign(self) -> None:
        if any(self.file(name).exists() for name in (RUN, RESULTS, JOURNAL)):
            return
        for name in (HOME, WORK):
            if self.file(name).exists():
                raise RunDirectoryError(
                    f"{self.path} has a {name}/ but no {RUN}: it is not the directory of a batch; name another"
                )

    def _clear(self) -> None:
        for name in (RESULTS, JOURNAL, RUN, LOG):
            for path in (self.file(name), self.file(name + _TEMPORARY)):
                path.unlink(missing_ok=True)
        for name in (HOME, WORK):
            # A symbolic link is somebody's decision; what it points to is not ours.
            if self.file(name).is_symlink():
                raise RunDirectoryError(f"{self.file(name)} is a symbolic link; remove it yourself")
            shutil.rmtree(self.file(name), ignore_errors=True)

    def _load(self) -> None:
        self._records: dict[str, Record] = {}
        self._attempts: dict[str, int] = {}
        self._open: dict[str, Start] = {}
        self._unnoted: list[tuple[Start, Record]] = []
        self._digests: dict[str, str] = {}
        for number, record in self._read(RESULTS):
            if not isinstance(record.get("id"), str) or record.get("status") not in STATUSES:
                raise RunDirectoryError(
                    f"{self.file(RESULTS)}:{number}: not a record: id is {record.get('id')!r}, status is "
                    f"{record.get('status')!r}; remove the line to run its sample again, or use --fresh"
                )
            self._records[record["id"]] = record
        for _, event in self._read(JOURNAL):
            self._learn(event)
        for sample_id, start in list(self._open.items()):
            record = self._records.get(sample_id, {})
            # A record is written before the journal's end of its attempt, which a death may have kept out.
            if isinstance(record.get("attempts"), int) and record["attempts"] >= start.attempt:
                del self._open[sample_id]
                self._unnoted.append((start, record))

    def _learn(self, event: Mapping[str, Any]) -> None:
        sample_id, attempt = event.get("id"), event.get("attempt")
        if not isinstance(sample_id, str) or not isinstance(attempt, int):
            return
        if event.get("event") == "start":
            thread_id = event.get("thread_id")
            self._attempts[sample_id] = max(attempt, self._attempts.get(sample_id, 0))
            self._open[sample_id] = Start(
                sample_id, attempt, str(event.get("key")), thread_id if isinstance(thread_id, str) else None
            )
            self._digests[sample_id] = str(event.get("digest"))
        elif event.get("event") == "end" and sample_id in self._open and self._open[sample_id].attempt == attempt:
            del self._open[sample_id]

    def _read(self, name: str) -> list[tuple[int, Record]]:
        """The lines of a file with their numbers; one that a death cut short is taken off the file."""
        path = self.file(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
        lines, whole = parse_lines(data, str(path))
        if whole != data:
            _replace(path, whole)
        return lines

    # Writing.

    def _end(self, start: Start, outcome: Record, note: str | None) -> None:
        if self._open.get(start.sample_id) == start:
            del self._open[start.sample_id]
        extra = {} if note is None else {"note": note}
        self._note("end", id=start.sample_id, attempt=start.attempt, **outcome, **extra)

    def _note(self, event: str, **details: Any) -> None:
        assert self._journal is not None
        _write(self._journal, [{"event": event, "at": round(time.time(), 3), **details}])

    def _rewrite_results(self, records: Iterable[Record]) -> None:
        _replace(self.file(RESULTS), b"".join(map(_encode, records)))


def parse_lines(data: bytes, name: str) -> tuple[list[tuple[int, Record]], bytes]:
    """The objects of JSON lines with their line numbers, and the data without a torn last line.

    Raises RunDirectoryError for a bad line before the last one: no death leaves that.
    """
    found: list[tuple[int, Record]] = []
    whole = bytearray()
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                found.append((number, value))
            elif number == len(lines):
                break
            else:
                raise RunDirectoryError(
                    f"{name}:{number}: not a JSON object: {line[:60]!r}; repair or remove the line, or use --fresh"
                )
            whole += line + b"\n"
    return found, bytes(whole)


def safe_name(sample_id: str) -> str:
    """A file name for an id: the id itself where that is safe, else what is safe of it and a hash of all."""
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", sample_id):
        return sample_id
    digest = hashlib.sha256(sample_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", sample_id)[:48].lstrip(".") + "~" + digest


def _take_lock(path: Path) -> int:
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise RunDirectoryError(
            f"{path} is in use by another run (pid {holder}); wait for it, stop it, or name another directory"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, b"%d\n" % os.getpid())
    return lock


def _encode(record: Mapping[str, Any]) -> bytes:
    # What a lone surrogate becomes is an escape again, so the line stays valid JSON.
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"


def _write(descriptor: int, records: Iterable[Mapping[str, Any]]) -> None:
    data = memoryview(b"".join(map(_encode, records)))
    while data:
        data = data[os.write(descriptor, data) :]


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole, or not at all."""
    temporary = path.with_name(path.name + _TEMPORARY)
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _some(ids: list[str]) -> str:
    shown = ", ".join(repr(sample_id) for sample_id in ids[:3])
    return shown + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
