"""Every request, result, notification and server request of the protocol, from the runtime's JSON to ours and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from samples import Samples, Schema

from codex_app_server import InvalidInputError, Notification, UnknownNotification, operations
from codex_app_server._protocol.envelope import scan
from codex_app_server.generated import models, routing

BOTH = pytest.mark.parametrize("full", [False, True], ids=["small", "full"])


def fits(value: Any, name: str) -> bool:
    """Return whether `value` is of the generated type; of a union, whether it is one of its branches."""
    declared = getattr(models, name)
    return isinstance(value, declared) if isinstance(declared, type) else type(value).__name__ in str(declared)


def of_the_schema(definitions: Schema, kind: str) -> dict[str, str | None]:
    """The methods of a kind, each with the name of its params, as the runtime says them."""
    found: dict[str, str | None] = {}
    for branch in definitions[kind]["oneOf"]:
        params = branch["properties"].get("params", {})
        names = [part["$ref"].rsplit("/", 1)[-1] for part in (params, *params.get("anyOf", ())) if "$ref" in part]
        found[branch["properties"]["method"]["enum"][0]] = names[0] if names else None
    return found


def in_snake_case(name: str, wire: Any) -> dict[str, Any]:
    """The fields that a caller would write for `wire`."""
    adapter = models.adapter(name)
    fields: dict[str, Any] = adapter.dump_python(adapter.validate_python(wire), exclude_unset=True)
    return fields


def spellings(value: Any) -> set[str]:
    """All keys in a JSON value."""
    if isinstance(value, dict):
        return {*value, *(key for part in value.values() for key in spellings(part))}
    return {key for part in value for key in spellings(part)} if isinstance(value, list) else set()


@BOTH
def test_every_request_is_sent_as_the_runtime_spells_it(definitions: Schema, full: bool) -> None:
    samples = Samples(definitions, full=full)
    translated = 0
    for method, name in of_the_schema(definitions, "ClientRequest").items():
        assert routing.REQUESTS[method].params == name
        if name is None:
            operation = operations.request(method)
            assert (operation.method, operation.params) == (method, None)
            continue
        for wire in samples.of(definitions[name]):
            fields = in_snake_case(name, wire)
            operation = operations.request(method, fields)
            assert operation.method == method
            assert json.loads(operation.params or b"") == wire, method
            assert operation.thread_id == wire.get("threadId"), method
            translated += spellings(fields) != spellings(wire)
    assert translated > (80 if full else 60)


@BOTH
def test_every_params_object_is_sent_as_the_request_it_belongs_to(definitions: Schema, full: bool) -> None:
    samples = Samples(definitions, full=full)
    for method, name in of_the_schema(definitions, "ClientRequest").items():
        if name is None:
            continue
        for wire in samples.of(definitions[name]):
            params = models.adapter(name).validate_python(wire)
            operation = operations.request(params)
            assert operation.method == method
            assert json.loads(operation.params or b"") == wire, method
            assert operation.thread_id == wire.get("threadId"), method


def test_a_params_object_gives_the_result_of_its_method() -> None:
    operation = operations.request(models.ThreadListParams(limit=5))
    result = operation.finish(b'{"data": [], "nextCursor": "next"}')
    assert isinstance(result, models.ThreadListResponse)
    assert result.next_cursor == "next"


def test_what_is_no_params_object_is_refused_with_the_remedy() -> None:
    class ThreadListParams:
        """Called like one of ours."""

    turn = models.Turn(id="t", items=[], status=models.TurnStatus.completed)
    for wrong in (turn, ThreadListParams(), {"limit": 5}, None):
        with pytest.raises(InvalidInputError, match=f"{type(wrong).__name__} is no type of parameters; expected one"):
            operations.request(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="ThreadListParams and fields beside it"):
        operations.request(models.ThreadListParams(), {"limit": 5})


def test_a_params_object_that_is_no_utf_8_is_refused() -> None:
    params = models.ThreadSetNameParams(thread_id="t", name="\ud800")
    with pytest.raises(InvalidInputError, match="ThreadSetNameParams cannot be sent as UTF-8 JSON"):
        operations.request(params)


def test_a_none_is_left_out_where_it_may_be_and_sent_where_something_must_be() -> None:
    listed = operations.request("thread/list", {"limit": None, "cursor": "c"})
    assert json.loads(listed.params or b"") == {"cursor": "c"}
    moved = operations.request("thread/section/move", {"thread_id": "t", "section_id": None})
    assert json.loads(moved.params or b"") == {"threadId": "t", "sectionId": None}
    edit = {"key_path": "model", "value": None, "merge_strategy": "replace"}
    cleared = operations.request("config/value/write", edit)
    assert json.loads(cleared.params or b"")["value"] is None
    with pytest.raises(InvalidInputError, match="ThreadReadParams: thread_id"):
        operations.request("thread/read", {"thread_id": None})


@BOTH
def test_every_result_decodes_to_its_type(definitions: Schema, full: bool) -> None:
    samples = Samples(definitions, full=full)
    smallest = Samples(definitions, full=False)
    for method, row in routing.REQUESTS.items():
        fields = in_snake_case(row.params, smallest.of(definitions[row.params])[0]) if row.params else None
        operation = operations.request(method, fields)
        for wire in samples.of(definitions[row.result]):
            result = operation.finish(json.dumps(wire).encode())
            assert fits(result, row.result), method
            dumped = models.adapter(row.result).dump_python(result, mode="json", by_alias=True, exclude_unset=True)
            assert dumped == wire, method


@BOTH
def test_every_notification_decodes_to_its_payload(definitions: Schema, full: bool) -> None:
    samples = Samples(definitions, full=full)
    payloads = of_the_schema(definitions, "ServerNotification")
    assert len(payloads) == 85
    for method, name in payloads.items():
        assert name is not None
        for wire in samples.of(definitions[name]):
            notification = Notification(json.dumps({"method": method, "params": wire, "emittedAtMs": 1}).encode())
            assert notification.method == method
            assert fits(notification.payload, name), method
            adapter = models.adapter(name)
            dumped = adapter.dump_python(notification.payload, mode="json", by_alias=True, exclude_unset=True)
            assert dumped == wire, method


def test_a_payload_that_does_not_fit_its_type_comes_as_it_is() -> None:
    for method in routing.NOTIFICATIONS:
        payload = Notification(json.dumps({"method": method, "params": [5]}).encode()).payload
        assert payload == UnknownNotification([5]), method
    half = Notification(b'{"method":"turn/completed","params":{"threadId":"t","turn":{"id":1}}}')
    assert half.payload == UnknownNotification({"threadId": "t", "turn": {"id": 1}})


@pytest.mark.parametrize(
    ("line", "params"),
    [
        (b'{"method":"hologram/shown","params":{"beamWidth":3}}', {"beamWidth": 3}),
        (b'{"method":"hologram/shown","params":null}', None),
        (b'{"method":"hologram/shown"}', None),
    ],
)
def test_an_unknown_method_comes_as_it_is(line: bytes, params: Any) -> None:
    notification = Notification(line)
    assert (notification.method, notification.payload) == ("hologram/shown", UnknownNotification(params))


@pytest.mark.parametrize("request_id", [7, "seven"])
def test_the_ids_of_every_server_request_are_found(definitions: Schema, request_id: int | str) -> None:
    samples = Samples(definitions, full=True)
    asked = of_the_schema(definitions, "ServerRequest")
    assert len(asked) == 11  # 10 of them stable
    with_thread = set()
    for method, name in asked.items():
        for wire in samples.of(definitions[str(name)]):
            thread_key = next((key for key in ("threadId", "conversationId") if key in wire), None)
            ids = {key: f"the {key}" for key in (thread_key, "turnId") if key in wire}
            line = json.dumps({"method": method, "params": {**wire, **ids}, "id": request_id}).encode()
            found = scan(line)
            assert (found.id, found.method, found.is_error) == (request_id, method, False)
            assert found.thread_id == ids.get(thread_key), method
            assert found.turn_id == ids.get("turnId"), method
            if thread_key is not None:
                with_thread.add(method)
    assert asked.keys() - with_thread == {"account/chatgptAuthTokens/refresh", "attestation/generate"}


@BOTH
def test_the_params_and_the_answer_of_every_server_request_are_typed(definitions: Schema, full: bool) -> None:
    samples = Samples(definitions, full=full)
    for method, row in routing.SERVER_REQUESTS.items():
        assert row.params == of_the_schema(definitions, "ServerRequest")[method]
        for name in (row.params, row.result):
            adapter = models.adapter(name)
            for wire in samples.of(definitions[name]):
                value = adapter.validate_json(json.dumps(wire))
                assert fits(value, name), method
                assert adapter.dump_python(value, mode="json", by_alias=True, exclude_unset=True) == wire, method
