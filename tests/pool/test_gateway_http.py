"""Probes and metrics over HTTP: hostile requests, tokens, and counts that add up to what clients counted."""

from __future__ import annotations

import asyncio
import functools
import http.client
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway_clients import answer, connect
from loops import on_a_loop
from ports import free_port
from prometheus_client.parser import text_string_to_metric_families
from waiting import until

from codex_app_server import AppServerConfig, Codex, InvalidInputError
from codex_app_server.testing import null_app_server
from codex_pool import Pool
from codex_pool.auth.keys import KeyStore
from codex_pool.auth.principal import Identity
from codex_pool.gateway.listeners import limits
from codex_pool.gateway.listeners.configuration import listener_config
from codex_pool.gateway.listeners.pages import TokenFile
from codex_pool.gateway.listeners.server import Listeners
from codex_pool.gateway.sessions import Client, ClientSession, ListenerConfig
from codex_pool.options import PoolOptions
from codex_pool.protocol.endpoints import EndpointError
from codex_pool.protocol.pool_report import PoolReport
from codex_pool.protocol.tally import Tally
from codex_pool.runtime import processes

TOKEN = "0123456789abcdef0123456789abcdef"


class Broker:
    """Answers of the broker to the pages."""

    def __init__(self) -> None:
        self.report_now: PoolReport | None = PoolReport(tally=Tally(ended={"completed": 3}))
        self.asked = 0
        self.waits = asyncio.Event()
        self.waits.set()

    async def report(self, limit_s: float) -> PoolReport | None:
        self.asked += 1
        await self.waits.wait()
        return self.report_now

    def open(self, client: Client, identity: Identity | None, public_key: str) -> ClientSession:
        raise AssertionError("no client is let in")

    def resume_reading(self, session: Any, callback: Any) -> None: ...


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o640)
    return path


@asynccontextmanager
async def pages(port: int, **config: Any) -> AsyncIterator[tuple[Listeners, Broker]]:
    broker, log = Broker(), list[str]()
    listeners = Listeners(ListenerConfig(http=f"127.0.0.1:{port}", **config), broker, log.append)
    await listeners.open()
    try:
        yield listeners, broker
    finally:
        await listeners.close()
    assert listeners.counts()["strangers"] == 0


def get(path: str, *headers: str, method: str = "GET", host: str | None = "localhost") -> bytes:
    lines = [f"Host: {host}"] if host is not None else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, *headers, "", ""]).encode()


def bearer(token: str = TOKEN) -> str:
    return f"Authorization: Bearer {token}"


@on_a_loop
async def test_pages(token_file: Path) -> None:
    port = free_port()
    async with pages(port, metrics_token=str(token_file)) as (_, broker):
        for path in ("/healthz", "/readyz"):
            assert (await answer(port, get(path)))[::2] == (200, "ok\n")
        status, headers, text = await answer(port, get("/metrics", bearer()))
        assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
        assert headers["connection"] == "close" and 'codex_pool_turns_total{outcome="completed"} 3.0' in text
        status, headers, text = await answer(port, get("/metrics", bearer(), method="HEAD"))
        assert (status, text) == (200, "") and int(headers["content-length"]) > 1000
        broker.report_now = PoolReport(not_ready="the pool is draining", tally=None)
        await asyncio.sleep(1.1)
        assert (await answer(port, get("/healthz")))[0] == 200
        assert (await answer(port, get("/readyz")))[::2] == (503, "the pool is draining\n")
        assert (await answer(port, get("/metrics", bearer())))[::2] == (503, "the pool is draining\n")


