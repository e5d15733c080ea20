"""Acknowledgements of the notifications that a session has received on its connection. Pure.

One may wait for `delay_s`, or until ACK_BYTES were received, so that it covers many messages. While they are held none
is due: the workers stop sending once as much is on the way as they allow.
"""

from __future__ import annotations

from ..protocol import wire
from .effects import Send

# A small part of what a worker lets be on the way.
ACK_BYTES = 128 * 1024
# What a message counts for beside its bodies, as its worker counts it.
MESSAGE_OVERHEAD_BYTES = 512


class Acks:
    """See the module's docstring. `due_at` is when the next is due, None while none is, or while they are held."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        # The highest number of each turn, by worker.
        self._positions: dict[str, dict[str, int]] = {}
        self._bytes = 0
        self._held = False
        self.due_at: float | None = None
        # As much has been received as may wait.
        self.is_much = False

    def hold(self, held: bool) -> list[Send]:
        """Hold acknowledgements back, so that workers stop sending at their bounds, or return those that were held."""
        self._held = held
        if held:
            self.due_at = None
            return []
        return self.take() if self._positions else []

    def received(self, worker: str, turn_id: str, last: int | None, bodies: list[bytes]) -> None:
        """Count a message of a turn, and note up to which number it is received; None: its number is not known."""
        if last is not None:
            self._positions.setdefault(worker, {})[turn_id] = last
        self._bytes += MESSAGE_OVERHEAD_BYTES + sum(map(len, bodies))
        self.is_much = self._bytes >= ACK_BYTES

    def received_one(self, worker: str, turn_id: str, last: int, size: int) -> None:
        """Count a message of one body of `size` bytes, received up to the number `last`."""
        turns = self._positions.get(worker)
        if turns is None:
            turns = self._positions[worker] = {}
        turns[turn_id] = last
        self._bytes += MESSAGE_OVERHEAD_BYTES + size
        self.is_much = self._bytes >= ACK_BYTES

    def after_read(self, now: float) -> list[Send]:
        """Begin to wait after a read, or end the wait."""
        if not self._positions or self._held:
            return []
        if self.due_at is None:
            self.due_at = now + self._delay_s
        return self.take() if self.is_much or now >= self.due_at else []

    def due(self, now: float) -> list[Send]:
        """The acknowledgements, if they are due."""
        return self.take() if self.due_at is not None and now >= self.due_at else []

    def take(self) -> list[Send]:
        """Take all acknowledgements, as one message for each worker."""
        sends = [
            Send([wire.encode(wire.Ack(worker, [wire.Position(turn_id, last) for turn_id, last in turns.items()]))])
            for worker, turns in self._positions.items()
        ]
        self.clear()
        return sends

    def clear(self) -> None:
        """Forget everything: after a reconnect Hello states the numbers."""
        self._positions.clear()
        self._bytes, self.due_at, self.is_much = 0, None, False
