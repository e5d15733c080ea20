"""The fleet of a run over hosts that answer from memory: what becomes of leases whose host goes at a bad moment."""

from __future__ import annotations

import asyncio
import contextlib
import platform
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

import codex_pool
from codex_batch.hosts import messages
from codex_batch.hosts.bundle import Bundle
from codex_batch.hosts.engine import Change, HostError, HostGoneError
from codex_batch.hosts.fleet import Fleet
from codex_batch.hosts.host_state import FleetCallbacks, LeaseLost
from codex_batch.hosts.messages import Delivery, Hello, Lease, Opened, Report
from codex_batch.store import RecordRow, Start

PLACES = 2


class MemoryEngine:
    """Hosts that take every lease and never end one."""

    def __init__(self) -> None:
        self.news: asyncio.Queue[Change] = asyncio.Queue()
        self.leased: dict[str, list[str]] = {}
        self.rate_limiters: dict[str, dict[str, Any]] = {}
        self.deliveries: dict[str, list[Delivery]] = {}
        self.refusing: set[str] = set()

    def come(self, host: str) -> None:
        self.leased[host] = []
        self.news.put_nowait(Change(host, is_there=True))

    def go(self, host: str) -> None:
        del self.leased[host]
        self.news.put_nowait(Change(host, is_there=False))

    async def changes(self) -> AsyncIterator[Change]:
        while True:
            yield await self.news.get()

    async def call(self, host: str, method: str, *arguments: Any) -> Any:
        if host not in self.leased:
            raise HostGoneError("its machine has gone")
        if method == "hello":
            python = ".".join(platform.python_version_tuple()[:2])
            return messages.encode(Hello(messages.PROTOCOL, codex_pool.__version__, python, host, 1, "/spool"))
        if method == "open":
            return messages.encode(Opened(PLACES, "1.0", {}))
        if method == "lease":
            if host in self.refusing:
                raise HostError("its pool is not open")
            self.leased[host].append(messages.lease(arguments[0]).key)
        if method == "collect":
            await asyncio.sleep(0.01)
            return messages.encode(
                Report(
                    held=tuple(self.leased.get(host, ())),
                    deliveries=tuple(self.deliveries.pop(host, ())),
                    rate_limiter=self.rate_limiters.get(host, {}),
                )
            )
        return None

    async def close(self, *, is_over: bool) -> None:
        pass


def make_fleet(engine: MemoryEngine, said: list[str], lost: Mapping[str, int] = {}) -> Fleet:
    """A fleet over the engine; `lost` are attempts that the run has as lost, with the numbers of their samples."""

    async def superseded(*_: Any) -> None:
        raise AssertionError("no result comes here")

    callbacks = FleetCallbacks(
        attempt_of=lambda key: (
            (SimpleNamespace(n=lost[key], attempt=1, status="lost"), False) if key in lost else None  # type: ignore[return-value,arg-type]
        ),
        superseded=superseded,
        warn=lambda kind, message: said.append(message),
        places=lambda count: None,
    )
    return Fleet(engine, b"plan", (), Bundle(), callbacks)


@contextlib.asynccontextmanager
async def served(engine: MemoryEngine, said: list[str], lost: Mapping[str, int] = {}) -> AsyncIterator[Fleet]:
    """A fleet as of `make_fleet`, which serves its hosts meanwhile."""
    fleet = make_fleet(engine, said, lost)
    serving = asyncio.ensure_future(fleet.run())
    try:
        yield fleet
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def test_a_lease_whose_host_goes_before_it_is_sent_is_given_to_another_one() -> None:
    async def main() -> None:
        engine, said = MemoryEngine(), list[str]()
        async with served(engine, said) as fleet:
            engine.come("a")
            assert await fleet.place(0, "k0") == "a"
            # The run writes the attempt down meanwhile, on a slow disk.
            engine.go("a")
            while not said:
                await asyncio.sleep(0.001)
            with pytest.raises(HostError, match="host a was lost before"):
                await fleet.send("a", Lease("k0", 0, {}, {}, ""), Start(0, 1))
            fleet.give_back("k0")
            engine.come("b")
            assert await fleet.place(0, "k1") == "b"
            future = await fleet.send("b", Lease("k1", 0, {}, {}, ""), Start(0, 2))
            assert engine.leased == {"b": ["k1"]} and not future.done()
            # One that was sent is lost with its host, and its task is told.
            engine.go("b")
            with pytest.raises(LeaseLost, match="host b was lost"):
                await future

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_late_result_ends_the_wait_for_a_host() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        async with served(engine, [], {"k0": 0}) as fleet:
            engine.come("a")
            assert await fleet.place(0, "k0") == "a"
            future = await fleet.send("a", Lease("k0", 0, {}, {}, ""), Start(0, 1))
            engine.go("a")
            with pytest.raises(LeaseLost):
                await future
            # It comes back with the attempt, and has no other one at the sample meanwhile.
            placing = asyncio.ensure_future(fleet.place(0, "k1"))
            engine.come("a")
            engine.leased["a"] = ["k0"]
            while fleet.hosts[0].held != 1:
                await asyncio.sleep(0.001)
            assert not placing.done()
            engine.deliveries["a"] = [Delivery("k0", 0, record=RecordRow("completed", 1))]
            assert await placing is None
            late = await fleet.offer(0)
            assert late is not None and late.key == "k0" and late.is_complete

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_late_result_is_not_given_to_an_attempt_that_its_host_refused() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        async with served(engine, [], {"k0": 0}) as fleet:
            engine.come("a")
            engine.refusing.add("a")
            assert await fleet.place(0, "k1") == "a"
            with pytest.raises(HostError, match="not open"):
                await fleet.send("a", Lease("k1", 0, {}, {}, ""), Start(0, 2))
            fleet.give_back("k1")
            engine.deliveries["a"] = [Delivery("k0", 0, record=RecordRow("completed", 1))]
            while (late := await fleet.offer(0)) is None:
                await asyncio.sleep(0.001)
            assert late.key == "k0"

    asyncio.run(asyncio.wait_for(main(), 10))


def test_while_the_pool_of_a_host_waits_for_a_rate_limit_nothing_is_leased_to_any() -> None:
    async def main() -> None:
        engine, said = MemoryEngine(), list[str]()
        async with served(engine, said) as fleet:
            engine.rate_limiters["a"] = {"pausedMs": 2000}
            engine.come("a")
            engine.come("b")
            while not any(host.rate_limiter for host in fleet.hosts) or len(fleet.hosts) < 2:
                await asyncio.sleep(0.001)
            placing = asyncio.ensure_future(fleet.place(0, "k0"))
            done, _ = await asyncio.wait({placing}, timeout=0.2)
            assert not done
            engine.rate_limiters["a"] = {"pausedMs": 0}
            assert await placing in ("a", "b")

    asyncio.run(asyncio.wait_for(main(), 10))
