"""Layout of a run directory: its names, the process that holds it, and how to recognise one.

run.sqlite      the truth: samples, attempts, records, scores
results.jsonl   made of it: one line a finished sample
events/         compressed event logs
rollouts/       compressed session files of codex, of each attempt
artifacts/      a directory for each sample: its diff, and what its scorers left
config.json     what was run: configuration, versions, state of the dataset
lock            held by the process that writes; its pid
pool.log        what the pool's processes logged
batch.log       what a run in the background printed
progress.json   what the run shows, for `attach`
control/        requests to the run, one file each
live/           events so far of attempts that run and that somebody looks at
home/, work/    the run's CODEX_HOME; a directory for each sample that names none
rescoring/      directories of samples that are scored again; removed at the end of it
repositories/   commits of the git repositories that samples name: a cache, which `--fresh` keeps
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from functools import lru_cache
from pathlib import Path

from codex_app_server._runtime import fork
from codex_app_server._runtime.files import PARTIAL

DATABASE, RESULTS, CONFIG, LOCK, LOG = "run.sqlite", "results.jsonl", "config.json", "lock", "pool.log"
OUTPUT, PROGRESS, CONTROL, LIVE = "batch.log", "progress.json", "control", "live"
EVENTS, ARTIFACTS, HOME, WORK = "events", "artifacts", "home", "work"
ROLLOUTS = "rollouts"
RESCORING, REPOSITORIES = "rescoring", "repositories"
# The directory that judges work in: during a run, and while it is scored again.
JUDGE, RESCORING_JUDGE = f"{WORK}/.judge", f"{RESCORING}/judge"
# In the directory of a sample below `work`: its workspace, the repository that it is compared with, and what is known
# of it; and the workspace made once more to be scored.
WORKSPACE, BASE, WORKSPACE_STATE, REMADE = "workspace", "base.git", "workspace.json", "remade"
# Among the artifacts of a sample: what its agent changed in the workspace.
DIFF = "diff.patch"
_OF_SQLITE = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal")
_LASTING = (*_OF_SQLITE[:3], RESULTS, CONFIG, LOG, EVENTS, ROLLOUTS, ARTIFACTS, HOME, REPOSITORIES)
# A directory that has one of these and no database is not a run's.
_OWN = (HOME, WORK, EVENTS, ARTIFACTS)
_EARLIER = ("journal.jsonl", "run.json")


SampleKey = tuple[str, int, str]
"""Id, epoch and variant of a sample; the variant is empty in a run without variants."""


class RunDirectoryError(ValueError):
    """A run directory that cannot be used; the message gives the reason and the remedy."""


def safe_name(text: str) -> str:
    """A file name for a text: the text itself where that is safe, else what is safe of it and a hash of all."""
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:48].lstrip(".") + "~" + digest


@lru_cache(maxsize=1024)
def directory_name(sample_id: str, epoch: int, variant: str = "") -> str:
    """The name of a sample's own directories. Cached: a run asks for it several times while a sample is under way."""
    name = sample_id if epoch == 1 else f"{sample_id}\0epoch {epoch}"
    return safe_name(f"{name}\0variant {variant}" if variant else name)


def shown_name(sample_id: str, epoch: int, variant: str = "") -> str:
    """A sample as people read it: `ID`, `ID#EPOCH`, `ID@VARIANT`, `ID@VARIANT#EPOCH`."""
    name = f"{sample_id}@{variant}" if variant else sample_id
    return name if epoch == 1 else f"{name}#{epoch}"


def lasting_files(directory: Path) -> list[Path]:
    """Return the files that exist for as long as a run goes on, and that an agent is not to read."""
    return [directory / name for name in _LASTING]


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
    """The pid of the process that holds a run directory, None if none does."""
    try:
        held = fork.Held(lambda: os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC))
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
    for name in () if earlier else _OWN:
        if (path / name).exists():
            raise RunDirectoryError(
                f"{path} has a {name}/ but no {DATABASE}: it is not the directory of a batch; name another"
            )


def clear(path: Path) -> None:
    """Remove what a run left but its lock and the cache of repositories, and nothing else.

    Raises RunDirectoryError for a directory that is a link.
    """
    # Without a database, names that are not a run's alone may belong to another program.
    is_run = (path / DATABASE).exists()
    directories = (*_OWN, ROLLOUTS, CONTROL, LIVE, RESCORING) if is_run else _OWN
    for name in directories:
        # A symbolic link is the user's decision; what it points to is not ours.
        if (path / name).is_symlink():
            raise RunDirectoryError(f"{path / name} is a symbolic link; remove it yourself")
    for name in directories:
        shutil.rmtree(path / name, ignore_errors=True)
    if is_run:
        # Beside it may lie that of the run that clears, until that has started.
        (path / OUTPUT).unlink(missing_ok=True)
    # The database last: as long as it is there the directory is known as a run's.
    for name in (RESULTS, CONFIG, LOG, PROGRESS, *_EARLIER, *reversed(_OF_SQLITE)):
        for file in (path / name, path / (name + PARTIAL)):
            file.unlink(missing_ok=True)


def remove_rest(path: Path) -> None:
    """Remove what `clear` leaves, and the directory if nothing else is in it; no process may hold it any more."""
    (path / LOCK).unlink(missing_ok=True)
    shutil.rmtree(path / REPOSITORIES, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.rmdir()


def partial(path: Path) -> Path:
    """Return the path that a file is written to before it is renamed to its name."""
    return path.with_name(path.name + PARTIAL)
