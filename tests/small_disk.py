"""A small file system of one's own, to be filled up: a tmpfs that only the commands run on it see.

It lies in a mount namespace, so nothing is mounted for anybody else and it is gone with its last process. That needs
CAP_SYS_ADMIN (in a container: `--cap-add SYS_ADMIN`), or else user namespaces that anybody may make.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIMIT_S = 10.0
_NEEDED = (
    "this test fills a tmpfs of its own, and could not mount one; expected CAP_SYS_ADMIN (in a container: "
    "--cap-add SYS_ADMIN --security-opt apparmor=unconfined), or unprivileged user namespaces"
)


class SmallDisk:
    """`path` is where commands started with `within` see it, `seen` where the test does."""

    def __init__(self, path: Path, holder: int, mine: bool) -> None:
        self.path = path
        self.seen = Path(f"/proc/{holder}/root{path}")
        user = () if mine else ("--user", "--preserve-credentials")
        self.within = ["nsenter", "--target", str(holder), *user, "--mount", "--"]
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


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[SmallDisk]:
    """An empty disk at `path`, for as long as this lasts."""
    path.mkdir()
    mine = subprocess.run(["unshare", "--mount", "true"], capture_output=True, timeout=_LIMIT_S).returncode == 0
    mount = 'mount -t tmpfs -o "size=$1" none "$2" && echo mounted && exec cat'
    user = () if mine else ("--user", "--map-root-user")
    command = ["unshare", *user, "--mount", "sh", "-c", mount, "sh", f"{megabytes}m", str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stderr is not None and holder.stdin is not None
        try:
            assert holder.stdout.readline() == "mounted\n", f"{_NEEDED}: {holder.stderr.read().strip()}"
            yield SmallDisk(path, holder.pid, mine)
        finally:
            # It ends with its input.
            holder.stdin.close()
            holder.wait(_LIMIT_S)
