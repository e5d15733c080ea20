"""The cause of a death in what a process has written to stderr: lines in, one short sentence out. Pure.

The runtime ends with an error of `anyhow` (`Error: ...`, `Caused by:`, `Stack backtrace:`) or of `eyre` (`Error:`, a
numbered chain, `Location:`), with one of its argument parser (`error: ...`, then a usage), or with a panic. Before that
stand records of `tracing`: a time, a level and a module, in colour. Seen with codex 0.163.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .text import one_line

MAX_CHARACTERS = 400

_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])|[\x00-\x1f\x7f-\x9f]")
_RECORD = re.compile(
    r"\d{4}-\d\d-\d\d[T ][\d:.,]+(?:Z|[+-]\d\d:?\d\d)?\s+(?P<level>TRACE|DEBUG|INFO|WARN|ERROR)\s+"
    r"(?:\S*(?:_|::)\S*:\s+)*(?P<text>.*)"
)
_ERROR = re.compile(r"(?:error|fatal|fatal error)(?::\s*|$)(?P<text>.*)", re.IGNORECASE)
_PANIC = re.compile(r"thread '.*?'(?: \(\d+\))? (?:has )?panicked at (?:'(?P<text>.*)', )?\S+:\d+(?::\d+)?:?$")
_CHAIN = re.compile(r"\s*caused by:", re.IGNORECASE)
_STEP = re.compile(r"\s+\d+:\s+(?P<text>\S.*)")
# What follows it, indented, is about the runtime's code.
_CODE = re.compile(r"[\s━─-]*(?:stack backtrace|backtrace|location|spantrace)\b.*", re.IGNORECASE)
_NOISE = re.compile(
    r"warning: |note: |usage: |for more information|run with .*backtrace|backtrace omitted|.*could not find bubblewrap",
    re.IGNORECASE,
)


def cause(lines: Iterable[str]) -> str:
    """Return the sentence that names the cause of a process's death, `""` if none does.

    It is the last error or panic; else the last record of level ERROR; else the last line with any text.
    """
    said = [_CONTROL.sub("", line.expandtabs(4)).rstrip() for line in lines]
    fatal = record = last = ""
    place = 0
    while place < len(said):
        line = said[place]
        place += 1
        if _CODE.fullmatch(line):
            while place < len(said) and (not said[place] or said[place].startswith(" ")):
                place += 1
        elif (found := _RECORD.match(line)) is not None:
            if found["level"] == "ERROR" and not _NOISE.match(found["text"]):
                record = found["text"] or record
        elif (found := _PANIC.match(line) or _ERROR.match(line)) is not None:
            parts, place = _rest(said, place, found["text"] or "")
            fatal = ": ".join(parts) or fatal
        elif line and not _NOISE.match(line):
            last = line
    return one_line(fatal or record or last, MAX_CHARACTERS)


def is_problem(line: str) -> str | None:
    """Return the text of a line that is a warning, an error or a panic, without colours; None for any other."""
    text = _CONTROL.sub("", line.expandtabs(4)).rstrip()
    record = _RECORD.match(text)
    if record is not None:
        is_told = record["level"] in ("WARN", "ERROR") and not _NOISE.match(record["text"])
    else:
        is_told = (_ERROR.match(text) or _PANIC.match(text)) is not None
    return one_line(text, MAX_CHARACTERS) if is_told else None


def _rest(said: Sequence[str], place: int, first: str) -> tuple[list[str], int]:
    """An error from its first line on: it and the chain of its causes; and the place behind it."""
    parts = [first] if first else []
    fresh = not parts
    while place < len(said):
        line = said[place]
        if not line:
            after = said[place + 1] if place + 1 < len(said) else ""
            if parts and not _CHAIN.fullmatch(after):
                break
        elif _CHAIN.fullmatch(line):
            fresh = True
        elif any(kind.match(line) for kind in (_CODE, _NOISE, _RECORD, _PANIC, _ERROR)):
            break
        else:
            step = _STEP.match(line)
            text = line.strip() if step is None else step["text"]
            if fresh or step is not None or not parts:
                parts.append(text)
            else:
                parts[-1] += f" {text}"
            fresh = False
        place += 1
    return parts, place
