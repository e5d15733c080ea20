"""Fleet: the hosts of a run. It joins them, leases to them, and takes their results.

    for each host:   hello -> versions compared -> files sent -> pool opened -> collect, again and again

A host that fails to answer is tried again for as long as its engine has it; its leases expire meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from codex_app_server._runtime.text import plural

from ..rules.retry import INTERRUPTED
from ..run.stopping import cancel_all
from ..store import AttemptRow, Start
from . import messages
from .bundle import Bundle
from .engine import Engine, HostError, HostGoneError
from .host_link import HostLink
from .host_state import FleetCallbacks, HostState, LeaseLost, codex_warning, versions_problem
from .leases import LEASE_S, Leases, Verdict
from .messages import Delivery, Lease, Report

AGAIN_S = 0.5
OPEN_LIMIT_S = 180.0

_log = logging.getLogger(__name__)


class Fleet:
    """See the module's docstring. `plan` and its `trees` are what every host gets before its pool starts."""

    def __init__(
        self,
        engine: Engine,
        plan: bytes,
        trees: tuple[str, ...],
        bundle: Bundle,
        callbacks: FleetCallbacks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._plan = plan
        self._plan_trees = trees
        self._bundle = bundle
        self._callbacks, self._clock = callbacks, clock
        self._leases = Leases()
        self._links: dict[str, HostLink] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiters: dict[int, tuple[str, asyncio.Future[Delivery]]] = {}
        # Results of lost leases and of earlier launches, of samples that have none yet.
        self._late: dict[int, dict[str, Delivery]] = {}
        self._ended: list[int] = []
        self._on_assigned: dict[str, Callable[[], None]] = {}
        self._from: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._starts: dict[str, Start] = {}
        self._scorings: dict[str, asyncio.Future[Delivery]] = {}
        self._freed = asyncio.Event()
        self._sent = asyncio.Event()
        self._joined_at: float | None = None

    # Seen from outside.

    @property
    def hosts(self) -> list[HostState]:
        """All hosts that there were, with what is known of them."""
        for name, link in self._links.items():
            link.state.held = self._leases.held(name)
        return [link.state for link in self._links.values()]

    def name_of(self, key: str) -> str:
        """Return the host that a result came from, or that a lease was given to."""
        return self._from.get(key) or self._leases.host_of(key) or "a host"

    async def run(self) -> None:
        """Serve all hosts, without end. Raises EngineError."""
        ticking = asyncio.ensure_future(self._tick())
        try:
            async for change in self._engine.changes():
                if change.problem is not None:
                    self._callbacks.warn("host_refused", f"{change.host} is not used: {change.problem}")
                elif change.is_there and change.host not in self._tasks:
                    self._links.setdefault(change.host, HostLink(self._engine, self._bundle, change.host))
                    self._tasks[change.host] = asyncio.ensure_future(self._serve(change.host))
                elif not change.is_there:
                    await self._leave(change.host)
        finally:
            renewals = [task for link in self._links.values() for task in link.renewals]
            await cancel_all([ticking, *self._tasks.values(), *renewals])

    # Leases.

    async def place(self, n: int, key: str, *, is_asked: bool = False) -> str | None:
        """Wait until a host has room for a sample; return it: the lease is its own from now on.

        None if a late result of the sample has come meanwhile, which `offer` has; not for one that `is_asked` already.
        """
        while is_asked or n not in self._late:
            paused = {name for name, link in self._links.items() if link.state.problem is not None}
            # A rate limit is that of all: they use the same service.
            limited = any(link.state.is_limited for link in self._links.values())
            host = None if limited else self._leases.place(n, paused)
            if host is not None:
                self._leases.lease(key, n, host)
                self._numbers[key] = n
                return host
            self._freed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._freed.wait(), AGAIN_S)
        return None

    def give_back(self, key: str) -> None:
        """Give back a lease that was not sent."""
        self._leases.given_back(key)
        self._freed.set()

    async def send(
        self, host: str, lease: Lease, start: Start | None, on_assigned: Callable[[], None] = lambda: None
    ) -> asyncio.Future[Delivery]:
        """Send a lease to its host; return what becomes of it. The future raises LeaseLost.

        Without a `start` an answer is to be scored. `on_assigned` is called when its turn runs. Raises HostError, also
        for a lease that was lost since it was placed: no host has heard of it.
        """
        if not self._leases.is_live(lease.key):
            raise HostError(f"host {host} was lost before the lease was sent")
        future: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        if start is None:
            self._scorings[lease.key] = future
        else:
            self._starts[lease.key] = start
            self._waiters[lease.n] = lease.key, future
            self._on_assigned[lease.key] = on_assigned
        link = self._links[host]
        try:
            await link.send_trees(lease.trees)
            await link.call("lease", messages.encode(lease))
        except HostGoneError:
            pass  # It may have come: the next answer of the host shows it, or none comes.
        except (HostError, OSError):
            # Nobody waits for it: a late result of the sample is for the next attempt.
            future.cancel()
            self._lost(lease.key, "it was not sent")
            raise
        finally:
            link.confirmed.add(lease.key)
        return future

    async def recover(self, n: int, attempt: AttemptRow) -> asyncio.Future[Delivery] | None:
        """Find an attempt of an earlier launch on the hosts that come within some seconds; None if it is on none."""
        start = Start(n, attempt.attempt)
        while True:
            future: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
            found = self.found(n, attempt.key)
            if found is not None:
                future.set_result(found)
                return future
            if self._leases.revive(attempt.key):
                self._starts[attempt.key] = start
                self._waiters[n] = attempt.key, future
                return future
            if self._joined_at is not None and self._clock() - self._joined_at > LEASE_S:
                return None
            await asyncio.sleep(AGAIN_S)

    async def offer(self, n: int) -> Delivery | None:
        """Take a late result that counts, if one has come since the last attempt at a sample was lost."""
        late = list(self._late.pop(n, {}).values())
        complete = [each for each in late if each.is_complete]
        for each in late:
            if each not in complete[:1]:
                await self._supersede(each)
        return complete[0] if complete else None

    def start_of(self, key: str) -> Start:
        """Return the attempt that a result is of."""
        return self._starts[key]

    def found(self, n: int, key: str) -> Delivery | None:
        """Take a result of an earlier launch, if a host has brought it."""
        return self._late.get(n, {}).pop(key, None)

    def halt(self, key: str, why: str) -> None:
        """Let an attempt be interrupted."""
        host = self._leases.host_of(key)
        if host is not None and host in self._links:
            self._links[host].halted[key] = why

    def acknowledge(self, key: str) -> None:
        """Note that a result is on the run's disk: its host may remove it."""
        host = self._from.pop(key, None)
        self._starts.pop(key, None)
        self._numbers.pop(key, None)
        if host is not None:
            self._links[host].acknowledged.append(key)

    async def settled(self) -> None:
        """Wait until the hosts that are there have joined, and have all acknowledgements."""
        while self._is_unsettled():
            self._sent.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._sent.wait(), AGAIN_S)

    def _is_unsettled(self) -> bool:
        states = {link.state.state for link in self._links.values()}
        unsent = any(link.acknowledged and link.state.state == "ready" for link in self._links.values())
        return unsent or not states or not states.isdisjoint(("joining", "starting")) or bool(self._ended)

    def finished(self, n: int) -> None:
        """Note that a sample has its record."""
        self._leases.finished(n)
        self._waiters.pop(n, None)
        if n in self._late:
            self._ended.append(n)

    # Hosts.

    async def _serve(self, name: str) -> None:
        link = self._links[name]
        while True:
            try:
                if not await self._join(link):
                    return
                while True:
                    await self._collect(link)
            except HostGoneError as error:
                if link.state.state == "ready":
                    link.state.state, link.state.problem = "silent", str(error)
            except HostError as error:
                if link.state.problem != str(error):
                    link.state.state, link.state.problem = "failed", str(error)
                    self._callbacks.warn("host_failed", f"host {name}: {error}")
            except Exception as error:
                _log.exception("host %s", name)
                link.state.state, link.state.problem = "failed", repr(error)
            await asyncio.sleep(AGAIN_S)

    async def _join(self, link: HostLink) -> bool:
        """Make a host one of the run's; False if it must not be one."""
        state = link.state
        hello = messages.hello(await link.call("hello"))
        problem = versions_problem(hello)
        if problem is not None:
            state.state, state.problem = "refused", problem
            self._callbacks.warn("host_refused", f"host {state.name} is not used: {problem}")
            return False
        state.spool, link.trees = hello.spool, set(hello.trees)
        await link.send_trees(self._plan_trees)
        state.state = "starting"
        opened = messages.opened(await link.call("open", self._plan, limit_s=OPEN_LIMIT_S))
        await link.call("again")
        if (warning := codex_warning(state.name, opened, [each.state for each in self._links.values()])) is not None:
            self._callbacks.warn("codex_version", warning)
        self._leases.joined(state.name, opened.places, self._clock())
        state.codex_version, state.places = opened.codex_version, opened.places
        state.state, state.problem, state.joined_at = "ready", None, self._clock()
        self._joined_at = self._joined_at or self._clock()
        self._callbacks.places(self._leases.places)
        self._freed.set()
        return True

    async def _collect(self, link: HostLink) -> None:
        state, name = link.state, link.state.name
        confirmed, acknowledged = set(link.confirmed), set(link.acknowledged)
        report = await link.collect()
        acknowledged.update(link.acknowledged)
        self._sent.set()
        named = {key: n for key in report.held if key not in acknowledged and (n := self._number(key)) is not None}
        # What was sent meanwhile may not be in the answer.
        own = {key for key, n in self._numbers.items() if self._leases.host_of(key) == name}
        named |= {key: self._numbers[key] for key in own - confirmed}
        named = {key: n for key, n in named.items() if key not in self._from}
        for key in self._leases.heard(name, self._clock(), named):
            self._lost(key, f"host {name} came back without it")
        for delivery in report.deliveries:
            await self._take(name, delivery)
        self._show(state, report)
        if self._callbacks.renew is not None:
            link.renew(report.asked, self._callbacks.renew)
        for key in report.assigned:
            self._on_assigned.pop(key, lambda: None)()

    def _show(self, state: HostState, report: Report) -> None:
        problem, state.problem = state.problem, report.paused
        state.free_bytes, state.rate_limiter, state.slots = report.free_bytes, report.rate_limiter, list(report.slots)
        if report.paused not in (problem, None):
            self._callbacks.warn("host_paused", f"host {state.name}: {report.paused}")

    async def _leave(self, name: str) -> None:
        """Note that a host has gone for good."""
        task = self._tasks.pop(name, None)
        if task is None:
            return
        await cancel_all([task])
        self._expire(name, "its machine has gone")
        self._links[name].state.state = "gone"

    async def _tick(self) -> None:
        while True:
            for name in self._leases.silent(self._clock()):
                self._expire(name, f"it has not answered for {LEASE_S:.0f} s")
            while self._ended:
                for delivery in self._late.pop(self._ended.pop(), {}).values():
                    await self._take_late(delivery, Verdict.SUPERSEDED, [])
            await asyncio.sleep(AGAIN_S)

    def _expire(self, name: str, why: str) -> None:
        lost = self._leases.gone(name)
        state = self._links[name].state
        if state.state in ("ready", "silent") or lost:
            what = f"; {plural(len(lost), 'attempt')} lost" if lost else ""
            self._callbacks.warn("host_lost", f"host {name} was lost: {why}{what}")
        state.state, state.problem = "lost", why
        state.lost += len(lost)
        for key in lost:
            self._lost(key, f"host {name} was lost: {why}")
        self._callbacks.places(self._leases.places)

    # Results.

    def _number(self, key: str) -> int | None:
        if key not in self._numbers:
            known = self._callbacks.attempt_of(key)
            if known is None:
                return None
            self._numbers[key] = known[0].n
        return self._numbers[key]

    def _lost(self, key: str, why: str) -> None:
        scoring = self._scorings.pop(key, None)
        if scoring is not None and not scoring.done():
            scoring.set_exception(LeaseLost(why))
        n = self._numbers.get(key)
        waiter = None if n is None else self._waiters.get(n)
        if n is not None and waiter is not None and waiter[0] == key:
            del self._waiters[n]
            if not waiter[1].done():
                waiter[1].set_exception(LeaseLost(why))
        self._on_assigned.pop(key, None)

    async def _take(self, host: str, delivery: Delivery) -> None:
        key, n = delivery.key, delivery.n
        if key in self._from:
            return
        self._from[key] = host
        self._links[host].confirmed.discard(key)
        self._on_assigned.pop(key, None)
        was_live = self._leases.is_live(key)
        verdict, others = self._leases.delivered(key, is_complete=delivery.is_complete)
        self._freed.set()
        scoring = self._scorings.pop(key, None)
        if scoring is not None:
            if not scoring.done():
                scoring.set_result(delivery)
            self.acknowledge(key)
            return
        self._links[host].state.done += 1
        if key not in self._starts or not was_live:
            await self._take_late(delivery, verdict, others)
            return
        waiter = self._waiters.pop(n, None)
        if verdict is Verdict.WON and waiter is not None and not waiter[1].done():
            waiter[1].set_result(delivery)
        else:
            await self._supersede(delivery)

    async def _take_late(self, delivery: Delivery, verdict: Verdict, others: list[str]) -> None:
        """A result of a lease that was lost, or of an earlier launch."""
        known = self._callbacks.attempt_of(delivery.key)
        if known is None:
            self.acknowledge(delivery.key)
            return
        attempt, is_done = known
        self._starts[delivery.key] = Start(attempt.n, attempt.attempt)
        waiter = self._waiters.get(delivery.n)
        if waiter is not None and not waiter[1].done() and (verdict is Verdict.WON or delivery.is_complete):
            del self._waiters[delivery.n]
            for key in others:
                self.halt(key, INTERRUPTED)
            waiter[1].set_result(delivery)
        elif is_done and attempt.status not in (None, "lost"):
            # It was recorded, and only the acknowledgement was lost.
            self.acknowledge(delivery.key)
        elif is_done or waiter is not None:
            await self._supersede(delivery)
        else:
            # The task of its sample is still to ask for it.
            self._late.setdefault(delivery.n, {})[delivery.key] = delivery

    async def _supersede(self, delivery: Delivery) -> None:
        start = self._starts.get(delivery.key)
        if start is not None:
            await self._callbacks.superseded(start, delivery, self.name_of(delivery.key))
        self.acknowledge(delivery.key)
