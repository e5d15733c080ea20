"""Probe of the directory of keys."""

from __future__ import annotations

import os
import time

from codex_pool.auth.key_audit import audit

from .facts import Key, Keys


def keys(directory: str | None) -> Keys:
    """The keys that are allowed, and what is wrong with the files of others."""
    found = audit(directory)
    now = time.time()
    listed = []
    for entry in found.entries:
        missing = () if entry.admin else tuple(root for root in entry.cwd_roots if not os.path.isdir(root))
        left_s = entry.expires_at - now if entry.expires_at else None
        listed.append(Key(entry.name, entry.admin, entry.cwd_roots, missing, left_s))
    return Keys(str(found.directory), found.exists, tuple(listed), found.problems)
