"""Rotation: what waits for the broker, of all clients of the gateway. Pure.

Keys take turns, and the clients of one key within its turn; each client of the pool's owner has turns of its own.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from ..protocol import ingress_frames

FrameToBroker = ingress_frames.Message | ingress_frames.Ended | ingress_frames.Keys

# Of one key: then nothing more is read of its clients. Those that are gone count until all they sent has left.
MAX_SHARE_BYTES = 4 * 1024 * 1024
MAX_SHARE_MESSAGES = 1024


class Sender(Protocol):
    """A client. `share_key` is that of the share that it has a part in."""

    share_key: str
    unsent: deque[FrameToBroker]
    unsent_bytes: int


class _Share:
    def __init__(self) -> None:
        self.senders: deque[Sender] = deque()
        self.bytes = 0
        self.messages = 0


class Rotation:
    """See the module's docstring. The length is the number of clients with something for the broker."""

    def __init__(self) -> None:
        self._shares: dict[str, _Share] = {}
        # Keys of shares; the first one has its turn.
        self._order: deque[str] = deque()

    def __len__(self) -> int:
        return sum(len(share.senders) for share in self._shares.values())

    def accepts(self, share_key: str) -> bool:
        """Return True while more may be read of the clients of this share."""
        share = self._shares.get(share_key)
        return share is None or (share.bytes <= MAX_SHARE_BYTES and share.messages <= MAX_SHARE_MESSAGES)

    def add(self, sender: Sender, frame: FrameToBroker) -> None:
        """Add a frame of a client, behind those that it has."""
        share = self._shares.get(sender.share_key)
        if share is None:
            share = self._shares[sender.share_key] = _Share()
            self._order.append(sender.share_key)
        if not sender.unsent:
            share.senders.append(sender)
        sender.unsent.append(frame)
        self._count(share, sender, _size(frame), 1)

    def pop(self) -> FrameToBroker | None:
        """Take out what comes next; None if there is nothing."""
        if not self._order:
            return None
        key = self._order[0]
        share = self._shares[key]
        sender = share.senders[0]
        frame = sender.unsent.popleft()
        self._count(share, sender, -_size(frame), -1)
        if sender.unsent:
            share.senders.rotate(-1)
        else:
            share.senders.popleft()
        if share.senders:
            self._order.rotate(-1)
        else:
            self._order.popleft()
            del self._shares[key]
        return frame

    def remove(self, sender: Sender) -> None:
        """Take out all frames of a client."""
        if not sender.unsent:
            return
        share = self._shares[sender.share_key]
        self._count(share, sender, -sender.unsent_bytes, -len(sender.unsent))
        sender.unsent.clear()
        share.senders.remove(sender)
        if not share.senders:
            del self._shares[sender.share_key]
            self._order.remove(sender.share_key)

    def clear(self) -> None:
        """Take out everything."""
        for share in self._shares.values():
            for sender in share.senders:
                sender.unsent.clear()
                sender.unsent_bytes = 0
        self._shares.clear()
        self._order.clear()

    @staticmethod
    def _count(share: _Share, sender: Sender, size: int, messages: int) -> None:
        sender.unsent_bytes += size
        share.bytes += size
        share.messages += messages


def _size(frame: FrameToBroker) -> int:
    return sum(map(len, frame.frames)) if isinstance(frame, ingress_frames.Message) else 0
