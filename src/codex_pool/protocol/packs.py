"""Packs: small messages of notifications that go to the same sessions, as one message. Pure.

Of many slow turns each read of an app-server has a line or two of several; what a message costs on its way is above all
that it wakes four threads. So messages of notifications are put together behind one route:

    [route][events][body]... + [route][events][body]... -> [route][pack][bodies joined]

The order of messages to the same sessions is kept, and no message of another kind is overtaken.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import wire

# Larger messages are left as they are: what they cost is not that there are many.
PACKED_BYTES = 8 * 1024

_PACK = wire.encode(wire.Pack([], []))[: len(b"\x01\x93\xa4pack")]


def is_pack(frames: Sequence[bytes]) -> bool:
    """True for a message to a client, without its route, that is a pack."""
    return frames[0].startswith(_PACK)


def packed(messages: list[list[bytes]]) -> list[list[bytes]]:
    """Messages of a worker, with small ones of notifications put together."""
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
    """One message for each group, which are removed."""
    messages = [group[0] if len(group) == 1 else _joined(route, group) for route, group in groups.items()]
    groups.clear()
    return messages


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
    body = b"".join(frames[1:])
    is_sound = len(pack.heads) == len(pack.sizes) and all(size >= 0 for sizes in pack.sizes for size in sizes)
    if not is_sound or sum(map(sum, pack.sizes)) != len(body):
        raise wire.WireError(f"a pack of {len(pack.heads)} messages whose sizes do not add up to its {len(body)} bytes")
    messages: list[list[bytes]] = []
    at = 0
    for head, sizes in zip(pack.heads, pack.sizes, strict=True):
        message = [head]
        for size in sizes:
            message.append(body[at : at + size])
            at += size
        messages.append(message)
    return messages
