"""Notification: one line, decoded when somebody looks - whatever stands around its params."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_app_server.generated import models
from codex_app_server.notifications import Notification, UnknownNotification

DELTA = {"threadId": "th", "turnId": "tu", "itemId": "it", "delta": "d"}
HEAD = '{"method":"item/agentMessage/delta","params":'


def encoded(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize("given_method", ["", "item/agentMessage/delta"], ids=["found", "given"])
@pytest.mark.parametrize(
    "line",
    [
        HEAD + encoded(DELTA) + ',"emittedAtMs":1795335453103}',
        HEAD + encoded(DELTA) + "}",
        HEAD + encoded(DELTA) + ',"emittedAtMs":1795335453103,"more":{"emittedAtMs":1}}',
        HEAD + encoded(DELTA) + ',"more":1,"emittedAtMs":1795335453103}',
        f'{{"emittedAtMs":1,"params":{encoded(DELTA)},"method":"item/agentMessage/delta"}}',
        f'{{"method": "item/agentMessage/delta", "params": {json.dumps(DELTA)}}}',
    ],
)
def test_the_payload_is_found_wherever_it_stands(line: str, given_method: str) -> None:
    notification = Notification(line.encode(), given_method)
    assert notification.payload == models.AgentMessageDeltaNotification.model_validate(DELTA)
    assert notification.payload is notification.payload
    assert notification.method == "item/agentMessage/delta"
    assert notification.params == DELTA


@given(
    st.dictionaries(st.sampled_from([*DELTA, "emittedAtMs", "x"]), st.text(max_size=9) | st.integers() | st.none()),
    st.sampled_from([{}, {"emittedAtMs": 1795335453103}, {"emittedAtMs": 1, "x": {"emittedAtMs": 2}}, {"x": []}]),
)
def test_the_payload_is_that_of_a_full_decode(params: dict[str, Any], after: dict[str, Any]) -> None:
    message = {"method": "item/agentMessage/delta", "params": params, **after}
    try:
        expected: Any = models.AgentMessageDeltaNotification.model_validate(params)
    except ValueError:
        expected = UnknownNotification(params)
    assert Notification(encoded(message).encode("utf-8", "replace")).payload == expected


def test_params_that_end_with_a_member_like_the_lines_own() -> None:
    params = {**DELTA, "emittedAtMs": 5}
    payload = Notification((HEAD + encoded(params) + "}").encode()).payload
    assert payload.model_extra == {"emittedAtMs": 5}


def test_a_line_that_only_begins_well_is_kept_as_text() -> None:
    notification = Notification((HEAD + '{"threadId":"th","turnId":"tu",oops}}').encode())
    assert notification.method == "item/agentMessage/delta"
    assert notification.payload == UnknownNotification(notification.raw.decode())


def test_notifications_are_told_apart_and_show_their_line() -> None:
    one, other = Notification(b'{"method":"x"}'), Notification(b'{"method":"x"}')
    assert one != other and len({one, other}) == 2
    assert repr(one) == """Notification('x', b'{"method":"x"}')"""
