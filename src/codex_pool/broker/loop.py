"""The broker process: one thread, its sockets, the supervisor's pipe, in named phases around `core`.

    python -m codex_pool.broker       start arguments: one JSON line on stdin; then JSON lines of the supervisor
                                      (lost, slots, drain, ping, holds); its end is the supervisor's death
                                      stdout: JSON lines for the supervisor - ready, failed, registered, suspect,
                                      drained, renew, account, pong, reachable, unsaved, saved
                                      stderr: log

The core knows a connection of a client by a name that no two can share: NUL and its identity on the socket over ipc;
what `ingress_link` makes of its number for those that another process has let in.

What a peer cannot take now waits in its outbox, bounded in bytes; a client beyond the bound has to connect anew.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import zmq

from codex_app_server.lines import LineSplitter, LongLine
from codex_pool import endpoints, link, log, sockets, start
from codex_pool.allowed import AllowedKeys
from codex_pool.broker.arguments import BrokerArguments
from codex_pool.broker.checkpoint import Checkpoint, with_unsaved
from codex_pool.broker.core import BrokerCore
from codex_pool.broker.doors import Doors
from codex_pool.broker.ingress_link import IngressLinks, Over
from codex_pool.broker.keeper import Keeper
from codex_pool.broker.legacy import Legacy
from codex_pool.broker.owned import Owned
from codex_pool.broker.places import Place, Places
from codex_pool.broker.records import (
    AccountChanged,
    Drained,
    Effect,
    Forget,
    Keep,
    Note,
    Own,
    Registered,
    Renew,
    Suspect,
    ToClient,
    ToWorker,
)
from codex_pool.keys import KeyStore
from codex_pool.ownership import path_in
from codex_pool.problems import Problems
from codex_pool.wire import ThreadRecord

MESSAGES_PER_PHASE = 500
MAX_OUTBOX_BYTES = 64 * 1024 * 1024
OUTBOX_RETRY_MS = 5
LOOK_AT_KEYS_EVERY_S = 1.0
LOOK_AT_FILES_EVERY_S = 1.0
WORKERS = "workers' socket"

_log = logging.getLogger(__name__)


class Broker:
    """See the module's docstring."""

    def __init__(self, arguments: BrokerArguments) -> None:
        self._arguments = arguments
        self._context = zmq.Context()
        self._workers = sockets.router(self._context)
        self._clients = sockets.router(self._context)
        self._problems = Problems(_log.warning)
        # Those of the supervisor.
        self._its_problems: list[dict[str, Any]] = []
        self._look_at = 0.0
        self._is_reachable = True
        self._doors = Doors(default_cwd=arguments.cwd or os.getcwd())
        self._keeper, owned = self._open_ownership()
        self._legacy = Legacy(arguments.clients_endpoint)
        legacy = with_unsaved(self._legacy.read(), arguments.unsaved)
        self._core = BrokerCore(
            slots=arguments.slots,
            turns_per_worker=arguments.turns_per_worker,
            now=time.monotonic(),
            expect=arguments.expect,
            legacy=legacy,
            doors=self._doors,
            owned=owned,
            secret=self._keeper.secret if self._keeper is not None else os.urandom(16),
            unix_offset=arguments.unix_offset,
            changed_at=arguments.changed_at,
            recycle_descendants=arguments.recycle_descendants,
        )
        self._checkpoint = Checkpoint(self._legacy, self._records, self._problems, report)
        self._commands = LineSplitter()
        self._outboxes: dict[tuple[bool, bytes], deque[list[bytes]]] = {}
        self._outbox_bytes: dict[tuple[bool, bytes], int] = {}
        self._poller = zmq.Poller()
        for source in (self._workers, self._clients, 0):
            self._poller.register(source, zmq.POLLIN)
        if self._keeper is not None:
            self._poller.register(self._keeper.descriptor, zmq.POLLIN)
        self._links: IngressLinks | None = None
        if arguments.link is not None:
            warn = _log.warning
            self._keys = AllowedKeys(KeyStore(arguments.keys), warn)
            self._look_at_keys_at = time.monotonic() + LOOK_AT_KEYS_EVERY_S
            self._look_at_keys(time.monotonic())
            self._links = IngressLinks(endpoints.ipc_path(arguments.link), arguments.secret, self._poller, warn)
        self._places = Places(self._sockets(arguments), self._problems, _log.warning)
        self._places.holds = arguments.holds
        if arguments.must_bind:
            self._places.bind()
        self._look(time.monotonic())

    def run(self) -> None:
        """Work until the supervisor is gone."""
        try:
            while True:
                ready = dict(self._poller.poll(self._wait_ms()))
                # Workers first: what one has sent before it died comes before the news of its death.
                if self._workers in ready:
                    self._phase_receive(self._workers, self._core.worker_message)
                if 0 in ready and not self._phase_supervisor():
                    self._apply(self._core.shut_down())
                    return
                if self._keeper is not None:
                    heard = ready.keys() - {self._workers, 0, self._keeper.descriptor}
                    self._phase_ownership(self._keeper, clients_speak=bool(heard))
                if self._clients in ready:
                    self._phase_receive(self._clients, self._own_message)
                if self._links is not None:
                    self._phase_links(self._links, ready)
                if self._outboxes:
                    self._phase_outboxes()
                now = time.monotonic()
                if now >= self._look_at:
                    self._look(now)
                self._apply(self._core.tick(now))
        finally:
            self._close()

    def _close(self) -> None:
        self._places.remove()
        if self._links is not None:
            self._links.close()
        if self._keeper is not None:
            self._keeper.close()
        self._clients.close(linger=200)
        self._workers.close(linger=0)
        self._context.term()
        self._legacy.remove()

    def _wait_ms(self) -> int:
        if self._outboxes:
            return OUTBOX_RETRY_MS
        if self._links is not None and self._links.has_more:
            return 0
        return max(0, round((self._core.next_deadline - time.monotonic()) * 1000) + 1)

    def _phase_supervisor(self) -> bool:
        chunk = os.read(0, 65536)
        if not chunk:
            return False
        for line in self._commands.feed(chunk):
            command: dict[str, Any] = msgspec.json.decode(b"{}" if isinstance(line, LongLine) else line)
            now = time.monotonic()
            if "lost" in command:
                self._apply(self._core.worker_lost(command["lost"], command.get("reason", "unknown"), now))
            elif "drain" in command:
                self._apply(self._core.drain(command["drain"], now))
            elif "slots" in command:
                self._apply(self._core.slots(command["slots"]))
            elif "holds" in command:
                self._places.holds, self._its_problems = command["holds"], command["problems"]
                self._look(now)
            elif "ping" in command:
                self._core.books.lost_lines = command.get("lost_lines", 0) + log.lost()
                registered, drained = self._core.registered, self._core.drained
                report({"event": "pong", "registered": registered, "drained": drained, "lost_lines": log.lost()})
        return True

    def _phase_receive(self, socket: zmq.Socket[bytes], handle: Any) -> None:
        now = time.monotonic()
        for _ in range(MESSAGES_PER_PHASE):
            message = sockets.receive(socket)
            if message is None:
                return
            identity, *frames = message
            self._apply(handle(identity, frames or [b""], now))

    def _own_message(self, routing_id: bytes, frames: list[bytes], now: float) -> list[Effect]:
        return self._core.client_message(b"\0" + routing_id, frames, now)

    # Ownership.

    def _open_ownership(self) -> tuple[Keeper | None, Owned]:
        """The store of the home, for a pool that lets keys in, or that shares it with one."""
        home, listens = self._arguments.codex_home, self._arguments.link is not None
        if home is None or not (listens or path_in(Path(home)).exists()):
            return None, Owned()
        keys = KeyStore(self._arguments.keys).directory if listens else None
        keeper, owned = Keeper(Path(home), keys, _log.error), Owned(durable=True)
        owned.replace(keeper.open() or [])
        self._doors.close(keeper.problem)
        return keeper, owned

    def _phase_ownership(self, keeper: Keeper, *, clients_speak: bool) -> None:
        """Take in what was written, and, before clients are read, what other pools have written."""
        now = time.monotonic()
        for done in keeper.done():
            self._apply(self._core.ownership_kept(*done, now))
        opened = keeper.look(now)
        if opened is not None:
            _log.info("clients with a key are let in again: the ownership store can be read")
            self._apply(self._core.ownership_opened(opened, now))
        elif clients_speak and (news := keeper.news()):
            self._apply(self._core.ownership_read(news, now))
        self._doors.close(keeper.problem)

    # Clients that another process has let in.

    def _phase_links(self, links: IngressLinks, ready: dict[Any, int]) -> None:
        now = time.monotonic()
        events = links.receive(ready, now)
        if events.keys_changed or now >= self._look_at_keys_at:
            self._look_at_keys_at = now + LOOK_AT_KEYS_EVERY_S
            self._look_at_keys(now)
        self._core.books.refused.update(events.refused)
        for event in events.messages:
            if isinstance(event, Over):
                if event.revoked:
                    self._look_at_keys(now)
                self._apply(self._core.client_unreachable(event.peer, now))
            elif not self._keys.is_allowed(event.who, event.key):
                self._send(True, event.peer, [link.REVOKED])
                links.end(event.peer)
            else:
                self._apply(
                    self._core.client_message(
                        event.peer, event.frames, now, event.who, event.key, screened=event.screened
                    )
                )

    def _look_at_keys(self, now: float) -> None:
        """Read the allow-list if it has changed; sessions of those who are not on it any more end."""
        if self._keys.read():
            self._doors.replace(self._keys.clients.values())
            self._apply(self._core.end_sessions(self._keys.is_revoked, now))

    # Effects.

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case ToClient():
                    self._send(True, effect.peer, effect.frames)
                case ToWorker():
                    self._send(False, effect.peer, effect.frames)
                case Forget():
                    self._drop_outbox((True, effect.peer))
                case Registered():
                    report({"event": "registered", "worker": effect.worker})
                case Suspect():
                    report({"event": "suspect", "worker": effect.worker, "reason": effect.reason})
                case Drained():
                    report({"event": "drained", "worker": effect.worker})
                case Renew():
                    report({"event": "renew", "worker": effect.worker, "reason": effect.reason})
                case AccountChanged():
                    report({"event": "account", "changed_at": effect.changed_at, "under_way": effect.under_way})
                case Keep():
                    self._checkpoint.keep(effect.threads, time.monotonic())
                case Own():
                    if self._keeper is not None:
                        self._keeper.write(effect.number, effect.rows)
                case Note():
                    _log.warning(effect.message)

    # What is kept on disk, and the files of sockets.

    def _sockets(self, arguments: BrokerArguments) -> list[Place]:
        """Workers first: once clients can see their socket, the pool is there."""
        found = [
            Place(what, endpoints.ipc_path(endpoint), functools.partial(sockets.bind, socket, endpoint))
            for what, socket, endpoint in (
                (WORKERS, self._workers, arguments.workers_endpoint),
                ("clients' socket", self._clients, arguments.clients_endpoint),
            )
        ]
        if self._links is not None and arguments.link is not None:
            found.append(Place("ingress's socket", endpoints.ipc_path(arguments.link), self._links.bind))
        return found

    def _records(self) -> list[ThreadRecord]:
        return [thread.record for thread in self._core.books.threads.values()]

    def _look(self, now: float) -> None:
        """What was removed is bound or written again, as is what could not be before."""
        self._look_at = now + LOOK_AT_FILES_EVERY_S
        self._places.look(now)
        is_reachable = self._places.is_bound(WORKERS)
        if not is_reachable:
            self._core.unreachable(now)
        if is_reachable != self._is_reachable:
            self._is_reachable = is_reachable
            report({"event": "reachable", "workers": is_reachable})
        if self._places.holds:
            self._checkpoint.look(now)
        rows = [*self._its_problems, *self._problems.rows()]
        if self._keeper is not None:
            rows += self._keeper.problems.rows()
        self._core.problems(rows)

    def _send_now(self, is_client: bool, peer: bytes, frames: list[bytes]) -> None:
        """Raises Again, and ZMQError for one who is gone."""
        if not is_client:
            sockets.send(self._workers, [peer, *frames])
        else:
            sockets.send(self._clients, [peer[1:], *frames])

    def _send(self, is_client: bool, peer: bytes, frames: list[bytes]) -> None:
        if is_client and not peer.startswith(b"\0"):
            # What such a client does not take is the business of the process that has let it in.
            if self._links is not None and not self._links.send(peer, frames):
                self._apply(self._core.client_unreachable(peer, time.monotonic()))
            return
        key = (is_client, peer)
        outbox = self._outboxes.get(key)
        if outbox is None:
            try:
                self._send_now(is_client, peer, frames)
                return
            except zmq.Again:
                outbox = self._outboxes[key] = deque()
                self._outbox_bytes[key] = 0
            except zmq.ZMQError as error:
                self._unreachable(key, error)
                return
        outbox.append(frames)
        self._outbox_bytes[key] += sum(map(len, frames))
        if key[0] and self._outbox_bytes[key] > MAX_OUTBOX_BYTES:
            self._drop_outbox(key)
            _log.warning(f"client {peer!r} has more than {MAX_OUTBOX_BYTES} bytes waiting: its connection is over")
            self._apply(self._core.client_overflow(peer, time.monotonic()))

    def _phase_outboxes(self) -> None:
        for key, outbox in list(self._outboxes.items()):
            try:
                while outbox:
                    self._send_now(*key, outbox[0])
                    self._outbox_bytes[key] -= sum(map(len, outbox.popleft()))
            except zmq.Again:
                continue
            except zmq.ZMQError as error:
                self._drop_outbox(key)
                self._unreachable(key, error)
                continue
            self._drop_outbox(key)

    def _drop_outbox(self, key: tuple[bool, bytes]) -> None:
        self._outboxes.pop(key, None)
        self._outbox_bytes.pop(key, None)

    def _unreachable(self, key: tuple[bool, bytes], error: zmq.ZMQError) -> None:
        if error.errno != zmq.EHOSTUNREACH:
            raise error
        # A worker's death is the supervisor's to tell.
        if key[0]:
            self._apply(self._core.client_unreachable(key[1], time.monotonic()))


def report(record: dict[str, Any]) -> None:
    """One JSON line for the supervisor."""
    os.write(1, msgspec.json.encode(record) + b"\n")


def main() -> None:
    """Entry of the broker process."""
    log.begin("broker", *sys.argv[1:2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start.survive_hang_up()
    arguments = start.decode_arguments(start.read_line(0), BrokerArguments)
    try:
        broker = Broker(arguments)
    except endpoints.EndpointError as error:
        report({"event": "failed", "reason": str(error)})
        sys.exit(1)
    report({"event": "ready"})
    start.collect_rarely()
    broker.run()
