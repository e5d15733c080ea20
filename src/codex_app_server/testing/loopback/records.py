"""Records of the requests that the loopback model got, and waiting for them."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from ..._runtime.bounded import BoundedDict
from .request import ModelRequest

RUNNING = ("streaming", "hanging")


class RequestRecord(msgspec.Struct, kw_only=True):
    """One request to the model. The server's thread writes it; read it whenever you like."""

    number: int
    """Counted from 1."""
    received_at: float
    """`time.monotonic()` when the request was complete."""
    prompt: str
    user_texts: tuple[str, ...]
    tool_outputs: tuple[str, ...]
    """Outputs of the tool calls made since the last user text."""
    attempt: int
    """The number of requests that opened this prompt so far, of this model and effort, on any thread."""
    thread_id: str | None
    session_id: str | None
    turn_id: str | None
    model: str
    effort: str
    tools: tuple[str, ...]
    instructions: str
    output_schema: dict[str, Any] | None
    body_bytes: int
    answer: str = ""
    """Type of the answer: text, json, tool_call, http_error, ...; refused when script or directive cannot answer."""
    outcome: str = "streaming"
    """streaming or hanging; in the end completed, failed, http_error, dropped, disconnected (by the client), closed."""
    deltas_sent: int = 0
    ended_at: float | None = None

    @property
    def running(self) -> bool:
        return self.outcome in RUNNING


class Journal:
    """The last `limit` records, and the counts of attempts. Thread safe."""

    def __init__(self, limit: int) -> None:
        self._changed = threading.Condition()
        self._records: deque[RequestRecord] = deque(maxlen=limit)
        self._running: dict[int, RequestRecord] = {}
        self._attempts: _Counts = _Counts(limit)
        self._openings: BoundedDict[str, int] = BoundedDict(limit)
        self._number = 0

    def open(
        self, request: ModelRequest, *, body_bytes: int, ids: tuple[str | None, str | None, str | None]
    ) -> tuple[RequestRecord, int]:
        """Record a request (ids: thread, session, turn); count those like it: of its model and effort, for its prompt,
        with as many tool outputs."""
        thread_id, session_id, turn_id = ids
        stage = len(request.tool_outputs)
        with self._changed:
            self._number += 1
            repeat = self._attempts.add((request.model, request.effort, request.prompt, stage))
            attempt = repeat
            if thread_id is not None:
                # What follows a tool call belongs to the attempt that made the call.
                if stage == 0:
                    self._openings.pop(thread_id, None)
                    self._openings[thread_id] = attempt
                else:
                    attempt = self._openings.get(thread_id, repeat)
            record = RequestRecord(
                number=self._number,
                received_at=time.monotonic(),
                prompt=sys.intern(request.prompt),
                # Interned: each request of a thread repeats all that came before, and every one the same instructions.
                user_texts=tuple(map(sys.intern, request.user_texts)),
                tool_outputs=request.tool_outputs,
                attempt=attempt,
                thread_id=thread_id,
                session_id=session_id,
                turn_id=turn_id,
                model=request.model,
                effort=request.effort,
                tools=request.tools,
                instructions=sys.intern(request.instructions),
                output_schema=request.output_schema,
                body_bytes=body_bytes,
            )
            self._records.append(record)
            self._running[record.number] = record
            self._changed.notify_all()
            return record, repeat

    def update(
        self, record: RequestRecord, *, answer: str | None = None, deltas: int = 0, outcome: str | None = None
    ) -> None:
        """Note progress; the first final outcome stays."""
        with self._changed:
            if not record.running:
                return
            record.answer = answer or record.answer
            record.deltas_sent += deltas
            if outcome is not None:
                record.outcome = outcome
                if outcome not in RUNNING:
                    record.ended_at = time.monotonic()
                    self._running.pop(record.number, None)
            self._changed.notify_all()

    @property
    def records(self) -> list[RequestRecord]:
        with self._changed:
            return list(self._records)

    @property
    def running(self) -> list[RequestRecord]:
        with self._changed:
            return list(self._running.values())

    def to_json(self, last: int) -> bytes:
        with self._changed:
            return msgspec.json.encode(list(self._records)[-last:])

    def wait_for(self, predicate: Callable[[RequestRecord], object], timeout_s: float, count: int) -> RequestRecord:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                matching = [record for record in self._records if predicate(record)]
                if len(matching) >= count:
                    return matching[count - 1]
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    raise TimeoutError(self._complaint(len(matching), count, timeout_s))

    def _complaint(self, found: int, count: int, timeout_s: float) -> str:
        lines = [f"{found} of {count} expected requests came within {timeout_s:g} s; the last ones of {self._number}:"]
        lines += [
            f"  #{r.number} {r.prompt[:60]!r} -> {r.answer}, {r.outcome}, {r.deltas_sent} deltas"
            for r in list(self._records)[-8:]
        ]
        return "\n".join(lines)


class _Counts:
    """The count of each key; the oldest keys are forgotten past `limit`."""

    def __init__(self, limit: int) -> None:
        self._counts: BoundedDict[int, int] = BoundedDict(limit)

    def add(self, key: tuple[str, str, str, int]) -> int:
        known = hash(key)
        count = self._counts.pop(known, 0) + 1
        self._counts[known] = count
        return count
