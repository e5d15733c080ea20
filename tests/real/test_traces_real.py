"""OpenTelemetry traces of a pool on the real binary, sent to a collector on loopback."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from collector import Collected, Collector
from ports import free_port
from raw_client import RawClient
from waiting import until

from codex_app_server import AppServerConfig
from codex_app_server.trace_context import trace_context
from codex_pool import Pool
from codex_pool.client.transport import PoolTransport
from codex_pool.daemon.status_text import summary

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(150)]

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
# One turn at a time, so that the second of two waits.
OPTIONS: dict[str, Any] = {"turns_per_worker": 1, "traces": True}


def start_turn(client: RawClient, thread: str, text: str, trace: dict[str, str] | None, name: str) -> None:
    """Start a turn with the trace of a client, if there is one."""
    params = {"threadId": thread, "input": [{"type": "text", "text": text, "text_elements": []}]}
    client.send({"id": name, "method": "turn/start", "params": params, **({"trace": trace} if trace else {})})


def completed(client: RawClient, thread: str) -> dict[str, Any]:
    found = client.wait(lambda each: each.get("method") == "turn/completed" and each["params"]["threadId"] == thread)
    turn: dict[str, Any] = found[-1]["params"]["turn"]
    return turn


def turns(span: Collected) -> bool:
    return span.name == "codex_pool.turn"


def test_turns_are_below_their_clients_spans_and_their_wait_below_them(
    tmp_path: Path, config: AppServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
    before = time.time_ns()
    with Collector() as collector:
        for name, value in collector.environment.items():
            monkeypatch.setenv(name, value)
        with Pool(1, config, log_file=tmp_path / "log", **OPTIONS) as pool:
            client = RawClient(PoolTransport(pool.endpoint, client="traced"))
            threads = [client.call("thread/start")["thread"]["id"] for _ in range(2)]
            start_turn(client, threads[0], "[[delay 700]] [[text one]]", trace, "one")
            client.wait(lambda each: each.get("method") == "turn/started")
            start_turn(client, threads[1], "[[text SECRET]]", None, "two")
            ids = [completed(client, thread)["id"] for thread in threads]
            first, second = sorted(collector.wait(turns, 2), key=lambda span: span.begin)
            status = until(lambda: (found := client.call("pool/status"))["tracer"]["exported"] >= 4 and found)
            worker = status["workers"][0]["worker"]
            assert "; tracer ready, 4 spans exported; codex 0.163.0" in summary(status)
            client.transport.close()
            with pool.connect() as codex, trace_context(trace["traceparent"]):
                ran = codex.thread_start().run("[[text two]]")
            (third,) = collector.wait(lambda span: span.attributes.get("codex_pool.turn.id") == ran.id)
            killed = RawClient(PoolTransport(pool.endpoint, client="killed"))
            thread = killed.call("thread/start")["thread"]["id"]
            start_turn(killed, thread, "[[delay 60000]] [[text never]]", trace, "killed")
            killed.wait(lambda each: each.get("method") == "turn/started")
            until(lambda: killed.call("pool/status")["turns"]["running"])
            os.kill(killed.call("pool/status")["workers"][0]["pid"], signal.SIGKILL)
            (lost,) = collector.wait(lambda span: turns(span) and span.attributes["codex_pool.outcome"] == "lost")
            killed.transport.close()
        spans = list(collector.spans)
    assert (first.trace, first.parent) == (TRACE, SPAN) == (lost.trace, lost.parent) == (third.trace, third.parent)
    assert second.trace != TRACE and second.parent == ""
    assert [first.attributes["codex_pool.turn.id"], second.attributes["codex_pool.turn.id"]] == ids
    queues = {span.parent: span for span in spans if span.name == "codex_pool.queue"}
    for turn in (first, second):
        queue = queues[turn.id]
        assert queue.trace == turn.trace and turn.begin == queue.begin <= queue.end < turn.end
        assert before < turn.begin < turn.end < time.time_ns()
    # The second waited for all of the first.
    assert second.begin < first.end <= queues[second.id].end
    assert {name: first.attributes[name] for name in first.attributes if name.startswith("gen_ai.")} == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "codex",
        "gen_ai.conversation.id": threads[0],
        "gen_ai.provider.name": "loopback",
        "gen_ai.request.model": "mock-model",
        "gen_ai.usage.input_tokens": first.attributes["gen_ai.usage.input_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": first.attributes["gen_ai.usage.output_tokens"],
        "gen_ai.usage.reasoning.output_tokens": 0,
        "gen_ai.response.time_to_first_chunk": first.attributes["gen_ai.response.time_to_first_chunk"],
    }
    assert first.attributes["gen_ai.usage.output_tokens"] > 0
    assert first.attributes["gen_ai.response.time_to_first_chunk"] > 0
    own = {"codex_pool.worker": worker, "codex_pool.outcome": "completed", "codex_pool.principal": "owner"}
    assert own.items() <= first.attributes.items() and not first.is_error
    assert lost.is_error and lost.attributes["error.type"] == "lost"
    assert first.resource["service.name"] == "codex-pool" and first.kind == 2
    assert "SECRET" not in repr(spans)


def test_turns_go_on_without_a_collector_and_lost_spans_are_counted(
    tmp_path: Path, config: AppServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with Pool(1, config, log_file=tmp_path / "log", **OPTIONS) as pool:
        client = RawClient(PoolTransport(pool.endpoint, client="traced"))
        thread = client.call("thread/start")["thread"]["id"]
        start_turn(client, thread, "[[text one]]", None, "one")
        assert completed(client, thread)["status"] == "completed"
        row = until(lambda: (found := client.call("pool/status")["tracer"])["lost"] >= 2 and found)
        assert row["exported"] == 0 and row["state"] == "ready" and row["problem"].startswith(f"127.0.0.1:{port}: ")
        # The tracer dies while there is a collector again; the next one exports.
        os.kill(row["pid"], signal.SIGKILL)
        until(lambda: client.call("pool/status")["tracer"]["restarts"] == 1)
        with Collector(port) as collector:
            start_turn(client, thread, "[[text two]]", None, "two")
            client.wait(lambda each: each.get("method") == "turn/completed", 2)
            collector.wait(turns)
            row = until(lambda: (found := client.call("pool/status")["tracer"])["exported"] >= 2 and found)
        assert row["restarts"] == 1 and row["lost"] >= 2 and row["problem"] == ""
        client.transport.close()
    log = (tmp_path / "log").read_text()
    assert log.count("spans cannot be exported, and are lost; turns are not affected: ") == 1
