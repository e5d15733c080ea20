"""SystemSkills: records that codex's system skills are in a CODEX_HOME, so that several app-servers may start at once.

An app-server writes the skills that come with it to `CODEX_HOME/skills/.system` before it answers `initialize`, unless
a marker there names them already. Of several that do so at the same moment one removes what another has written: a part
of them is missing from then on, in every session (measured on codex 0.163.0: 3 of 12 starts of four app-servers).

What the marker was after a pool had started is kept in `CODEX_HOME/codex-pool/system-skills.json`, with the binary that
it belongs to: another version of codex on the same home writes its own skills.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from codex_app_server._runtime.files import write_atomic
from codex_app_server._runtime.paths import shown

from .sqlite_homes import home_of

MARKER = Path("skills", ".system", ".codex-system-skills.marker")
MAX_MARKER_BYTES = 4096


class Installed(msgspec.Struct, frozen=True):
    """A codex binary, by path, size and time of its last change, and the marker of its skills, "" without one."""

    binary: str
    size_bytes: int
    changed_ns: int
    marker: str


class SystemSkills:
    """See the module's docstring. `argv` is the command of the app-servers."""

    def __init__(self, sqlite_root: str, argv: list[str]) -> None:
        self._home = home_of(Path(sqlite_root))
        self._record = Path(sqlite_root).with_name("system-skills.json")
        self._binary = shutil.which(argv[0]) or argv[0]

    @property
    def are_installed(self) -> bool:
        """Return True if no app-server writes any when it starts."""
        try:
            known = msgspec.json.decode(self._record.read_bytes(), type=Installed)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return False
        return known == self._installed()

    def note(self) -> None:
        """Keep that they are installed: an app-server has answered, and no other was about to write them."""
        installed = self._installed()
        if installed is None or self.are_installed:
            return
        try:
            write_atomic(self._record, msgspec.json.encode(installed), is_shared=True)
        except OSError:
            # The next pool starts one app-server first, as this one did.
            return

    def _installed(self) -> Installed | None:
        try:
            status = os.stat(self._binary)
            marker = (self._home / MARKER).read_bytes()[:MAX_MARKER_BYTES].decode(errors="replace")
        except FileNotFoundError as error:
            if error.filename == self._binary:
                return None
            marker = ""
        except OSError:
            return None
        return Installed(shown(self._binary), status.st_size, status.st_mtime_ns, marker)
