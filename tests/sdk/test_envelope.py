"""The routing header: `scan` says what a full decode would say, `scan_truncated` never says anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codex_app_server._protocol.envelope import Envelope, Scanner, is_whole, scan, scan_truncated
from codex_app_server.generated.routing import NOTIFICATIONS, SERVER_REQUESTS

INCOMING = {**NOTIFICATIONS, **SERVER_REQUESTS}


def reference(line: bytes) -> Envelope | None:
    """The header by decoding everything; None for what is no message of the protocol."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    if not isinstance(message, dict):
        return None
    id, method = message.get("id"), message.get("method")
    if isinstance(id, bool) or not isinstance(id, int | str | None) or not isinstance(method, str | None):
        return None
    if method is None:
        return None if id is None else Envelope(id, None, None, None, message.get("error") is not None)
    entry = INCOMING.get(method)
    params = message.get("params")
    if entry is not None:
        return Envelope(id, method, at(params, entry.thread), at(params, entry.turn), False)
    thread_id, turn_id = at(params, "threadId"), at(params, "turnId")
    thread_id = at(params, "thread.id") if thread_id is None else thread_id
    return Envelope(id, method, thread_id, at(params, "turn.id") if turn_id is None else turn_id, False)


def at(value: Any, path: str | None) -> str | None:
    if path is None:
        return None
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def scanned(line: bytes) -> Envelope | None:
    try:
        return scan(line)
    except ValueError:
        return None


def encoded(value: Any, ascii: bool = False) -> bytes:
    return json.dumps(value, ensure_ascii=ascii, separators=(",", ":")).encode()


# No lone surrogates: JSON written in UTF-8 cannot carry them; they have a test of their own.
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
ids = st.sampled_from(["t1", "t2", "01a2-x", 'quote" \\ end', "ünï", ""])
keys = (
    st.sampled_from(["id", "method", "params", "threadId", "turnId", "turn", "thread", "item", "conversationId"])
    | texts
)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars | texts | ids,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
methods = st.sampled_from(sorted(INCOMING)) | st.sampled_from(["pool/turn/ended", "x", ""])
params = st.dictionaries(keys, values, max_size=6) | values


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """Messages of the protocol, with members in any order, missing, or of the wrong type."""
    members: dict[str, Any] = {}
    for name, strategy in draw(
        st.permutations(
            [
                ("id", st.integers(-5, 5) | ids | values),
                ("method", methods | values),
                ("params", params),
                ("error", values),
                ("result", values),
                ("emittedAtMs", st.integers(0, 10**13)),
            ]
        )
    ):
        if draw(st.booleans()):
            members[name] = draw(strategy)
    return members


@given(messages(), st.booleans())
@example({"method": "turn/started", "params": {"threadId": "t", "turn": 5}}, False)
@example({"method": "turn/completed", "params": {"turn": {"id": 5}, "threadId": ["t"]}}, False)
@example({"method": "execCommandApproval", "id": 1, "params": {"conversationId": "t", "threadId": "other"}}, False)
@example({"id": 1.0, "result": None}, False)
@example({"id": 2**70, "error": {}}, False)
@example({"id": True, "method": "x"}, False)
def test_scan_equals_a_full_decode(message: dict[str, Any], ascii: bool) -> None:
    line = encoded(message, ascii)
    assert scanned(line) == reference(line)


@st.composite
def notification_lines(draw: st.DrawFn) -> bytes:
    """Mostly as the app-server writes what belongs to a turn, so that beginnings come again."""
    method = draw(st.sampled_from(["item/agentMessage/delta", "turn/completed", "item/completed", "new/delta", "x"]))
    in_order = [("threadId", draw(ids)), ("turnId", draw(ids | st.none()))]
    others = draw(st.lists(st.tuples(st.sampled_from(["delta", "turn", "emittedAtMs", "id"]) | texts, values)))
    body = [("delta", draw(texts) * draw(st.sampled_from([1, 1, 5000])))]
    members = draw(st.just([*in_order, *others, *body]) | st.permutations([*in_order, *others, *body]))
    line: dict[str, Any] = {"method": method, "params": dict(members)}
    for name, value in draw(
        st.sampled_from([[("emittedAtMs", 1795335453103)], [("emittedAtMs", 5)], []])
        | st.permutations([("emittedAtMs", draw(st.integers(0, 10**14))), ("id", draw(ids | st.integers())), ("x", 1)])
    ):
        line[name] = value
    return encoded(line, draw(st.booleans()))


