"""The version of the runtime, and what the one in use does not have. Pure but for `in_use`.

A version that is not known, and 0.0.0, which codex built from source calls itself, count as the newest: nothing is
refused for them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..generated.routing import RUNTIME_VERSION
from ..generated.since import FIELDS, METHODS, NEWEST, OLDEST

Number = tuple[int, int, int]

# In a userAgent, `NAME/VERSION (...) ...`; a name may have a slash.
_IN_USER_AGENT = re.compile(r"/(\d+\.\d+\.\d+[^\s()/]*)(?= |$)")
_NUMBER = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_MAX_CHARS = 64
_UNSET = (0, 0, 0)

# Versions of the runtimes that this process has used, in order, for messages that know no more.
in_use: dict[str, None] = {}


def version_of(user_agent: str | None) -> str | None:
    """The version in a userAgent, as in the answer to `initialize`; None if there is none."""
    found = _IN_USER_AGENT.search(user_agent or "")
    return found[1][:_MAX_CHARS] if found is not None else None


def number_of(version: str | None) -> Number | None:
    """The numbers of a version; None for one that counts as the newest."""
    found = _NUMBER.match(version or "")
    number = (int(found[1]), int(found[2]), int(found[3])) if found is not None else _UNSET
    return None if number == _UNSET else number


def is_other(version: str | None) -> bool:
    """True for a version that is known, and is another one than the types are generated from."""
    return number_of(version) is not None and version != RUNTIME_VERSION


def both(version: str | None) -> str:
    """The version of the runtime and that of the types, for messages about something that does not fit."""
    runtime = f"the runtime is codex {version}" if version else "the version of the runtime is not known"
    return f"{runtime}, this SDK was made for {RUNTIME_VERSION}"


def both_in_use() -> str:
    """The same where it is not known which runtime it was."""
    return both(" and ".join(in_use) or None)


def unreadable_end(turn_id: str) -> str:
    """The message about a turn whose end never came, or does not fit its type."""
    return f"turn {turn_id} ended without a readable turn/completed; {both_in_use()}"


def warning(version: str | None) -> str | None:
    """The warning about a runtime of this version; None if there is nothing to say."""
    number = number_of(version)
    if number is None or not is_other(version):
        return None
    text = f"{both(version)}; versions from {OLDEST} to {NEWEST} are tested"
    oldest, newest = number_of(OLDEST), number_of(NEWEST)
    assert oldest is not None and newest is not None
    if number < oldest:
        return f"{text}: upgrade it, or expect errors"
    return f"{text}: what is new in it comes as plain JSON" if number > newest else text


def too_old(version: str | None) -> str | None:
    """The reason why a runtime of this version is not supported; None for one of the range, or a newer one."""
    number, oldest = number_of(version), number_of(OLDEST)
    assert oldest is not None
    if number is None or number >= oldest:
        return None
    return f"it is codex {version}; {OLDEST} is the oldest version that is supported"


@dataclass(frozen=True)
class Lack:
    """Parts of a method that a runtime lacks: the method itself, with the reason, or fields of its params."""

    method: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


@functools.lru_cache(16)
def lacking(version: str | None) -> Mapping[str, Lack]:
    """Return what a runtime of this version lacks, by method."""
    number = number_of(version)
    if number is None:
        return {}
    found = {name: Lack(method=reason) for name, reason in _absent(METHODS, number)}
    for name, spans in FIELDS.items():
        fields = dict(_absent(spans, number))
        if fields and name not in found:
            found[name] = Lack(fields=fields)
    return found


def _absent(spans: Mapping[str, tuple[str, str]], number: Number) -> Iterator[tuple[str, str]]:
    for name, (since, gone) in spans.items():
        first, last = number_of(since), number_of(gone)
        if first is not None and number < first:
            yield name, f"needs codex {since} or newer"
        elif last is not None and number >= last:
            yield name, f"is not in codex {gone} and newer"