@on_a_loop
async def test_a_broker_that_does_not_answer(token_file: Path) -> None:
    port = free_port()
    async with pages(port, metrics_token=str(token_file)) as (_, broker):
        broker.report_now = None
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await answer(port, get(path, bearer())))[::2] == (503, "the broker does not answer\n")
        # However many ask, the broker is asked once; one that leaves ends nobody else's answer.
        broker.report_now, broker.asked = PoolReport(tally=Tally()), 0
        broker.waits.clear()
        _, leaves = await connect(port)
        leaves.write(get("/metrics", bearer()))
        asking = [asyncio.create_task(answer(port, get("/metrics", bearer()))) for _ in range(10)]
        await asyncio.sleep(0.2)
        leaves.close()
        broker.waits.set()
        assert {found[0] for found in await asyncio.gather(*asking)} == {200} and broker.asked == 1
        for _ in range(20):
            assert (await answer(port, get("/readyz")))[0] == 200
        assert broker.asked == 1, "probes cost the broker nothing for a second"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/metrics"), 401),
        (get("/metrics", "Authorization: Basic abc"), 401),
        (get("/metrics", bearer("x" * 32)), 401),
        (get("/metrics", bearer(TOKEN + "\x00")), 400),
        (get("/metrics", bearer("x" * 9000)), 400),
        (get("/metrics", bearer(), host="evil.example"), 403),
        (get("/healthz", host="evil.example"), 403),
        (get("/readyz", host=None), 400),
        (get("/readyz", "Origin: http://localhost"), 403),
        (get("/metrics", bearer(), method="POST"), 405),
        (get("/healthz", method="DELETE"), 405),
        (get("/healthz", "Content-Length: 5") + b"hello", 400),
        (get("/healthz", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (get("/"), 404),
        (get("/metrics/../healthz"), 404),
        (get("/healthz", *(f"X-{n}: {'y' * 200}" for n in range(70))), 400),
        (get("/healthz", "X: " + "y" * 20_000), 431),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_hostile_requests(request_: bytes, status: int, token_file: Path) -> None:
    async def run() -> None:
        port = free_port()
        async with pages(port, metrics_token=str(token_file)) as (listeners, broker):
            found = await answer(port, request_)
            assert found[0] in ((status, 431) if status == 400 else (status,)) and TOKEN not in found[2]
            assert broker.asked == 0, "nothing is asked for a request that is refused"
            assert listeners.counts()["clients"] == 0

    asyncio.run(run())


@on_a_loop
async def test_one_that_sends_slowly_has_seconds(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_LIMIT_S", 0.3)
    port = free_port()
    async with pages(port, metrics_token=str(token_file)) as (listeners, _):
        reader, writer = await connect(port)
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        assert await reader.read() == b""
        writer.close()
        assert "a handshake that is too slow" in listeners.counts()["refused"]  # type: ignore[operator]


@on_a_loop
async def test_admin_keys_open_metrics_and_others_do_not(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    store.server()
    admin = store.new(Identity(name="root", admin=True), tmp_path / "root.key")
    other = store.new(Identity(name="alice"), tmp_path / "alice.key")
    port = free_port()
    async with pages(port, keys=str(store.directory)):
        assert (await answer(port, get("/metrics", bearer(admin.token))))[0] == 200
        status, _, text = await answer(port, get("/metrics", bearer(other.token)))
        assert status == 403 and "the key of alice does not open /metrics" in text
        store.revoke("root")
        assert (await answer(port, get("/metrics", bearer(admin.token))))[0] == 401


def test_a_token_file_is_read_again_and_closes_when_it_cannot_be_used(token_file: Path) -> None:
    log: list[str] = []
    file = TokenFile(str(token_file), log.append)
    assert file.is_right(TOKEN) and not file.is_right("") and not file.is_right("x" * 100_000)
    token_file.write_text("another-token-of-the-rotation\n")
    assert file.is_right("another-token-of-the-rotation") and not file.is_right(TOKEN)
    token_file.chmod(0o644)
    assert not file.is_right("another-token-of-the-rotation") and "chmod 640" in log[-1]
    token_file.unlink()
    assert not file.is_right("another-token-of-the-rotation") and "cannot be read" in log[-1]
    token_file.write_text(f"{TOKEN}\n")
    token_file.chmod(0o600)
    assert file.is_right(TOKEN)
    assert not TokenFile("", log.append).is_right("")


@pytest.mark.parametrize("text", ["", "short", "two words of a long token", "x" * 600])
def test_files_without_a_token_are_refused(text: str, token_file: Path) -> None:
    token_file.write_text(text)
    with pytest.raises(EndpointError, match="has no token"):
        TokenFile(str(token_file), print)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"listen_http": "0.0.0.0:7602"}, "listen_http 0.0.0.0:7602 can be reached from other machines"),
        ({"listen_http": "7602"}, "listen_http is '7602'; expected HOST:PORT"),
        ({"metrics_token": "/x"}, "metrics_token is about listen_http"),
        ({"tls_cert": "/x"}, "tls_cert is about listen_ws or listen_http"),
        ({"listen_http": "127.0.0.1:7602", "tls_cert": "/x"}, "belong together"),
        ({"listen_http": "127.0.0.1:7602", "listen_ws": "127.0.0.1:7602"}, "a port of its own"),
        ({"listen_http": "127.0.0.1:7602", "insecure_no_auth": True}, "insecure_no_auth is about listen_ws"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises((EndpointError, InvalidInputError), match=why.replace(".", r"\.")):
        listener_config(PoolOptions(**options), tmp_path)


# A pool.


class House:
    """A pool on null app-servers with metrics; `counted` is what its client has seen of turns."""

    def __init__(self, directory: Path, token_file: Path) -> None:
        self.port, self.log = free_port(), directory / "log"
        self.counted: Counter[str] = Counter()
        self._options = {"listen_http": f"127.0.0.1:{self.port}", "metrics_token": str(token_file)}

    def pool(self, config: AppServerConfig, workers: int = 2, **options: Any) -> Pool:
        self.made = Pool(workers, config, log_file=self.log, **self._options, **options)
        return self.made

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
            found = connection.getresponse()
            return found.status, found.read().decode()
        finally:
            connection.close()

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Values by name and labels; waits for a gateway or a broker that is being replaced."""
        until_s = time.monotonic() + 30
        while True:
            try:
                status, text = self.get("/metrics")
            except OSError:
                status, text = 0, "no gateway"
            if status == 200:
                break
            assert time.monotonic() < until_s, text
            time.sleep(0.05)
        return {
            (sample.name.removeprefix("codex_pool_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def outcomes(self) -> Counter[str]:
        found = {key[1]: int(value) for key, value in self.metrics().items() if key[0] == "turns_total" and value}
        return Counter(found)

    def kill(self, what: str) -> None:
        assert self.made.supervisor_pid is not None
        for process in processes.descendants(self.made.supervisor_pid):
            if what.encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(process.pid, signal.SIGKILL)
                until(functools.partial(_is_gone, process))
                return
        raise AssertionError(f"no process of {what}")

    def turns(self, client: Codex, number: int) -> None:
        for _ in range(number):
            self.counted[client.thread_start().run("x").status] += 1


def _is_gone(process: processes.ProcessId) -> bool:
    return processes.identify(process.pid) != process


@pytest.fixture
def house(tmp_path: Path, token_file: Path) -> Iterator[House]:
    house = House(tmp_path, token_file)
    yield house
    print(house.log.read_text())


@pytest.mark.slow
def test_counts_add_up_to_what_the_client_counted_whatever_is_killed(house: House) -> None:
    with house.pool(null_app_server()) as pool, pool.connect() as codex:
        assert house.get("/healthz") == (200, "ok\n") and house.get("/readyz") == (200, "ok\n")
        house.turns(codex, 5)
        assert house.outcomes() == house.counted == {"completed": 5}
        for what in ("codex_pool.broker", "codex_pool.gateway", "codex_pool.worker", "codex_pool.broker"):
            house.kill(what)
            if what == "codex_pool.worker":
                # A request on its way to a worker that is dead is lost with it.
                until(lambda: house.metrics()["worker_restarts_total", "exited"] == 1)
            house.turns(codex, 4)
            assert house.outcomes() == house.counted, what
        values = house.metrics()
        ended = sum(house.counted.values())
        assert values["turn_duration_seconds_count",] == values["turn_queue_seconds_count",] == ended == 21
        assert values["turn_first_delta_seconds_count",] == ended
        assert values["tokens_total", "owner", "input"] == 6 * ended
        assert values["tokens_total", "owner", "output"] == 21 * ended
        assert values["worker_restarts_total", "exited"] == 1 and values["turns_running",] == 0
        until(lambda: house.metrics()["workers", "ready"] == 2)
        until(lambda: {key[1] for key in house.metrics() if key[0] == "app_server_memory_bytes"} == {"0", "1"})
        assert 1 <= house.metrics()["sessions",] <= 2
        assert not any(len(label) > 30 for key in values for label in key[1:]), "no ids"
        # Where a worker's counts are lost with the broker, all begin at zero: never only some.
        house.kill("codex_pool.broker")
        house.kill("codex_pool.worker")
        until(lambda: house.metrics()["worker_restarts_total", "exited"] == 2)
        house.turns(codex, 4)
        assert house.outcomes() in ({"completed": ended + 4}, {"completed": 4})


def test_a_pool_whose_workers_cannot_take_a_turn_is_not_ready(house: House, tmp_path: Path) -> None:
    """One that was recycled has left its counts behind; while the only worker is gone the pool is alive, not ready."""
    go_on = tmp_path / "go-on"
    scenarios = [{}, {}, {"start": [{"wait": str(go_on)}]}]
    app_server = null_app_server(generations=str(tmp_path / "starts"), scenarios=scenarios)
    with house.pool(app_server, workers=1, recycle_turns=3) as pool, pool.connect() as codex:
        house.turns(codex, 3)
        until(lambda: house.metrics()["worker_recycles_total", "turns"] == 1)
        assert house.outcomes() == {"completed": 3}
        assert {key[1] for key in house.metrics() if key[0] == "threads_loaded"} == {"0"}
        status = codex.client.request("pool/status")
        os.kill(status["workers"][0]["pid"], signal.SIGKILL)
        until(lambda: house.get("/readyz") == (503, "no worker is ready\n"))
        assert house.get("/healthz")[0] == 200
        go_on.touch()
        until(lambda: house.get("/readyz")[0] == 200)


def test_a_port_that_is_taken_is_a_failed_start(house: House) -> None:
    with socket.create_server(("127.0.0.1", house.port)), pytest.raises(Exception, match="cannot listen on 127"):
        house.pool(null_app_server(), workers=1).start()
