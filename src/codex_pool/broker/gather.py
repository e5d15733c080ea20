"""Requests that every worker answers, and what becomes of their answers. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from codex_pool import rpc

# Each app-server lists only what it has itself. Of others each lists all threads, from the histories they share.
_UNITED = frozenset({"thread/loaded/list", "thread/attachmentOwner/list"})


class Gather:
    """A request that `left` workers have been sent. The results are put together; an error counts only without any."""

    def __init__(self, left: int) -> None:
        self._left = left
        self._results: list[tuple[int, bytes]] = []
        self._error: bytes | None = None

    def add(self, slot: int, line: bytes | None, *, ok: bool) -> bool:
        """One worker's answer, None if it died; whether all is known now that the client is to be told."""
        self._left -= 1
        if line is not None and ok:
            self._results.append((slot, line))
        elif line is not None and self._error is None:
            self._error = line
        return self._left == 0

    @property
    def results(self) -> list[bytes]:
        """What the workers answered, that of the first slot first."""
        return [line for _, line in sorted(self._results)]

    @property
    def outcome(self) -> bytes | None:
        """One answer for all; None if all have died."""
        return self._results[-1][1] if self._results else self._error


class _Limit(msgspec.Struct):
    limit: int | None = None


class _LimitLine(msgspec.Struct):
    params: _Limit | None = None


_decode_limit = msgspec.json.Decoder(_LimitLine).decode


def merge(
    method: str,
    lines: list[bytes],
    name_of: Callable[[str], str | None],
    visible: Callable[[str], bool],
    request: bytes = b"{}",
) -> bytes:
    """Lists of threads as one: the first answer, with what only the others know.

    A thread's name is known only where it was set: it comes from `name_of` or from any of the answers. Threads that
    are not `visible` are left out. `request` is the line that was answered.
    """
    answers = [_decode(line) for line in lines]
    first = answers[0]
    if not isinstance(first.get("result"), dict):
        return lines[0] if visible("") else rpc.encode({"id": first.get("id"), "result": {"data": []}})
    everything = [entry for answer in answers for entry in _data(answer)]
    # By its text, because an entry that is an object has no hash.
    united = {rpc.encode(entry): entry for entry in everything}
    entries = united.values() if method in _UNITED else _data(first)
    names: dict[str, str] = {}
    for thread in map(_thread, everything):
        if thread is not None and thread.get("name"):
            names.setdefault(thread["id"], thread["name"])
    kept = []
    for entry in entries:
        thread = _thread(entry)
        thread_id = thread["id"] if thread is not None else _thread_id(entry)
        if not visible(thread_id):
            continue
        if thread is not None and not thread.get("name"):
            thread["name"] = name_of(thread_id) or names.get(thread_id)
        kept.append(entry)
    result = {**first["result"], "data": kept}
    if method == "thread/loaded/list":
        ids, result["nextCursor"] = _page_of_ids(everything, answers, request)
        result["data"] = [thread_id for thread_id in ids if visible(thread_id)]
    states = result.get("readStates")
    if isinstance(states, dict):
        result["readStates"] = {thread_id: state for thread_id, state in states.items() if visible(thread_id)}
    return rpc.encode({**first, "result": result})


def _page_of_ids(entries: list[Any], answers: list[dict[str, Any]], request: bytes) -> tuple[list[str], str | None]:
    """The next ids of all workers, in order, as many as were asked for, and the cursor of the next page.

    Each lists its own in order from the cursor on, which is an id. So all ids up to the last one of this page are
    known, and the next page begins behind it.
    """
    ids = sorted({entry for entry in entries if isinstance(entry, str)})
    try:
        limit = (_decode_limit(request).params or _Limit()).limit
    except msgspec.MsgspecError:
        limit = None
    page = ids if limit is None else ids[: max(limit, 1)]
    results = [answer["result"] for answer in answers if isinstance(answer.get("result"), dict)]
    more = len(ids) > len(page) or any(result.get("nextCursor") is not None for result in results)
    return page, page[-1] if more and page else None


def _decode(line: bytes) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _data(answer: dict[str, Any]) -> list[Any]:
    result = answer.get("result")
    data = result.get("data") if isinstance(result, dict) else None
    return data if isinstance(data, list) else []


def _thread(entry: Any) -> dict[str, Any] | None:
    """The thread that an entry of a list is, or is about."""
    if not isinstance(entry, dict):
        return None
    inner = entry.get("thread", entry)
    return inner if isinstance(inner, dict) and isinstance(inner.get("id"), str) else None


def _thread_id(entry: Any) -> str:
    value = entry.get("threadId") if isinstance(entry, dict) else entry
    return value if isinstance(value, str) else ""
