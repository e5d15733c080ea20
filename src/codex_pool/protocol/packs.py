"""Packs and stacks: small messages of notifications as one message. Pure.

Of many slow turns each read of an app-server has a line or two of several; what a message costs on its way is above all
that it wakes four threads. So messages of notifications are put together behind one route:

    [route][events][body]... + [route][events][body]... -> [route][pack][bodies joined]

What goes to other sessions has a route of its own. Several of them are one message to the broker, a stack:

    [route][events][body] + [route][pack][body] -> [stack][frames joined]

The order of messages to the same sessions is kept, and no message of another kind is overtaken.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import wire

# Larger messages are left as they are: what they cost is not that there are many.
PACKED_BYTES = 8 * 1024
# To make a stack of fewer costs the worker more than it saves the broker.
STACKED_FROM = 4

_PACK = wire.encode(wire.Pack([], []))[: len(b"\x01\x93\xa4pack")]


def is_pack(frames: Sequence[bytes]) -> bool:
    """True for a message to a client, without its route, that is a pack."""
    return frames[0].startswith(_PACK)


def packed(messages: list[list[bytes]]) -> list[list[bytes]]:
    """Messages of a worker, with small ones of notifications put together: to the same sessions, and to others."""
    out: list[list[bytes]] = []
    # Those that further ones may join, by route.
    open_groups: dict[bytes, list[list[bytes]]] = {}
    for message in messages:
        if len(message) < 3 or not message[1].startswith(wire.EVENTS) or sum(map(len, message)) > PACKED_BYTES:
            out += _closed(open_groups)
            out.append(message)
        else:
            open_groups.setdefault(message[0], []).append(message)
    return out + _closed(open_groups)


def _closed(groups: dict[bytes, list[list[bytes]]]) -> list[list[bytes]]:
    """The messages of all groups, which are removed: one for each, or a stack of them."""
    messages = [group[0] if len(group) == 1 else _joined(route, group) for route, group in groups.items()]
    groups.clear()
    return messages if len(messages) < STACKED_FROM else [_stacked(messages)]


def _stacked(messages: list[list[bytes]]) -> list[bytes]:
    stack = wire.Stack([[*map(len, message)] for message in messages])
    return [wire.encode(stack), b"".join([frame for message in messages for frame in message])]


def unstacked(stack: wire.Stack, bodies: Sequence[bytes]) -> list[list[bytes]]:
    """The messages of a stack, each with its route. Raises WireError."""
    return _cut(stack.sizes, b"".join(bodies), "a stack")


def _joined(route: bytes, group: list[list[bytes]]) -> list[bytes]:
    pack = wire.Pack([message[1] for message in group], [[*map(len, message[2:])] for message in group])
    return [route, wire.encode(pack), b"".join([body for message in group for body in message[2:]])]


def all_unpacked(messages: list[list[bytes]]) -> list[list[bytes]]:
    """Messages to a client, with those of packs in place of the packs; a pack that does not fit is left as it is."""
    if not any(map(is_pack, messages)):
        return messages
    found: list[list[bytes]] = []
    for frames in messages:
        try:
            found += unpacked(frames)
        except wire.WireError:
            found.append(frames)
    return found


def unpacked(frames: list[bytes]) -> list[list[bytes]]:
    """The messages in a message to a client, each [head][body]...; one that is no pack is the only one.

    Raises WireError.
    """
    if not is_pack(frames):
        return [frames]
    pack = wire.decode_to_client(frames[0])
    assert isinstance(pack, wire.Pack)
    if len(pack.heads) != len(pack.sizes):
        raise wire.WireError(f"a pack of {len(pack.heads)} messages with sizes of {len(pack.sizes)}")
    bodies = _cut(pack.sizes, b"".join(frames[1:]), "a pack")
    return [[head, *each] for head, each in zip(pack.heads, bodies, strict=True)]


def _cut(sizes: list[list[int]], body: bytes, what: str) -> list[list[bytes]]:
    """The frames of several messages that were joined. Raises WireError."""
    if any(size < 0 for each in sizes for size in each) or sum(map(sum, sizes)) != len(body):
        raise wire.WireError(f"{what} of {len(sizes)} messages whose sizes do not add up to its {len(body)} bytes")
    found: list[list[bytes]] = []
    at = 0
    for each in sizes:
        frames: list[bytes] = []
        for size in each:
            frames.append(body[at : at + size])
            at += size
        found.append(frames)
    return found
