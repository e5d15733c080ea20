"""The screen of `codex-pool top`: what keys do, and which lines are shown. Pure: values of the daemon in, lines out."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from codex_app_server._runtime.text import plural
from codex_pool.runtime.terminal import plain

from . import views
from .tables import Row, fitted, ordered, size_text, time_text

ALL = "all"
SECTIONS = ("workers", "turns", "sessions")
# Of the panes: how many rows workers and sessions have at least where all are shown.
LEAST_ROWS = 3
RATE_OVER_S = 10.0
# After so long without an answer the values on the screen are marked as old.
LATE_S = 2.5

BOLD, DIM, WARN, BAD, PLAIN = "bold", "dim", "yellow", "red", ""
_STYLES = {
    "waiting": WARN,
    "queued": DIM,
    "starting": DIM,
    "away": DIM,
    "silent": BAD,
    "wedged": BAD,
    "stale": WARN,
    "draining": WARN,
}
_KEYS = "q quit  a all  w workers  t turns  s sessions  < > sort  r reverse  up/down scroll"
_SHORT_KEYS = "q quit  a/w/t/s view  < > sort  r reverse"


class Line(NamedTuple):
    """A line of the screen, and its style as a style of rich."""

    text: str
    style: str = PLAIN


@dataclass(frozen=True)
class Snapshot:
    """Answers of the daemon at one moment: `at` is CLOCK_MONOTONIC, `lists` by the names of SECTIONS."""

    at: float
    status: dict[str, Any]
    lists: Mapping[str, dict[str, Any]]


@dataclass
class Screen:
    """Choices of the user, and the rows to show. `endpoint` and `interval_s` are shown as they are."""

    endpoint: str
    interval_s: float
    view: str = ALL
    # By section: the column that rows are sorted by, and whether the other way round.
    sorts: dict[str, str] = field(default_factory=dict)
    reversed: set[str] = field(default_factory=set)
    offset: int = 0
    snapshot: Snapshot | None = None
    # What keeps the daemon from answering, and since when a request has no answer.
    problem: str = ""
    asked_at: float | None = None
    _ended: deque[tuple[float, int]] = field(default_factory=deque)
    # Of the last drawing: the rows and the columns of the section that keys act on.
    _page: int = 10
    _titles: list[str] = field(default_factory=list)

    def take(self, snapshot: Snapshot) -> None:
        """Take over newer values."""
        turns = snapshot.status["turns"]
        ended = sum(turns.get(kind, 0) for kind in ("completed", "failed", "interrupted", "lost", "stalled"))
        if self._ended and ended < self._ended[-1][1]:
            # Another broker has begun to count from zero.
            self._ended.clear()
        self._ended.append((snapshot.at, ended))
        while len(self._ended) > 2 and self._ended[1][0] < snapshot.at - RATE_OVER_S:
            self._ended.popleft()
        self.snapshot = snapshot

    @property
    def section(self) -> str:
        """The section that keys act on."""
        return "turns" if self.view == ALL else self.view

    def press(self, key: str) -> bool:
        """Do what a key asks for; False for the one that ends the program."""
        section = self.section
        match key:
            case "q" | "Q":
                return False
            case "a" | "w" | "t" | "s":
                self.view, self.offset = {"a": ALL, "w": "workers", "t": "turns", "s": "sessions"}[key], 0
            case "right" | ">" | ".":
                self._sort_by(section, 1)
            case "left" | "<" | ",":
                self._sort_by(section, -1)
            case "r":
                self.reversed ^= {section}
            case "up" | "k":
                self.offset -= 1
            case "down" | "j":
                self.offset += 1
            case "page up":
                self.offset -= self._page
            case "page down" | " ":
                self.offset += self._page
            case "home":
                self.offset = 0
        return True

    def _sort_by(self, section: str, step: int) -> None:
        """Sort by the next column; before the first is the order of the daemon."""
        titles = ["", *(self._titles or views.VIEWS[section].titles)]
        now = self.sorts.get(section, "")
        self.sorts[section] = titles[(titles.index(now) if now in titles else 0) + step - len(titles)]
        self.offset = 0

    def lines(self, width: int, height: int, now: float, clock: str = "") -> list[Line]:
        """The screen as at most `height` lines of at most `width` characters; `clock` is the time of day."""
        snapshot = self.snapshot
        head = [Line(_both_ends(f"codex-pool top  {plain(self.endpoint)}", clock, width), BOLD)]
        if snapshot is None:
            head.append(Line(self.problem or "connecting ...", WARN if self.problem else DIM))
            return [Line(line.text[:width], line.style) for line in head[:height]]
        head += [Line(text) for text in _summary(snapshot, self._rate, width)]
        head += [Line(text, WARN) for text in self._troubles(snapshot, now)]
        foot = _KEYS if len(_KEYS) <= width else _SHORT_KEYS
        room = max(1, height - len(head) - 2)
        body, place = self._body(snapshot, width, room)
        lines = [*head, Line(""), *body]
        lines = lines[: height - 1] + [Line("")] * (height - 1 - len(lines))
        lines.append(Line(_both_ends(foot, place, width), DIM))
        return [Line(line.text[:width], line.style) for line in lines[:height]]

    def plain_lines(self, width: int | None) -> list[str]:
        """All that there is, once, without a terminal to fit it to."""
        assert self.snapshot is not None
        lines = [*_summary(self.snapshot, None, width or 10_000), *self._troubles(self.snapshot, self.snapshot.at)]
        for section in SECTIONS:
            rows = self._rows(self.snapshot, section)
            table = fitted(_columns(section, rows), rows, width)
            lines += ["", table.header, *table.lines]
        return lines

    # Parts.

    @property
    def _rate(self) -> float | None:
        """Turns that have ended, a second; None before two values are there."""
        if len(self._ended) < 2:
            return None
        (before, ended_before), (after, ended) = self._ended[0], self._ended[-1]
        return (ended - ended_before) / (after - before) if after > before else None

    def _troubles(self, snapshot: Snapshot, now: float) -> list[str]:
        found = []
        if self.problem:
            found.append(f"reconnecting: {self.problem}")
        elif self.asked_at is not None and now - self.asked_at > LATE_S:
            found.append(f"reconnecting: no answer for {time_text(now - self.asked_at)}")
        if found:
            found[0] += f"; what follows is {time_text(now - snapshot.at)} old"
        mode = snapshot.status.get("mode", "running")
        if mode != "running":
            found.append(f"the pool is {mode}")
        problems = snapshot.status.get("problems") or []
        found += [f"{problem['what']}: {problem['message']}" for problem in problems[:2]]
        failed = [row for row in snapshot.lists["workers"]["data"] if row.get("failedStarts")]
        found += [
            f"slot {row['slot']}: {plural(row['failedStarts'], 'start')} failed: {row['problem']}" for row in failed
        ]
        return [plain(text).replace("\n", " ") for text in found]

    def _rows(self, snapshot: Snapshot, section: str) -> list[Row]:
        rows: list[Row] = snapshot.lists[section]["data"]
        title = self.sorts.get(section, "")
        if title:
            return ordered(rows, views.VIEWS[section].column(title), reverse=section in self.reversed)
        return rows[::-1] if section in self.reversed else rows

    def _body(self, snapshot: Snapshot, width: int, room: int) -> tuple[list[Line], str]:
        """The tables, and which rows of how many they show."""
        if self.view != ALL:
            rows = self._rows(snapshot, self.view)
            self._page = max(1, room - 1)
            self.offset = max(0, min(self.offset, len(rows) - self._page))
            last = min(len(rows), self.offset + self._page)
            total = max(len(rows), snapshot.lists[self.view]["total"])
            return self._table(
                snapshot, self.view, width, self._page
            ), f"{self.offset + 1 if rows else 0}-{last} of {total}"
        self.offset = 0
        rooms = _shares({section: len(snapshot.lists[section]["data"]) for section in SECTIONS}, room)
        lines: list[Line] = []
        for section in SECTIONS:
            if rooms[section]:
                lines += [Line("")] * bool(lines) + self._table(snapshot, section, width, rooms[section])
        return lines, ""

    def _table(self, snapshot: Snapshot, section: str, width: int, room: int) -> list[Line]:
        """A header and at most `room` lines; the last one says how many rows there is no room for."""
        rows = self._rows(snapshot, section)
        total = max(len(rows), snapshot.lists[section]["total"])
        if section == self.section:
            rows = rows[self.offset :]
        shown = rows[:room]
        hidden = total - len(shown)
        if self.view == ALL and hidden and room > 1:
            shown, hidden = rows[: room - 1], total - (room - 1)
        sort = self.sorts.get(section, "")
        table = fitted(_columns(section, shown), shown, width, sort)
        if section == self.section:
            self._titles = [column.title for column in table.columns]
        lines = [Line(table.header, "bold dim")]
        lines += [
            Line(line, _STYLES.get(str(row.get("state")), PLAIN)) for row, line in zip(shown, table.lines, strict=True)
        ]
        if not total:
            lines.append(Line(f"no {section}", DIM))
        elif self.view == ALL and hidden and room > 1:
            lines.append(Line(f"{hidden:,} more {section}: press {section[0]}", DIM))
        return lines


def _columns(section: str, rows: list[Row]) -> tuple[Any, ...]:
    view = views.VIEWS[section]
    if section == "workers" and rows and "worker" not in rows[0]:
        # A limited key sees no more of the workers.
        return tuple(view.column(title) for title in ("slot", "state", "restarts"))
    return view.columns


def _shares(rows: dict[str, int], room: int) -> dict[str, int]:
    """Divide `room` lines among the sections, whose headers and the blanks between them count.

    Turns get what workers and sessions do not need; each of these has at least LEAST_ROWS, if it has so many.
    """
    left = max(0, room - 2 * len(rows) + 1)
    needed = {section: max(1, count) for section, count in rows.items()}
    shares = {section: min(needed[section], LEAST_ROWS, max(0, left // len(rows))) for section in rows}
    left -= sum(shares.values())
    for section in ("turns", "workers", "sessions"):
        # Turns leave half of what is left to the others while these need it.
        others = sum(needed[each] - shares[each] for each in rows if each != section)
        limit = left - min(others, left // 2) if section == "turns" else left
        more = min(needed[section] - shares[section], max(0, limit))
        shares[section] += more
        left -= more
    more = min(left, needed["turns"] - shares["turns"])
    shares["turns"] += more
    return shares


def _summary(snapshot: Snapshot, rate: float | None, width: int) -> list[str]:
    """The figures of the whole pool, on as few lines as they fit on."""
    status = snapshot.status
    turns, slots = status["turns"], status["workers"]
    ready = sum(row["state"] == "ready" for row in slots)
    memory = [row["memoryBytes"] for row in (*slots, *status.get("draining", ())) if row.get("memoryBytes")]
    versions = dict.fromkeys(row["codexVersion"] for row in slots if row.get("codexVersion"))
    waiting = f" ({turns['waiting']} waiting)" if turns.get("waiting") else ""
    counted = f"turns {turns['running']} running{waiting}, {turns['queued']} queued"
    parts = [
        f"workers {ready}/{len(slots)} ready",
        counted + (f", {rate:.1f}/s" if rate is not None else ""),
        f"sessions {len(status['sessions'])}",
        f"threads {status['threads']}",
        f"memory {size_text(sum(memory))}" if memory else "",
        f"up {time_text(status['uptimeMs'] / 1000)}",
        f"codex {' and '.join(map(plain, versions))}" if versions else "",
    ]
    lines = [""]
    for part in filter(None, parts):
        joined = f"{lines[-1]}   {part}" if lines[-1] else part
        if len(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(part)
    return lines


def _both_ends(left: str, right: str, width: int) -> str:
    """Put `right` at the end of the line where there is room for it."""
    gap = width - len(left) - len(right)
    return left + " " * gap + right if right and gap >= 2 else left
