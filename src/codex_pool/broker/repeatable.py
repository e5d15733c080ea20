"""Requests that may be executed a second time after the death of the worker that had them. Pure.

A method that is not known here is not repeated: what it did may not be seen from its name.
"""

from __future__ import annotations

from ..protocol.bound_methods import KIND_OF_METHOD

# The last part of the names of methods that only read.
_READS = frozenset(
    {
        "detect",
        "diagnostics",
        "getMetadata",
        "info",
        "installed",
        "list",
        "listVoices",
        "read",
        "readDirectory",
        "readFile",
        "readHistories",
        "search",
        "status",
    }
)
# These set a state, and setting it again leaves it as it is; or make a thread that no client knows otherwise. Whether a
# turn has begun is found in the history of its thread.
_SAFE = frozenset(
    {
        "fuzzyFileSearch",
        "thread/archive",
        "thread/delete",
        "thread/fork",
        "thread/metadata/update",
        "thread/name/set",
        "thread/resume",
        "thread/start",
        "thread/unarchive",
        "thread/unsubscribe",
        "turn/interrupt",
        "turn/start",
    }
)


def may_be_repeated(method: str) -> bool:
    """Return True for a request that does the same once and twice, or of which is found out whether it was done."""
    # Commands, processes, watches and searches have rules of their own (see `bound_objects`).
    return method in _SAFE or method in KIND_OF_METHOD or method.rpartition("/")[2] in _READS
