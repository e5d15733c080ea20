"""Files in a sample's directory of artifacts: its diff, and what its scorers left."""

from __future__ import annotations

import logging
import os
from itertools import islice
from pathlib import Path

from ..redaction.redactor import Redactor
from ..redaction.scrub import redact_files
from ..workspace.large_files import files_below

# The record of a sample names them all.
MAX_NAMES = 10_000

_log = logging.getLogger("codex_batch")


def redacted_names(directory: Path, redactor: Redactor) -> list[str]:
    """Return `names` once secrets are taken out of what scorers have left."""
    if directory.is_dir():
        redact_files(directory, redactor)
    return names(directory)


def names(directory: Path) -> list[str]:
    """Paths of the files, relative to the directory, in their order; at most MAX_NAMES; the log reports more."""
    files = (path for path in files_below(directory) if os.path.isfile(os.path.join(directory, path)))
    found = list(islice(files, MAX_NAMES + 1))
    if len(found) > MAX_NAMES:
        _log.warning("%s holds more than %d files; the record names as many", directory, MAX_NAMES)
    return sorted(found[:MAX_NAMES])
