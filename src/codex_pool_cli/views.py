"""Columns of the lists of turns, sessions, threads and workers. Pure: rows of the daemon in, tables out."""

from __future__ import annotations

from typing import Any, NamedTuple

from .tables import Column, Row, count_text, size_text, time_text

# Words for what a turn waits for.
_WAITS_FOR = {
    "commandApproval": "approval of a command",
    "fileChangeApproval": "approval of changes",
    "permissionsApproval": "approval of rights",
    "userInput": "an answer",
    "elicitation": "an answer (MCP)",
    "permit": "a free place",
    "thread": "its thread",
    "worker": "a worker",
    "threadMove": "its thread's move",
    "threadCapacity": "room for threads",
}


class View(NamedTuple):
    """A list of the daemon: the request for it, its columns, and the words for one row and several."""

    method: str
    one: str
    columns: tuple[Column, ...]
    # The member that names a row.
    id: str

    def column(self, title: str) -> Column:
        """Return the column of this title. Raises KeyError."""
        return next(column for column in self.columns if column.title == title)

    @property
    def titles(self) -> list[str]:
        return [column.title for column in self.columns]


def _get(name: str) -> Any:
    return lambda row: row.get(name)


def _who(row: Row) -> str:
    """Return the name of a principal; the pool's owner has none."""
    return str(row.get("principalName") or row.get("principal") or "owner")


def _waits_for(row: Row) -> str | None:
    found = row.get("waitsFor")
    words = _WAITS_FOR.get(str(found), str(found)) if found else None
    return words if words is None or row.get("place") is None else f"{words}, #{row['place']}"


def _tokens(row: Row) -> int | None:
    tokens = row.get("tokens")
    return tokens["totalTokens"] if tokens else None


def _turns(row: Row) -> str | None:
    return f"{row['turns']}/{row['turnsPerWorker']}" if "turns" in row else None


def _worker_state(row: Row) -> str:
    return str(row["state"]) + (", recycling" if row.get("recycling") else "")


def _program(row: Row) -> str:
    return f"{row.get('program') or ''} {row.get('programVersion') or ''}".strip()


def _text(title: str, name: str, drop: int = 0) -> Column:
    return Column(title, _get(name), is_text=True, drop=drop)


def _number(title: str, name: str, drop: int = 0) -> Column:
    return Column(title, _get(name), drop=drop)


def _time(title: str, name: str, drop: int = 0) -> Column:
    return Column(title, _get(name), lambda row: time_text(row.get(name)) or "", drop=drop, least=5)


def _id(title: str, name: str, drop: int = 0) -> Column:
    return Column(title, _get(name), is_text=True, drop=drop, is_id=True)


TURNS = View(
    "pool/turns/list",
    "turn",
    (
        _id("turn", "turnId"),
        _text("state", "state"),
        Column("waits-for", _waits_for, is_text=True, drop=2),
        Column("who", _who, is_text=True, drop=1),
        _text("client", "client", drop=6),
        _time("age", "ageS"),
        _time("silent", "lastEventAgeS", drop=3),
        Column("tokens", _tokens, lambda row: count_text(_tokens(row)) or "", drop=4, least=6),
        _number("slot", "slot", drop=5),
        _id("thread", "threadId", drop=8),
        _text("session", "session", drop=9),
        _id("root-turn", "rootTurnId", drop=10),
    ),
    "turnId",
)
SESSIONS = View(
    "pool/sessions/list",
    "session",
    (
        _text("session", "session"),
        Column("who", _who, is_text=True, drop=1),
        _text("client", "client", drop=2),
        _text("state", "state"),
        _text("via", "listener", drop=4),
        _number("turns", "turns"),
        _number("waiting", "waiting", drop=3),
        _number("queued", "queued", drop=3),
        _time("age", "ageS", drop=5),
        Column("program", _program, is_text=True, drop=7),
        _text("priority", "priority", drop=8),
    ),
    "session",
)
THREADS = View(
    "pool/threads/list",
    "thread",
    (
        _id("thread", "threadId"),
        _text("state", "state"),
        Column("who", _who, is_text=True, drop=1),
        _number("slot", "slot", drop=3),
        _number("turns", "turns", drop=4),
        _number("followers", "followers", drop=5),
        _time("idle", "idleS"),
        _text("model", "model", drop=6),
        Column("kept", lambda row: "no" if row["ephemeral"] else "yes", is_text=True, drop=7),
        _id("turn", "turnId", drop=8),
        _id("parent", "parentThreadId", drop=9),
        _text("cwd", "cwd", drop=10),
    ),
    "threadId",
)
WORKERS = View(
    "pool/workers/list",
    "worker",
    (
        _number("slot", "slot"),
        _text("worker", "worker", drop=1),
        Column("state", _worker_state, is_text=True),
        Column("turns", _get("turns"), lambda row: _turns(row) or ""),
        _number("waiting", "waiting", drop=3),
        _number("queued", "queued", drop=2),
        _number("threads", "threads", drop=4),
        Column("memory", _get("memoryBytes"), lambda row: size_text(row.get("memoryBytes")) or ""),
        _number("servers", "descendants", drop=7),
        _number("commands", "toolCommands", drop=6),
        _time("age", "ageS", drop=5),
        _number("restarts", "restarts", drop=3),
        _text("codex", "codexVersion", drop=8),
        _number("pid", "appServerPid", drop=8),
    ),
    "worker",
)
VIEWS = {"turns": TURNS, "sessions": SESSIONS, "threads": THREADS, "workers": WORKERS}
