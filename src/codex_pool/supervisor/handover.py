"""The state of a supervisor as the next one takes it over: the same process, which runs other files from then on.

Descriptors of children, locks and listening sockets are handed over by their numbers. Fields that another version has
added are not read, those that it lacks have their defaults; VERSION changes when that does not do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import msgspec

from ..broker.mode import Mode
from ..runtime import startup
from .arguments import SupervisorArguments
from .slots import Build, Slot

VERSION = 1


class HandoverError(Exception):
    """A state cannot be taken over; the message gives the reason."""


class KeptChild(msgspec.Struct, kw_only=True):
    """A child. `unsent`: bytes that wait for it; `held`: those of an unfinished line of its reports; as Latin-1."""

    pid: int
    stdin: int
    stdout: int
    unsent: str = ""
    held: str = ""
    last_report: dict[str, Any] = {}
    lost_lines: int = 0

    @property
    def descriptors(self) -> tuple[int, ...]:
        return self.stdin, self.stdout


class KeptEntrance(msgspec.Struct, kw_only=True):
    """A child that is replaced alone, and what it keeps its name, port and secret by."""

    child: KeptChild | None = None
    starts: int = 0
    due: float | None = None
    was_ready: bool = True
    listener: int | None = None
    secret: str = ""
    path: str = ""
    issuer_url: str = ""
    is_inherited: bool = False

    @property
    def descriptors(self) -> tuple[int, ...]:
        of_child = () if self.child is None else self.child.descriptors
        return of_child if self.listener is None else (*of_child, self.listener)


class KeptBroker(msgspec.Struct, kw_only=True):
    """The broker, and what the next one has to know of it."""

    child: KeptChild | None = None
    starts: int = 1
    unix_offset: float = 0.0
    account_changed_at: float = 0.0
    account_changes: bool = False
    is_reachable: bool = True
    unsaved: dict[str, Any] = {}
    counted: dict[str, Any] | None = None
    uncounted: list[str] = []
    tallies: dict[str, Any] = {}


class KeptWorkers(msgspec.Struct, kw_only=True):
    """The workers and their SQLite homes, by path: those of the slots, their locks, and which slot uses each."""

    children: dict[str, KeptChild]
    used_homes: dict[str, str]
    app_servers: dict[str, tuple[int, int]]
    homes: list[str]
    locks: dict[str, int]
    in_use: dict[str, int]

    @property
    def descriptors(self) -> tuple[int, ...]:
        return (*self.locks.values(), *(fd for child in self.children.values() for fd in child.descriptors))


class KeptCore(msgspec.Struct, kw_only=True):
    """The slots and their counts."""

    nonce: str
    slots: list[Slot]
    generations: dict[str, int]
    build: int = 0
    restarts: dict[str, int] = {}
    recycles: dict[str, int] = {}


class KeptUpgrade(msgspec.Struct, kw_only=True):
    """The codex binaries so far, and how the last upgrade of codex has ended."""

    builds: list[Build]
    before: int = 0
    wanted: int = 0
    version: str = ""
    state: str = ""
    problem: str = ""


class KeptLoop(msgspec.Struct, kw_only=True):
    """State of the supervisor itself: bytes of its parent, reports for it, the configuration, lines that logs lost."""

    held: str = ""
    unsent: str = ""
    waiting: list[dict[str, Any]] = []
    loaded_at: float = 0.0
    problem: str = ""
    restart: list[str] = []
    lost_lines: int = 0
    upgrades: int = 0


class Handover(msgspec.Struct, kw_only=True):
    """See the module's docstring. `lock` and `name` are descriptors; `from_version` is the codex-pool before."""

    version: int
    from_version: str
    arguments: SupervisorArguments
    core: KeptCore
    workers: KeptWorkers
    broker: KeptBroker
    account: KeptEntrance
    ingress: KeptEntrance
    gateway: KeptEntrance
    upgrade: KeptUpgrade
    mode: Mode
    loop: KeptLoop
    lock: int
    name: int | None = None
    tracer: KeptEntrance = msgspec.field(default_factory=KeptEntrance)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that is handed over but stdin, stdout and stderr."""
        broker = () if self.broker.child is None else self.broker.child.descriptors
        entrances = [fd for each in (self.account, self.ingress, self.gateway, self.tracer) for fd in each.descriptors]
        own = (self.lock,) if self.name is None else (self.lock, self.name)
        return (*own, *self.workers.descriptors, *broker, *entrances)


def decode(line: bytes) -> Handover:
    """Decode a state. Raises HandoverError for one that this version does not know."""
    try:
        found = startup.decode_arguments(line, _Version)
        if found.version != VERSION:
            raise HandoverError(
                f"the state of codex-pool {found.from_version} has version {found.version}, this one takes over "
                f"version {VERSION}; restart the daemon"
            )
        return startup.decode_arguments(line, Handover)
    except (msgspec.MsgspecError, ValueError) as error:
        raise HandoverError(f"the state of the supervisor does not fit: {error}; restart the daemon") from None


class _Version(msgspec.Struct):
    version: int
    from_version: str


def as_memory(handover: Handover) -> int:
    """A descriptor without a name that has the state. Raises OSError."""
    fd = os.memfd_create("codex-pool-handover")
    with open(fd, "wb", closefd=False) as file:
        file.write(startup.encode_arguments(handover))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def from_memory(fd: int) -> Handover:
    """The state that `as_memory` has written. Raises HandoverError."""
    with open(fd, "rb") as file:
        handover = decode(file.read())
    for each in handover.descriptors:
        os.set_inheritable(each, False)
    return handover


@contextlib.contextmanager
def inherited(descriptors: tuple[int, ...]) -> Iterator[None]:
    """Have these be inherited by the program that this process is about to become."""
    for fd in descriptors:
        os.set_inheritable(fd, True)
    try:
        yield
    finally:
        for fd in descriptors:
            os.set_inheritable(fd, False)


def text_of(data: bytes | bytearray) -> str:
    """Bytes as text, one character each."""
    return bytes(data).decode("latin-1")


def bytes_of(text: str) -> bytes:
    """The bytes of `text_of`."""
    return text.encode("latin-1")
