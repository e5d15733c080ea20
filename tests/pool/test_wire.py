"""The frames of the pool: every head comes back as it was, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
import struct
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_ids import sid

from codex_pool.protocol import wire

DIRECTIONS = {
    "from a client": (wire.decode_from_client, typing.get_args(wire.FromClient)),
    "to a client": (wire.decode_to_client, typing.get_args(wire.ToClient)),
    "from a worker": (wire.decode_from_worker, typing.get_args(wire.FromWorker)),
    "to a worker": (wire.decode_to_worker, typing.get_args(wire.ToWorker)),
}
HEADS = list(dict.fromkeys(head for _, heads in DIRECTIONS.values() for head in heads))

_INTEGERS = st.integers(min_value=-(2**63), max_value=2**64 - 1)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, args))
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is list:
        return st.lists(values(args[0]), max_size=4)
    if origin is dict:
        return st.dictionaries(*map(values, args), max_size=4)
    if annotation is type(None):
        return st.none()
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return structs(annotation)
    if annotation is wire.SessionId:
        return st.builds(wire.SessionId, st.text(max_size=40), st.text(max_size=40))
    if annotation is float:
        return st.floats(allow_nan=False)
    return {str: st.text(max_size=40), int: _INTEGERS, bool: st.booleans(), bytes: st.binary(max_size=40)}[annotation]


def structs(cls: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{name: values(hints[name]) for name in cls.__struct_fields__})


def any_head() -> st.SearchStrategy[Any]:
    return st.sampled_from(HEADS).flatmap(structs)


@pytest.mark.parametrize("cls", HEADS, ids=lambda cls: cls.__name__)
def test_every_head_comes_back(cls: type[msgspec.Struct]) -> None:
    @settings(max_examples=25)
    @given(structs(cls))
    def round_trip(head: Any) -> None:
        frame = wire.encode(head)
        assert frame[0] == wire.VERSION
        for decode, heads in DIRECTIONS.values():
            if cls in heads:
                assert decode(frame) == head

    round_trip()


def test_tags_are_part_of_the_protocol() -> None:
    """Classes may be renamed; the tags are what other processes, perhaps of another release, read."""
    named = {cls.__name__: cls.__struct_config__.tag for cls in HEADS}
    own = {
        "AnswerPart": "piece",
        "DefaultSession": "holder",
        "ProcessTree": "tree",
        "RegisterRequest": "whoareyou",
        "ServerRequestAnswer": "tell",
        "SessionGone": "gone",
        "SessionOptions": "options",
        "SessionResumed": "back",
        "SharedState": "current",
        "ThreadLoaded": "held",
    }
    assert named == {name: own.get(name, name.lower()) for name in named}
    assert len(set(named.values())) == len(HEADS)


def test_every_head_has_a_direction() -> None:
    assert set(wire.TaggedHead.__subclasses__()) == set(HEADS)


@given(any_head(), st.sampled_from(sorted(DIRECTIONS)))
def test_a_head_of_another_direction_is_refused(head: Any, direction: str) -> None:
    decode, heads = DIRECTIONS[direction]
    if type(head) not in heads:
        with pytest.raises(wire.WireError, match=direction):
            decode(wire.encode(head))


@given(any_head(), st.integers(0, 255).filter(lambda version: version != wire.VERSION))
def test_another_version_is_refused_by_its_number(head: Any, version: int) -> None:
    frame = bytes([version]) + wire.encode(head)[1:]
    for decode, _ in DIRECTIONS.values():
        with pytest.raises(wire.WireError, match=f"version {version} .*speaks version {wire.VERSION}"):
            decode(frame)


def _only_wire_errors(frame: bytes) -> None:
    for decode, heads in DIRECTIONS.values():
        with contextlib.suppress(wire.WireError):
            assert isinstance(decode(frame), heads)


@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_a_wire_error(garbage: bytes, versioned: bool) -> None:
    _only_wire_errors(bytes([wire.VERSION]) + garbage if versioned else garbage)


@given(any_head(), st.data())
def test_a_damaged_head_is_a_wire_error_or_another_head(head: Any, data: st.DataObject) -> None:
    frame = bytearray(wire.encode(head))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at] = data.draw(st.integers(0, 255))
    _only_wire_errors(bytes(frame[: data.draw(st.integers(0, len(frame)))]))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x01",
        b"\x01" + b"\x91" * 5000,
        b"\x01" + b"\x93\xa5hello\xa1\xff\xa0",
        b"\x01" + b"\xdd\xff\xff\xff\xff",
        b"\x01" + b"\x92\xa3bye\xdb\xff\xff\xff\xff",
    ],
    ids=["empty", "version only", "nested", "not UTF-8", "array of 4 billion", "string of 4 GB"],
)
def test_nasty_frames_are_a_wire_error(frame: bytes) -> None:
    for decode, _ in DIRECTIONS.values():
        with pytest.raises(wire.WireError):
            decode(frame)


# As clients send them that were built before principals had ids.
RECORDED = {
    "first": (
        "01 95 a5 68 65 6c 6c 6f a2 73 31 a4 64 65 6d 6f ab 69 6e 74 65 72 61 63 74 69 76 65 a9 69 6e 74 65 72 72 75 70"
        " 74",
        wire.Hello("s1", "demo", "interactive", "interrupt"),
    ),
    "short": ("01 93 a5 68 65 6c 6c 6f a2 73 31 a4 64 65 6d 6f", wire.Hello("s1", "demo")),
    "slashes": (
        "01 95 a5 68 65 6c 6c 6f ac 6d 61 6c 6c 6f 72 79 2f 6a 6f 62 31 a1 78 a5 62 61 74 63 68 a4 6b 65 65 70",
        wire.Hello("mallory/job1", "x", "batch", "keep"),
    ),
}


@pytest.mark.parametrize(("recorded", "meant"), RECORDED.values(), ids=RECORDED)
def test_clients_say_hello_as_they_always_did(recorded: str, meant: wire.Hello) -> None:
    assert wire.decode_from_client(bytes.fromhex(recorded)) == meant
    assert wire.VERSION == 1


def test_a_client_cannot_send_an_endless_head() -> None:
    with pytest.raises(wire.WireError, match=str(wire.MAX_HEAD_BYTES)):
        wire.decode_from_client(wire.encode(wire.Hello("s1", "x" * wire.MAX_HEAD_BYTES)))


def test_a_record_that_a_client_made_long_still_passes_between_worker_and_broker() -> None:
    """The model of a thread is what a client says; a head that did not fit would leave its call without an answer."""
    record = wire.ThreadRecord("t1", False, model="m" * (2 * wire.MAX_HEAD_BYTES))
    answered, dispatch = wire.Answered(1, True, record), wire.Dispatch(1, sid("s1"), adopt=record)
    assert wire.decode_from_worker(wire.encode(answered)) == answered
    assert wire.decode_to_worker(wire.encode(dispatch)) == dispatch


@given(structs(wire.WorkerState))
def test_holdings_come_back(holdings: wire.WorkerState) -> None:
    assert wire.decode_worker_state(wire.encode_worker_state(holdings)) == holdings


@given(st.lists(structs(wire.Position), max_size=5))
def test_positions_come_back(positions: list[wire.Position]) -> None:
    assert wire.decode_positions(wire.encode_positions(positions)) == positions


@given(st.binary(max_size=100))
def test_damaged_bodies_of_the_pools_own_are_a_wire_error(garbage: bytes) -> None:
    for body in (garbage, struct.pack(">BI", 0xDD, 1) + garbage, b"\x91\x92\xa1\xff\xc2"):
        for decode in (wire.decode_worker_state, wire.decode_positions):
            with contextlib.suppress(wire.WireError):
                decode(body)
