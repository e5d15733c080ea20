"""A small file system of one's own, to be filled up: a tmpfs that only the commands run on it see.

It lies in a mount namespace, so nothing is mounted for anybody else and it is gone with its last process. That needs
CAP_SYS_ADMIN, or user namespaces that anybody may make. Where there are neither, as in many containers, it is
/dev/shm, which is small there and the container's own; tests take turns then.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIMIT_S = 10.0
_SHARED = Path("/dev/shm")
# What is left to everybody else of a memory that is filled up.
_SHARED_LIMIT_BYTES = 256 * 1024 * 1024
_NEEDED = (
    "this test fills a small file system, and found none; expected CAP_SYS_ADMIN (--cap-add SYS_ADMIN of a container), "
    "unprivileged user namespaces, or a /dev/shm of at most 256 MiB (--shm-size 64m)"
)


class SmallDisk:
    """`path` is where commands started with `within` see it, `seen` where the test does."""

    def __init__(self, path: Path, seen: Path, within: list[str]) -> None:
        self.path = path
        self.seen = seen
        self.within = within
        self._filler = self.seen / "filler"

    def fill(self) -> None:
        """Leave no room at all."""
        with self._filler.open("ab", buffering=0) as file:
            size = 1 << 20
            while size:
                try:
                    file.write(b"\0" * size)
                except OSError:
                    size //= 2

    def make_room(self) -> None:
        self._filler.unlink()

    def copy(self, name: str, to: Path) -> Path:
        """A directory of the disk as it is, copied out: SQLite does not find it where the test sees it."""
        return Path(shutil.copytree(self.seen / name, to, symlinks=True))


def mount_namespace() -> list[str] | None:
    """Options of `unshare` that give a mount namespace of one's own; None where nobody may have one."""
    for options in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        if subprocess.run(["unshare", *options, "true"], capture_output=True, timeout=_LIMIT_S).returncode == 0:
            return options
    return None


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[SmallDisk]:
    """An empty disk, at `path` if it may be mounted there, for as long as this lasts."""
    options = mount_namespace()
    if options is None:
        print(f"the small disk is {_SHARED}")
        with _shared() as disk:
            yield disk
        return
    print(f"the small disk is a tmpfs, mounted by unshare {' '.join(options)}")
    with _mounted(path, megabytes, options) as disk:
        yield disk


@contextmanager
def _mounted(path: Path, megabytes: int, options: list[str]) -> Iterator[SmallDisk]:
    path.mkdir()
    mount = 'mount -t tmpfs -o "size=$1" none "$2" && echo mounted && exec cat'
    command = ["unshare", *options, "sh", "-c", mount, "sh", f"{megabytes}m", str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stderr is not None and holder.stdin is not None
        try:
            assert holder.stdout.readline() == "mounted\n", f"{_NEEDED}: {holder.stderr.read().strip()}"
            same = ["--user", "--preserve-credentials"] if "--user" in options else []
            within = ["nsenter", "--target", str(holder.pid), *same, "--mount", "--"]
            yield SmallDisk(path, Path(f"/proc/{holder.pid}/root{path}"), within)
        finally:
            # It ends with its input.
            holder.stdin.close()
            holder.wait(_LIMIT_S)


@contextmanager
def _shared() -> Iterator[SmallDisk]:
    size = os.statvfs(_SHARED)
    assert os.path.ismount(_SHARED) and size.f_blocks * size.f_frsize <= _SHARED_LIMIT_BYTES, _NEEDED
    # Other tests have it one after the other.
    with (_SHARED / ".codex-pool-tests").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = Path(tempfile.mkdtemp(dir=_SHARED))
        try:
            yield SmallDisk(path, path, [])
        finally:
            shutil.rmtree(path)