@given(st.lists(notification_lines() | messages().map(encoded), max_size=12))
@example([encoded({"method": "item/agentMessage/delta", "params": {"threadId": "t", "turnId": "u", "x": 1}})] * 2)
def test_a_scan_that_remembers_says_the_same(lines: list[bytes]) -> None:
    scanner = Scanner()
    known: dict[bytes, Envelope] = {}
    for line in lines:
        expected = scanned(line)
        for beginning, header in known.items():
            if line.startswith(beginning) and is_whole(line):
                assert header == expected
        try:
            header, common = scanner.scan(line)
        except ValueError:
            assert expected is None
            continue
        assert header == expected
        if common is not None:
            known[common] = header


DELTA = b'{"method":"item/agentMessage/delta","params":{"threadId":"t","turnId":"u","delta":"%s"}%s'


def test_lines_that_begin_alike_are_walked_once() -> None:
    scanner = Scanner()
    first, _ = scanner.scan(DELTA % (b"a", b',"emittedAtMs":1795335453103}'))
    again, beginning = scanner.scan(DELTA % (b"b", b',"emittedAtMs":1795335453104}'))
    assert again is first
    assert beginning == b'{"method":"item/agentMessage/delta","params":{"threadId":"t","turnId":"u"'


@pytest.mark.parametrize(
    "end", [b',"emittedAtMs":1795335453104,"id":7}', b',"emittedAtMs":1,"id":123456}', b',"id":7}']
)
def test_what_follows_the_params_is_not_overlooked(end: bytes) -> None:
    scanner = Scanner()
    scanner.scan(DELTA % (b"a", b',"emittedAtMs":1795335453103}'))
    header, _ = scanner.scan(DELTA % (b"b", end))
    assert header == scan(DELTA % (b"b", end)) and header.id is not None


@pytest.mark.parametrize("end", [b"", b',"emittedAtMs":1795335453104', b',"emittedAtMs":17953354531', b"}}"])
def test_half_a_line_is_refused_however_it_begins(end: bytes) -> None:
    scanner = Scanner()
    scanner.scan(DELTA % (b"a", b',"emittedAtMs":1795335453103}'))
    with pytest.raises(ValueError, match="JSON"):
        scanner.scan(DELTA % (b"b", end))


def test_what_is_remembered_is_bounded() -> None:
    scanner = Scanner()
    for number in range(2000):
        scanner.scan(DELTA.replace(b'"u"', b'"%d"' % number) % (b"a", b',"emittedAtMs":1795335453103}'))
        assert len(scanner._headers) <= 256


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_scan_refuses_noise_with_a_value_error(noise: bytes) -> None:
    scanned(noise)


def real_lines() -> list[dict[str, Any]]:
    """Return lines in the member order of the real runtime."""
    item = {"type": "agentMessage", "id": "msg_1", "text": "BODY", "phase": None}
    return [
        {
            "method": "turn/started",
            "params": {"threadId": "th", "turn": {"id": "tu", "rootTurnId": "tu", "items": [], "status": "inProgress"}},
            "emittedAtMs": 1795335453103,
        },
        {
            "method": "item/completed",
            "params": {"item": item, "threadId": "th", "turnId": "tu", "completedAtMs": 1795335453166},
            "emittedAtMs": 1795335453166,
        },
        {
            "method": "item/agentMessage/delta",
            "params": {"threadId": "th", "turnId": "tu", "itemId": "msg_1", "delta": "BODY"},
            "emittedAtMs": 1795335453166,
        },
        {
            "method": "turn/completed",
            "params": {"threadId": "th", "turn": {"id": "tu", "items": [item], "status": "completed", "error": None}},
            "emittedAtMs": 1795335453168,
        },
        {"method": "thread/started", "params": {"thread": {"id": "th", "preview": "BODY"}}, "emittedAtMs": 1},
        {
            "method": "item/fileChange/requestApproval",
            "id": 7,
            "params": {"threadId": "th", "turnId": "tu", "x": "BODY"},
        },
        {"method": "not/known/here", "params": {"body": {"a": ["BODY"]}, "threadId": "th", "turnId": "tu"}},
        {"id": 9, "result": {"thread": {"id": "th", "preview": "BODY"}}},
        {"id": "nine", "result": {"dataBase64": "BODY"}},
    ]


