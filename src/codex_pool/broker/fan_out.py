"""Requests that every worker answers, and what becomes of their answers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..protocol import jsonrpc

# Each app-server lists only what it has itself. Of others each lists all threads, from the histories they share.
_UNITED = frozenset({"thread/loaded/list", "thread/attachmentOwner/list"})


class FanOut:
    """A request that `left` workers have been sent. The results are put together; an error counts only without any."""

    def __init__(self, left: int) -> None:
        self._left = left
        self._results: list[tuple[int, str, bytes]] = []
        self._error: bytes | None = None

    def add(self, slot: int, worker: str, line: bytes | None, *, ok: bool) -> bool:
        """Add one worker's answer, None if it died; return True once all answers are known."""
        self._left -= 1
        if line is not None and ok:
            self._results.append((slot, worker, line))
        elif line is not None and self._error is None:
            self._error = line
        return self._left == 0

    @property
    def results(self) -> list[bytes]:
        """Answers of the workers, that of the first slot first."""
        return [line for *_, line in sorted(self._results)]

    @property
    def workers(self) -> list[str]:
        """The workers whose answers `results` has, in the same order."""
        return [worker for _, worker, _ in sorted(self._results)]

    @property
    def outcome(self) -> bytes | None:
        """The answer for all workers; None if all have died."""
        return self._results[-1][2] if self._results else self._error


_decode_limit = msgspec.json.Decoder(int | None).decode


def merge(
    method: str,
    lines: list[bytes],
    name_of: Callable[[str], str | None],
    visible: Callable[[str], bool],
    params: Mapping[str, msgspec.Raw] | None = None,
    holder_of: Callable[[str], int] = lambda _: 0,
) -> bytes:
    """Lists of threads as one: the first answer, with what only the others know.

    A thread is listed as the worker has it that holds it, whose answer is at the place `holder_of` in `lines`: for the
    others it is not loaded. Its name is known only where it was set: it comes from `name_of` or from any of the
    answers. Threads that are not `visible` are left out. `params` are the parameters of the request.
    """
    answers = [_decode(line) for line in lines]
    first = answers[0]
    if not isinstance(first.get("result"), dict):
        return lines[0] if visible("") else jsonrpc.encode({"id": first.get("id"), "result": {"data": []}})
    everything = [entry for answer in answers for entry in _data(answer)]
    # By its text, because an entry that is an object has no hash.
    united = {jsonrpc.encode(entry): entry for entry in everything}
    entries = united.values() if method in _UNITED else _data(first)
    names: dict[str, str] = {}
    for thread in map(_thread, everything):
        if thread is not None and thread.get("name"):
            names.setdefault(thread["id"], thread["name"])
    by_id = [
        {thread["id"]: thread for thread in map(_thread, _data(answer)) if thread is not None} for answer in answers
    ]
    kept = []
    for entry in entries:
        thread = _thread(entry)
        if thread is not None and (held := by_id[holder_of(thread["id"])].get(thread["id"])) is not None:
            entry = {**entry, "thread": held} if "thread" in entry else held
            thread = held
        thread_id = thread["id"] if thread is not None else _thread_id(entry)
        if not visible(thread_id):
            continue
        if thread is not None and not thread.get("name"):
            thread["name"] = name_of(thread_id) or names.get(thread_id)
        kept.append(entry)
    result = {**first["result"], "data": kept}
    if method == "thread/loaded/list":
        ids, result["nextCursor"] = _page_of_ids(everything, answers, params or {})
        result["data"] = [thread_id for thread_id in ids if visible(thread_id)]
    states = result.get("readStates")
    if isinstance(states, dict):
        of_all = [_read_states(answer) for answer in answers]
        result["readStates"] = {
            thread_id: of_all[holder_of(thread_id)].get(thread_id, state)
            for thread_id, state in states.items()
            if visible(thread_id)
        }
    return jsonrpc.encode({**first, "result": result})


def _page_of_ids(
    entries: list[Any], answers: list[dict[str, Any]], params: Mapping[str, msgspec.Raw]
) -> tuple[list[str], str | None]:
    """The next ids of all workers, in order, as many as were asked for, and the cursor of the next page.

    Each lists its own in order from the cursor on, which is an id. So all ids up to the last one of this page are
    known, and the next page begins behind it.
    """
    ids = sorted({entry for entry in entries if isinstance(entry, str)})
    try:
        limit = _decode_limit(params.get("limit", b"null"))
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


def _read_states(answer: dict[str, Any]) -> dict[str, Any]:
    result = answer.get("result")
    states = result.get("readStates") if isinstance(result, dict) else None
    return states if isinstance(states, dict) else {}


def _thread(entry: Any) -> dict[str, Any] | None:
    """The thread that an entry of a list is, or is about."""
    if not isinstance(entry, dict):
        return None
    inner = entry.get("thread", entry)
    return inner if isinstance(inner, dict) and isinstance(inner.get("id"), str) else None


def _thread_id(entry: Any) -> str:
    value = entry.get("threadId") if isinstance(entry, dict) else entry
    return value if isinstance(value, str) else ""
