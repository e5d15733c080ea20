"""The states of a request in the worker: the table, and what leaves it."""

from __future__ import annotations

import re
from typing import get_args

import msgspec
import pytest
from session_ids import sid

from codex_app_server._core.router import MessageRouter
from codex_pool.protocol import jsonrpc
from codex_pool.worker import request as request_
from codex_pool.worker.effects import Outbox
from codex_pool.worker.event_log import MAX_EVENTS, EventLog, InvariantError
from codex_pool.worker.request import TRANSITIONS, Request, State
from codex_pool.worker.request_table import RequestTable


def table_in_docstring() -> dict[str, set[str]]:
    rows: dict[str, set[str]] = {}
    for line in (request_.__doc__ or "").splitlines()[3:]:
        found = re.match(r"    (\w+) {2,}.* {2,}([\w, -]+)$", line)
        if found is not None:
            rows[found[1]] = {state for state in found[2].split(", ") if state != "-"}
    return rows


def test_the_docstring_has_the_table() -> None:
    assert table_in_docstring() == {state: {*after} for state, after in TRANSITIONS.items()}


def test_every_state_is_reached_and_each_ends() -> None:
    assert {*TRANSITIONS} == {*get_args(State)}
    reached, pending = {"new"}, ["new"]
    while pending:
        for state in TRANSITIONS[pending.pop()]:  # type: ignore[index]
            if state not in reached:
                reached.add(state)
                pending.append(state)
    assert reached == {*TRANSITIONS}
    assert all("answered" in after for state, after in TRANSITIONS.items() if state != "answered")


def new_request(number: int = 1, method: str = "model/list") -> Request:
    return Request(method, None, jsonrpc.RequestLine(method, msgspec.Raw(b"%d" % number)), session=sid("s"))


def new_table() -> RequestTable:
    return RequestTable(MessageRouter(), Outbox())


def test_a_transition_that_is_not_in_the_table_is_refused() -> None:
    table, request = new_table(), new_request()
    table.add(request)
    with pytest.raises(InvariantError, match="from new to sent"):
        table.move(request, "sent")
    table.finish(request)
    with pytest.raises(InvariantError, match="from answered to queued"):
        table.submit(request)


def test_two_open_requests_never_have_one_key() -> None:
    table = new_table()
    table.add(new_request())
    with pytest.raises(InvariantError, match="a second request"):
        table.add(new_request())
    table.finish(table.of_sessions()[0])
    table.add(new_request())


def test_a_request_that_was_withdrawn_from_the_queue_is_not_sent() -> None:
    table = new_table()
    requests = [new_request(number) for number in range(60)]
    for request in requests:
        table.add(request)
        table.submit(request)
    assert (table.in_flight, table.held["waiting"]) == (56, 4)
    withdrawn = table.withdrawable(sid("s"))
    assert withdrawn == requests[56:]
    for request in withdrawn[:3]:
        table.finish(request)
    table.finish(requests[0])
    table.outbox.take()
    table.refill()
    assert len(table.outbox.take()) == 1 and requests[59].state == "sent"
    assert table.held == {"sent": 56, "waiting": 0, "calls": 56}


def test_the_event_log_is_bounded_and_counts_back_from_the_last_event() -> None:
    events = EventLog()
    assert events.lines() == []
    for number in range(2 * MAX_EVENTS):
        events.add(number / 8, "lines", number, "x" * 1000)
    lines = events.lines()
    assert len(lines) == MAX_EVENTS and max(map(len, lines)) < 120
    assert lines[-1].startswith("+0.000 s lines 399 x") and lines[-2].startswith("-0.125 s lines 398 x")
