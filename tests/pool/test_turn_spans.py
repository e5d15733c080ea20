"""Spans of turns: what workers report, how it is carried to the tracer, and what the tracer makes of it."""

from __future__ import annotations

import importlib.util
import json
import socket
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased
from worker_bench import Bench

from codex_pool.daemon.options_check import problems_of
from codex_pool.option_sources import Value
from codex_pool.options import PoolOptions
from codex_pool.protocol import turn_spans
from codex_pool.protocol.endpoints import EndpointError
from codex_pool.protocol.turn_spans import Lost, TurnBegan, TurnEnded, trace_of
from codex_pool.protocol.wire_types import Tokens
from codex_pool.tracer.check import check_traces
from codex_pool.tracer.spans import TurnSpanBook
from codex_pool.tracer.telemetry import Counts
from codex_pool.worker import tracer_connection
from codex_pool.worker.effects import Effect, ToTracer
from codex_pool.worker.tracer_connection import TracerConnection

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


class TracedBench(Bench):
    """A worker in a pool with a tracer; `reported` is what it reports."""

    def __init__(self, **options: Any) -> None:
        self.reported: list[turn_spans.Line] = []
        super().__init__(**options)

    def apply(self, effects: list[Effect]) -> list[Effect]:
        self.reported += [turn_spans.decode(effect.line) for effect in effects if isinstance(effect, ToTracer)]
        return super().apply(effects)


def test_a_worker_reports_the_beginning_and_the_end_of_a_turn() -> None:
    bench = TracedBench(traces=True)
    bench.start()
    bench.thread("t1")
    bench.turn("u1", "t1")
    began_at = bench.now
    bench.now += 2
    bench.delta("u1")
    bench.now += 3
    bench.complete("u1")
    began, ended = bench.reported
    assert isinstance(began, TurnBegan) and isinstance(ended, TurnEnded)
    assert (began.turn_id, began.thread_id, began.worker, began.traceparent) == ("u1", "t1", "w0", "")
    assert began.came_at == began.sent_at == began_at
    assert ended.began == began and ended.status == "completed"
    assert (ended.ended_at, ended.first_delta_at) == (began_at + 5, began_at + 2)


def test_a_worker_without_a_tracer_reports_nothing() -> None:
    bench = TracedBench()
    bench.start()
    bench.thread("t1")
    bench.turn("u1", "t1")
    bench.complete("u1")
    assert bench.reported == []


@pytest.mark.parametrize(
    ("member", "found"),
    [
        ({"traceparent": PARENT, "tracestate": "a=1"}, (PARENT, "a=1")),
        ({"traceparent": PARENT}, (PARENT, "")),
        ({"traceparent": PARENT, "tracestate": "x" * 2000}, (PARENT, "")),
        ({"traceparent": "x" * 2000}, ("", "")),
        ({"traceparent": 3}, ("", "")),
        ([], ("", "")),
    ],
)
def test_the_trace_of_a_request_is_read_as_far_as_it_can_be(member: Any, found: tuple[str, str]) -> None:
    assert trace_of(json.dumps(member).encode()) == found
    assert trace_of(None) == ("", "")


# Between them.


@pytest.fixture
def listener(tmp_path: Path) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(str(tmp_path / "t"))
        made.listen()
        made.settimeout(5)
        yield made


def lines(connection: socket.socket) -> list[turn_spans.Line]:
    """What has come, decoded."""
    connection.setblocking(False)
    data = b""
    while True:
        try:
            chunk = connection.recv(1 << 20)
        except BlockingIOError:
            break
        if not chunk:
            break
        data += chunk
    return [turn_spans.decode(line) for line in data.splitlines()]


def began(turn_id: str = "u1", **more: Any) -> TurnBegan:
    return TurnBegan(
        **{"turn_id": turn_id, "thread_id": "t1", "came_at": 10.0, "sent_at": 11.0, "worker": "w0", **more}
    )


def test_what_a_tracer_does_not_read_is_left_out_and_the_number_follows(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracer_connection, "MAX_UNSENT_BYTES", 10_000)
    connection, line = TracerConnection(listener.getsockname()), turn_spans.encode(began())
    connection.send(line)
    tracer, _ = listener.accept()
    sent = 1
    while not connection._lost:
        connection.send(line)
        sent += 1
    for _ in range(4):
        connection.send(line)
    found: list[turn_spans.Line] = []
    while not any(isinstance(each, Lost) for each in found):
        found += lines(tracer)
        connection.flush()
    assert found[-1] == Lost(5) and len(found) - 1 == sent + 4 - 5
    connection.close()
    tracer.close()


def test_lines_are_counted_while_there_is_no_tracer_and_while_one_is_replaced(listener: socket.socket) -> None:
    path = listener.getsockname()
    connection = TracerConnection(path + ".none")
    connection.send(turn_spans.encode(began()))
    connection.send(turn_spans.encode(began()))
    connection._path = path
    connection.flush()
    tracer, _ = listener.accept()
    assert lines(tracer) == [Lost(2)]
    tracer.close()
    connection.send(turn_spans.encode(began("u2")))
    connection.send(turn_spans.encode(began("u3")))
    connection.flush()
    tracer, _ = listener.accept()
    after = lines(tracer)
    assert sum(each.lines if isinstance(each, Lost) else 1 for each in after) == 2
    connection.close()
    tracer.close()
    # A pool without a tracer keeps nothing.
    none = TracerConnection("")
    none.send(b"x\n")
    none.flush()
    assert (none._lost, len(none._unsent)) == (0, 0)