# What a body may hold to mislead a search that does not know where it is.
DECEPTIONS = [
    "x",
    '","threadId":"fake","turnId":"fake"}}',
    '{"method":"turn/completed","params":{"turn":{"id":"fake"}}}',
    '\\","turnId":"fake"},"emittedAtMs":1}',
    "\\",
    '"',
]


@pytest.mark.parametrize("message", real_lines(), ids=lambda message: str(message.get("method", "response")))
@pytest.mark.parametrize("deception", DECEPTIONS)
def test_ids_after_or_before_a_huge_body(message: dict[str, Any], deception: str) -> None:
    body = deception + "y" * 200_000 + deception
    line = encoded(message).replace(b"BODY", encoded(body)[1:-1])
    whole = scan(line)
    assert whole == reference(line)
    assert (whole.thread_id, whole.turn_id) != ("fake", "fake")
    # The runtime writes the ids before the body or after it; either way its ends are enough.
    assert scan_truncated(line[:65536], line[-65536:]) == whole


@given(messages(), st.integers(1, 400), st.integers(1, 400), st.booleans())
@example({"method": "x", "params": {"item": {"turnId": "fake"}}}, 15, 300, False)
@example({"method": "x", "params": {"item": {"turnId": "fake"}}, "emittedAtMs": 5}, 15, 300, False)
@example({"id": 5, "method": "x"}, 7, 7, False)
@example({"id": 1234}, 7, 1, False)
def test_a_truncated_line_never_tells_a_wrong_id(message: dict[str, Any], head: int, tail: int, ascii: bool) -> None:
    """Check the ends of any message: each id is that of the whole message, or absent."""
    # Of a response nothing but the id counts, and the params stand in an object of their own.
    message.pop("error", None)
    message.pop("result", None)
    if not isinstance(message.get("params"), dict):
        message.pop("params", None)
    line = encoded(message, ascii)
    whole = reference(line)
    if whole is None:
        return
    partial = scan_truncated(line[:head], line[-tail:])
    assert partial.id in (None, whole.id)
    assert partial.method in (None, whole.method)
    assert partial.thread_id in (None, whole.thread_id)
    assert partial.turn_id in (None, whole.turn_id)


@given(st.binary(max_size=80), st.binary(max_size=80))
@example(b'{"id":"\\ud800","method":"x"', b"")
@example(b'{"method":"x","params":{"turnId":"\xff",', b'"\xff":1}}')
def test_truncated_noise_raises_nothing(head: bytes, tail: bytes) -> None:
    scan_truncated(head, tail)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json",
        b"{}",
        b"[]",
        b"5",
        b'{"method":5}',
        b'{"id":true}',
        b'{"id":1} x',
        b'{"id":1,"result":NaN}',
        b'{"method":"x","params":{"threadId":"\\ud800"}}',
        b'{"method":"x","params":{"threadId":"\xff"}}',
        b'{"method":"x","params":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"method":"x","id":[],"params":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
)
def test_bad_lines_are_refused_with_a_reason(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        scan(line)


def test_nested_but_reasonable_lines_are_read() -> None:
    line = b'{"method":"x","params":{"a":' + b"[" * 200 + b"]" * 200 + b',"threadId":"t"}}'
    assert scan(line) == Envelope(None, "x", "t", None, False)


def test_every_known_method_is_routed_by_its_own_path() -> None:
    for method, entry in INCOMING.items():
        params: dict[str, Any] = {}
        for path, value in ((entry.thread, "THREAD"), (entry.turn, "TURN")):
            here = params
            *parents, name = (path or "absent").split(".")
            for parent in parents:
                here = here.setdefault(parent, {})
            here[name] = value
        envelope = scan(encoded({"method": method, "params": params}))
        assert envelope.thread_id == (None if entry.thread is None else "THREAD"), method
        assert envelope.turn_id == (None if entry.turn is None else "TURN"), method
