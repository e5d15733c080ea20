"""The broker process: one thread, its sockets, the supervisor's pipe, in named phases around `core`.

    python -m codex_pool.broker       start arguments: one JSON line on stdin; then JSON lines of the supervisor
                                      (lost, slots, gateway, drain, mode, command_result,
                                      ping, holds); its end is the supervisor's death
                                      stdout: JSON lines for the supervisor - ready, failed, registered, suspect,
                                      drained, renew, account, command, draining, pong,
                                      reachable, unsaved, saved, counts
                                      stderr: log

The core knows a connection of a client by a name that no two can share: NUL and its identity on the socket over ipc;
what `ingress_connection` makes of its number for those that another process has let in.

What a peer cannot take now waits in its outbox, bounded in bytes; a client beyond the bound has to connect again.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

from codex_app_server._protocol.framing import LineSplitter, LongLine

from ..auth.allow_list import AllowedKeys
from ..auth.keys import KeyStore
from ..auth.ownership import path_in
from ..auth.policy import AccessPolicy
from ..protocol import endpoints, ingress_frames, pool_report, sockets, tally
from ..protocol.wire import ThreadRecord
from ..runtime import log, startup
from ..runtime.problems import Problems
from .arguments import BrokerArguments, BrokerLimits
from .checkpoint import CheckpointFile
from .checkpoint_writer import CheckpointWriter, with_unsaved
from .core import BrokerCore
from .effects import (
    AccountChanged,
    Audit,
    Command,
    Drained,
    DrainProgress,
    DropConnection,
    Effect,
    LogLine,
    ReadUsage,
    Registered,
    Renew,
    SaveCounts,
    SaveOwners,
    SaveThreads,
    SaveUsage,
    Suspect,
    ToClient,
    ToWorker,
)
from .ingress_connection import ConnectionEnded, GatewayJoined, IngressLinks, ReportAsked
from .listeners import Listener, Listeners
from .mode import Mode
from .outbox import Outbox
from .ownership_writer import OwnershipWriter
from .thread_owners import ThreadOwners
from .user_records import UserRecords

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
        self._policy = AccessPolicy(default_cwd=arguments.cwd or os.getcwd())
        self._ownership, owners = self._open_ownership()
        self._users = UserRecords(arguments, _log.error)
        self._checkpoint_file = CheckpointFile(arguments.clients_endpoint)
        checkpoint = with_unsaved(self._checkpoint_file.read(), arguments.unsaved)
        self._core = BrokerCore(
            slots=arguments.slots,
            turns_per_worker=arguments.turns_per_worker,
            waiting_turns_per_worker=arguments.waiting_turns_per_worker,
            now=time.monotonic(),
            expect=arguments.expect,
            checkpoint=checkpoint,
            policy=self._policy,
            owners=owners,
            secret=self._ownership.secret if self._ownership is not None else os.urandom(16),
            unix_offset=arguments.unix_offset,
            changed_at=arguments.changed_at,
            recycle_descendants=arguments.recycle_descendants,
            counted=arguments.counted,
            usage=self._users.ledger,
        )
        self._users.attach(self._core)
        self._apply(self._users.reports(self._core, time.monotonic()))
        self._core.state.log_file = log.path()
        self._checkpoint_writer = CheckpointWriter(self._checkpoint_file, self._records, self._problems, report)
        self._commands = LineSplitter()
        # A worker's death is the supervisor's to report, so nothing follows when one cannot be reached.
        self._worker_outbox = Outbox(self._workers)
        self._client_outbox = Outbox(
            self._clients,
            skip=1,
            max_bytes=MAX_OUTBOX_BYTES,
            overflow=self._client_overflow,
            unreachable=self._client_unreachable,
        )
        self._poller = zmq.Poller()
        for source in (self._workers, self._clients, 0):
            self._poller.register(source, zmq.POLLIN)
        if self._ownership is not None:
            self._poller.register(self._ownership.descriptor, zmq.POLLIN)
        if self._users.descriptor is not None:
            self._poller.register(self._users.descriptor, zmq.POLLIN)
        self._links: IngressLinks | None = None
        self._keys: AllowedKeys | None = None
        self._knows_keys = False
        if arguments.link is not None:
            warn = _log.warning
            if arguments.keys is not None:
                self._keys = AllowedKeys(KeyStore(arguments.keys), warn)
            self._look_at_keys_at = time.monotonic() + LOOK_AT_KEYS_EVERY_S
            self._look_at_keys(time.monotonic())
            self._links = IngressLinks(endpoints.ipc_path(arguments.link), arguments.secrets, self._poller, warn)
        self._listeners = Listeners(self._sockets(arguments), self._problems, _log.warning)
        self._listeners.holds = arguments.holds
        if arguments.must_bind:
            self._listeners.bind()
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
                if ready.pop(self._users.descriptor, None):
                    self._apply(self._users.reports(self._core, time.monotonic()))
                if self._ownership is not None:
                    spoke = ready.keys() - {self._workers, 0, self._ownership.descriptor}
                    self._phase_ownership(self._ownership, clients_speak=bool(spoke))
                if self._clients in ready:
                    self._phase_receive(self._clients, self._own_message)
                if self._links is not None:
                    self._phase_links(self._links, ready)
                self._worker_outbox.flush()
                self._client_outbox.flush()
                now = time.monotonic()
                if now >= self._look_at:
                    self._look(now)
                self._apply(self._core.tick(now))
                if self._links is not None:
                    self._links.flush()
        except Exception:
            _log.error("the broker fails; its last events:")
            for line in self._core.recent_events:
                _log.error(line)
            raise
        finally:
            self._close()

    def _close(self) -> None:
        self._listeners.remove()
        if self._links is not None:
            self._links.close()
        if self._ownership is not None:
            self._ownership.close()
        self._users.close()
        self._clients.close(linger=200)
        self._workers.close(linger=0)
        self._context.term()
        self._checkpoint_file.remove()

    def _wait_ms(self) -> int:
        if self._worker_outbox or self._client_outbox:
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
                counted = tally.converted(command.get("tally"))
                self._apply(self._core.worker_lost(command["lost"], command.get("reason", "unknown"), now, counted))
            elif "drain" in command:
                self._apply(self._core.drain(command["drain"], now))
            elif "slots" in command:
                self._apply(self._core.slots(command["slots"], command["workers"]))
                self._core.replaced(command["replaced"])
            elif "mode" in command:
                self._apply(self._core.set_mode(msgspec.convert(command["mode"], Mode), now))
            elif "gateway" in command:
                self._core.gateway(command["gateway"])
            elif "tracer" in command:
                self._core.tracer(command["tracer"])
            elif "limits" in command:
                self._apply(self._core.set_limits(msgspec.convert(command["limits"], BrokerLimits), now))
            elif "configuration" in command:
                self._core.configuration(command["configuration"])
            elif "upgrade" in command:
                self._core.upgrade(command["upgrade"])
            elif "codex_pool" in command:
                self._core.codex_pool(command["codex_pool"])
            elif "command_result" in command:
                done = command["command_result"]
                self._apply(self._core.command_done(done["id"], done.get("result"), done.get("error"), now))
            elif "holds" in command:
                self._listeners.holds, self._its_problems = command["holds"], command["problems"]
                self._look(now)
            elif "ping" in command:
                self._core.state.lost_lines = command.get("lost_lines", 0) + log.lost()
                registered, drained = self._core.registered, self._core.drained
                report({"event": "pong", "registered": registered, "drained": drained, "lost_lines": log.lost()})
        return True

    def _phase_receive(self, socket: zmq.Socket[bytes], handle: Any) -> None:
        now = time.monotonic()
        for identity, *frames in sockets.messages(socket, MESSAGES_PER_PHASE):
            self._apply(handle(identity, frames or [b""], now))

    def _own_message(self, routing_id: bytes, frames: list[bytes], now: float) -> list[Effect]:
        return self._core.client_message(b"\0" + routing_id, frames, now)

    # Ownership.

    def _open_ownership(self) -> tuple[OwnershipWriter | None, ThreadOwners]:
        """The store of the home, for a pool that lets keys in, or that shares it with one."""
        home, listens = self._arguments.codex_home, self._arguments.keys is not None
        if home is None or not (listens or path_in(Path(home)).exists()):
            return None, ThreadOwners()
        keys = KeyStore(self._arguments.keys).directory if listens else None
        ownership, owners = OwnershipWriter(Path(home), keys, _log.error), ThreadOwners(durable=True)
        owners.replace(ownership.open() or [])
        self._policy.close(ownership.problem)
        return ownership, owners

    def _phase_ownership(self, ownership: OwnershipWriter, *, clients_speak: bool) -> None:
        """Take in what was written, and, before clients are read, what other pools have written."""
        now = time.monotonic()
        for done in ownership.done():
            self._apply(self._core.ownership_kept(*done, now))
        opened = ownership.look(now)
        if opened is not None:
            _log.info("clients with a key are let in again: the ownership store can be read")
            self._apply(self._core.ownership_opened(opened, now))
        elif clients_speak and (news := ownership.news()):
            self._apply(self._core.ownership_read(news, now))
        self._policy.close(ownership.problem)

    # Clients that another process has let in.

    def _phase_links(self, links: IngressLinks, ready: dict[Any, int]) -> None:
        now = time.monotonic()
        events = links.receive(ready, now)
        if events.keys_changed or now >= self._look_at_keys_at:
            self._look_at_keys_at = now + LOOK_AT_KEYS_EVERY_S
            self._look_at_keys(now)
        self._core.state.refused.update(events.refused)
        self._users.refused(events.refused)
        for event in events.messages:
            if isinstance(event, ConnectionEnded):
                if event.revoked:
                    self._look_at_keys(now)
                self._apply(self._core.client_unreachable(event.peer, now))
            elif isinstance(event, GatewayJoined):
                self._apply(self._core.gateway_joined(event.instance, now))
            elif isinstance(event, ReportAsked):
                found, effects = self._core.report(now)
                # Before anyone sees the counts.
                self._apply(effects)
                links.report(event, pool_report.encode(found))
            elif not (event.is_owner or (self._keys and self._keys.is_allowed(event.principal, event.key))):
                self._send(True, event.peer, [ingress_frames.REVOKED])
                links.end(event.peer)
            else:
                self._apply(
                    self._core.client_message(
                        event.peer, event.frames, now, event.principal, event.key, screened=event.screened
                    )
                )
        links.tick(now)

    def _look_at_keys(self, now: float) -> None:
        """Read the allow-list if it has changed; sessions of those who are not on it any more end."""
        if self._keys is None:
            return
        before = self._keys.clients
        if self._keys.read():
            if self._knows_keys:
                self._users.keys_changed(before, self._keys.clients)
            self._knows_keys = True
            self._policy.replace(self._keys.clients.values())
            self._apply(self._core.end_sessions(self._keys.is_revoked, now))
            self._apply(self._core.keys_changed(now))

    # Effects.

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case ToClient():
                    self._send(True, effect.peer, effect.frames)
                case ToWorker():
                    self._send(False, effect.peer, effect.frames)
                case DropConnection():
                    self._client_outbox.drop(effect.peer)
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
                case Command():
                    report(
                        {
                            "event": "command",
                            "id": effect.number,
                            "command": effect.command,
                            "params": effect.params,
                        }
                    )
                case DrainProgress():
                    report(
                        {
                            "event": "draining",
                            "stopping": effect.stopping,
                            "turns": effect.turns,
                            "clients": effect.clients,
                            "waiting": effect.waiting,
                        }
                    )
                case SaveThreads():
                    self._checkpoint_writer.keep(effect.threads, time.monotonic())
                case SaveOwners():
                    if self._ownership is not None:
                        self._ownership.write(effect.number, effect.rows)
                case SaveUsage() | ReadUsage() | Audit():
                    self._users.apply(effect)
                case SaveCounts():
                    report({"event": "counts", "kept": effect.kept, "lost": effect.lost})
                case LogLine():
                    _log.warning(effect.message)

    # What is kept on disk, and the files of sockets.

    def _sockets(self, arguments: BrokerArguments) -> list[Listener]:
        """Workers first: once clients can see their socket, the pool is there."""
        found = [
            Listener(what, endpoints.ipc_path(endpoint), functools.partial(sockets.bind, socket, endpoint))
            for what, socket, endpoint in (
                (WORKERS, self._workers, arguments.workers_endpoint),
                ("clients' socket", self._clients, arguments.clients_endpoint),
            )
        ]
        if self._links is not None and arguments.link is not None:
            found.append(Listener("the link's socket", endpoints.ipc_path(arguments.link), self._links.bind))
        return found

    def _records(self) -> list[ThreadRecord]:
        return [thread.record for thread in self._core.state.threads.values()]

    def _look(self, now: float) -> None:
        """Bind and write again what was removed, or could not be bound or written before."""
        self._look_at = now + LOOK_AT_FILES_EVERY_S
        self._listeners.look(now)
        is_reachable = self._listeners.is_bound(WORKERS)
        if not is_reachable:
            self._core.unreachable(now)
        if is_reachable != self._is_reachable:
            self._is_reachable = is_reachable
            report({"event": "reachable", "workers": is_reachable})
        if self._listeners.holds:
            self._checkpoint_writer.look(now)
        rows = [*self._its_problems, *self._problems.rows(), *self._users.look(self._core)]
        if self._ownership is not None:
            rows += self._ownership.problems.rows()
        self._core.problems(rows)

    def _send(self, is_client: bool, peer: bytes, frames: list[bytes]) -> None:
        if is_client and not peer.startswith(b"\0"):
            # What such a client does not take is up to the process that has let it in.
            if self._links is not None and not self._links.send(peer, frames):
                self._apply(self._core.client_unreachable(peer, time.monotonic()))
        elif is_client:
            self._client_outbox.send(peer, frames)
        else:
            self._worker_outbox.send(peer, frames)

    def _client_overflow(self, peer: bytes) -> None:
        _log.warning(f"client {peer!r} has more than {MAX_OUTBOX_BYTES} bytes waiting: its connection is over")
        self._apply(self._core.client_overflow(peer, time.monotonic()))

    def _client_unreachable(self, peer: bytes) -> None:
        self._apply(self._core.client_unreachable(peer, time.monotonic()))


def report(record: dict[str, Any]) -> None:
    """Write one JSON line for the supervisor."""
    os.write(1, msgspec.json.encode(record) + b"\n")


def main() -> None:
    """Entry of the broker process."""
    log.begin("broker", *sys.argv[1:2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    startup.survive_hang_up()
    arguments = startup.decode_arguments(startup.read_line(0), BrokerArguments)
    try:
        broker = Broker(arguments)
    except endpoints.EndpointError as error:
        report({"event": "failed", "reason": str(error)})
        sys.exit(1)
    report({"event": "ready"})
    startup.collect_rarely()
    broker.run()
