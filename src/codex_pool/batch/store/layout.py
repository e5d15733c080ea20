"""The files of a run directory, who holds it, and whether it is one.

run.sqlite      the truth: samples, attempts, records, scores
results.jsonl   made of it: one line a finished sample
events/         compressed event logs
artifacts/      a directory for each sample: its diff, and what its scorers left
config.json     what was run: configuration, versions, state of the dataset
lock            held by the process that writes; its pid
pool.log        what the pool's processes logged
home/, work/    the run's CODEX_HOME; a directory for each sample that names none
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from pathlib import Path

from codex_app_server import _fork

DATABASE, RESULTS, CONFIG, LOCK, LOG = "run.sqlite", "results.jsonl", "config.json", "lock", "pool.log"
EVENTS, ARTIFACTS, HOME, WORK = "events", "artifacts", "home", "work"
_OF_SQLITE = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal")
_STAYING = (*_OF_SQLITE[:3], RESULTS, CONFIG, LOG, EVENTS, ARTIFACTS, HOME, "repositories")
_EARLIER = ("journal.jsonl", "run.json")
_TEMPORARY = ".partial"


class RunDirectoryError(ValueError):
    """A run directory that cannot be used; the message says why and what to do."""


def safe_name(text: str) -> str:
    """A file name for a text: the text itself where that is safe, else what is safe of it and a hash of all."""
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:48].lstrip(".") + "~" + digest


def directory_name(sample_id: str, epoch: int) -> str:
    """The name of a sample's own directories."""
    return safe_name(sample_id if epoch == 1 else f"{sample_id}\0epoch {epoch}")


def shown_name(sample_id: str, epoch: int) -> str:
    """A sample as people read it."""
    return sample_id if epoch == 1 else f"{sample_id}#{epoch}"


def staying(directory: Path) -> list[Path]:
    """What stays for as long as a run goes on, and holds what an agent is not to read."""
    return [directory / name for name in _STAYING]


def take_lock(path: Path) -> int:
    """A descriptor that holds the directory until it is closed. Raises RunDirectoryError naming the holder's pid."""
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


def holder(path: Path) -> int | None:
    """The pid of the process that holds a run directory, None if nobody does."""
    try:
        held = _fork.Held(lambda: os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return None
    with held as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(lock, 32).decode("ascii", "replace").strip()
            return int(text) if text.isdigit() else 0
    return None


def refuse_foreign(path: Path, *, fresh: bool) -> None:
    """Raises RunDirectoryError when what lies there is not of a run, or is of an earlier layout and not to go."""
    if (path / DATABASE).exists():
        return
    earlier = [name for name in (*_EARLIER, RESULTS) if (path / name).exists()]
    if earlier and not fresh:
        raise RunDirectoryError(
            f"{path} has {' and '.join(earlier)} but no {DATABASE}: it was made by an earlier codex-pool, or its "
            "database was taken away; use another directory, or --fresh to remove what is there"
        )
    for name in () if earlier else (HOME, WORK, EVENTS, ARTIFACTS):
        if (path / name).exists():
            raise RunDirectoryError(
                f"{path} has a {name}/ but no {DATABASE}: it is not the directory of a batch; name another"
            )


def clear(path: Path) -> None:
    """Remove what a run left, and nothing else. Raises RunDirectoryError for a directory that is a link."""
    for name in (HOME, WORK, EVENTS, ARTIFACTS):
        # A symbolic link is somebody's decision; what it points to is not ours.
        if (path / name).is_symlink():
            raise RunDirectoryError(f"{path / name} is a symbolic link; remove it yourself")
    for name in (HOME, WORK, EVENTS, ARTIFACTS):
        shutil.rmtree(path / name, ignore_errors=True)
    # The database last: as long as it is there the directory is known as a run's.
    for name in (RESULTS, CONFIG, LOG, *_EARLIER, *reversed(_OF_SQLITE)):
        for file in (path / name, path / (name + _TEMPORARY)):
            file.unlink(missing_ok=True)


def partial(path: Path) -> Path:
    """Where a file is written before it is renamed to its name."""
    return path.with_name(path.name + _TEMPORARY)


def replace(path: Path, data: bytes) -> None:
    """Write a file beside and rename it over: it is there whole or as it was."""
    temporary = partial(path)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