# The spans.


@pytest.fixture
def made() -> tuple[TurnSpanBook, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return TurnSpanBook(provider.get_tracer("test"), 1000.0), exporter


def test_spans_have_the_times_and_the_tree_of_a_turn(made: tuple[TurnSpanBook, InMemorySpanExporter]) -> None:
    book, exporter = made
    above = began(traceparent=PARENT, tracestate="a=1", principal="p1")
    below = began("u2", parent_turn="u1", sent_at=None, came_at=12.0)
    book.began(1, above)
    book.began(1, below)
    book.ended(TurnEnded(began=below, ended_at=13.0, status="stalled"))
    tokens = Tokens(input=5, cached=2, output=3, reasoning=1)
    book.ended(TurnEnded(began=above, ended_at=14.5, status="completed", model="m", tokens=tokens, first_delta_at=12.5))
    queue, agent, turn = exporter.get_finished_spans()
    assert [span.name for span in (queue, agent, turn)] == ["codex_pool.queue", "codex_pool.turn", "codex_pool.turn"]
    assert turn.parent is not None and f"{turn.parent.span_id:016x}" == SPAN and turn.parent.is_remote
    assert f"{turn.context.trace_id:032x}" == TRACE and turn.context.trace_state.get("a") == "1"
    assert [span.parent.span_id for span in (queue, agent) if span.parent] == [turn.context.span_id] * 2
    assert [(span.start_time, span.end_time) for span in (turn, queue, agent)] == [
        (1010 * 10**9, 1014_500_000_000),
        (1010 * 10**9, 1011 * 10**9),
        (1012 * 10**9, 1013 * 10**9),
    ]
    assert dict(turn.attributes or {}) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "codex",
        "gen_ai.conversation.id": "t1",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.reasoning.output_tokens": 1,
        "gen_ai.response.time_to_first_chunk": 2.5,
        "codex_pool.turn.id": "u1",
        "codex_pool.worker": "w0",
        "codex_pool.slot": 0,
        "codex_pool.principal": "p1",
        "codex_pool.outcome": "completed",
    }
    assert (agent.attributes or {})["error.type"] == "stalled" and not agent.status.is_ok and turn.status.is_ok
    assert len(book) == 0


def test_a_turn_whose_worker_is_gone_is_lost_and_one_whose_beginning_is_not_known_has_its_span(
    made: tuple[TurnSpanBook, InMemorySpanExporter],
) -> None:
    book, exporter = made
    book.began(1, began("u1"))
    book.began(2, began("u2"))
    exporter.clear()
    book.closed(1, 20.0)
    book.ended(TurnEnded(began=began("u3"), ended_at=15.0, status="completed"))
    outcomes = [
        ((span.attributes or {})["codex_pool.turn.id"], (span.attributes or {})["codex_pool.outcome"], span.end_time)
        for span in exporter.get_finished_spans()
        if span.name == "codex_pool.turn"
    ]
    assert outcomes == [("u1", "lost", 1020 * 10**9), ("u3", "completed", 1015 * 10**9)]
    assert len(book) == 1


def test_a_client_that_does_not_sample_has_no_spans() -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    book = TurnSpanBook(provider.get_tracer("test"), 0.0)
    one = began(traceparent=PARENT[:-1] + "0")
    book.began(1, one)
    book.ended(TurnEnded(began=one, ended_at=12.0, status="completed"))
    assert exporter.get_finished_spans() == ()


def test_counts_of_spans_add_up() -> None:
    counts = Counts()
    assert [counts.begin(2), counts.begin(2), counts.begin(2)] == [True, True, False]
    counts.end(1, "no")
    assert counts.as_json() == {"exported": 0, "lost": 2, "waiting": 1, "problem": "no"}
    counts.end(1, None)
    counts.lose(3)
    assert counts.as_json() == {"exported": 1, "lost": 5, "waiting": 0, "problem": ""}


# Before the start.


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; expected http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER is 'console'; expected otlp, or unset it"),
    ],
)
def test_what_the_tracer_does_not_do_is_refused_by_the_name_of_the_variable(
    environ: dict[str, str], words: str
) -> None:
    with pytest.raises(EndpointError, match=words):
        check_traces(PoolOptions(traces=True), environ)
    check_traces(PoolOptions(), environ)
    check_traces(PoolOptions(traces=True), {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})


def test_without_the_extra_the_option_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name.startswith("opentelemetry") else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(
        EndpointError, match=r"traces \(--traces\) needs opentelemetry-sdk .* extra otel, in a checkout"
    ):
        check_traces(PoolOptions(traces=True), {})
    (problem,) = problems_of({"traces": Value(True, "the file")})
    assert "needs opentelemetry-sdk" in str(problem)
