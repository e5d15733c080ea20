"""Changes that the broker makes in an app-server, and the log-ins that it ends by itself."""

from __future__ import annotations

from typing import Any

import pytest
from session_ids import sid
from worker_bench import Bench, encode

from codex_pool.protocol import wire
from codex_pool.worker.applied_changes import UPDATE_LIMIT_S

LOGIN, UPDATED, COMPLETED = "account/login/start", "account/updated", "account/login/completed"


@pytest.fixture
def bench() -> Bench:
    return Bench(started_at=7.0).start()


def apply(bench: Bench, call: int, method: str = LOGIN, **params: Any) -> None:
    line = encode({"id": 0, "method": method, "params": params})
    bench.apply(bench.core.broker_message(wire.Apply(call), [line], bench.now))


def register(bench: Bench) -> wire.Register:
    bench.apply(bench.core.new_broker(bench.now))
    return next(route for route in reversed(bench.routes) if isinstance(route, wire.Register))


def told(bench: Bench) -> list[Any]:
    return [line["method"] for _, lines in bench.lines for line in lines]


def test_what_the_app_server_says_of_a_change_is_in_its_answer_and_nowhere_else(bench: Bench) -> None:
    apply(bench, 1, type="apiKey", apiKey="sk")
    bench.answer(bench.request(LOGIN), {"type": "apiKey"})
    bench.notify(COMPLETED, loginId=None, success=True)
    assert bench.answered == {}
    bench.notify(UPDATED, authMode="apikey")
    assert bench.answered[1][0].ok and bench.answered[1][1]["result"] == {"type": "apiKey"}
    assert [line["method"] for line in bench.told[1]] == [COMPLETED, UPDATED] and told(bench) == []
    bench.notify(UPDATED, authMode="apikey")
    assert told(bench) == [UPDATED], "what it says by itself is told"


def test_a_change_is_answered_without_what_never_comes(bench: Bench) -> None:
    apply(bench, 1, "account/logout")
    bench.answer(bench.request("account/logout"), {})
    assert bench.core.held["sent"] == 0
    bench.tick(UPDATE_LIMIT_S + 0.1)
    assert bench.answered[1][0].ok and bench.told[1] == []
    apply(bench, 2, type="apiKey")
    bench.answer(bench.request(LOGIN), error="no")
    assert not bench.answered[2][0].ok
    apply(bench, 3, type="chatgptAuthTokens")
    bench.answer(bench.request(LOGIN), {})
    bench.notify(COMPLETED, loginId=None, success=False, error="no routing")
    assert [line["method"] for line in bench.told[3]] == [COMPLETED]
    apply(bench, 4, "environment/add")
    bench.answer(bench.request("environment/add"), {})
    assert bench.answered[4][0].ok, "nothing follows it"


def test_only_the_last_broker_and_number_get_an_answer(bench: Bench) -> None:
    apply(bench, 1, "account/logout")
    apply(bench, 2, "account/logout")
    for number in list(bench.open):
        bench.answer(number, {})
    bench.notify(UPDATED, authMode=None)
    assert list(bench.answered) == [2]
    apply(bench, 3, "account/logout")
    register(bench)
    bench.answer(bench.request("account/logout"), {})
    bench.notify(UPDATED, authMode=None)
    assert list(bench.answered) == [2]


def test_a_log_in_has_ended_when_the_app_server_uses_it(bench: Bench) -> None:
    bench.dispatch(LOGIN, {"type": "chatgpt"})
    bench.answer(bench.request(LOGIN), {"type": "chatgpt", "loginId": "l1"})
    bench.now = 200.0
    bench.notify(COMPLETED, loginId="l1", success=True)
    assert bench.logins == []
    bench.notify(UPDATED, authMode="chatgpt")
    ((head, lines),) = bench.logins
    assert head == wire.LoginEnded("l1", [sid("s1")], changed=True)
    assert [line["method"] for line in lines] == [COMPLETED, UPDATED] and told(bench) == []
    after = register(bench)
    assert (after.as_of, after.changed_at) == (200.0, 200.0)
    assert len(bench.logins) == 2, "the broker may have died before it took note"
    bench.apply(bench.core.broker_message(wire.SharedState(200.5, 1.0), [b"{}"], bench.now))
    assert register(bench).as_of == 200.5 and len(bench.logins) == 2


@pytest.mark.parametrize(("error", "changed"), [
    ("Login server error: Login was not completed", False), ("Login timed out", False),
    ("workspace routing discovery failed", True), (None, True),
])  # fmt: skip
def test_a_log_in_that_fails_late_may_have_stored_its_account(bench: Bench, error: str | None, changed: bool) -> None:
    bench.notify(COMPLETED, loginId="l1", success=False, error=error)
    ((head, _),) = bench.logins
    assert head.changed == changed and register(bench).as_of == (bench.now if changed else 7.0)


def test_a_log_in_without_its_update_ends_all_the_same(bench: Bench) -> None:
    bench.notify(COMPLETED, loginId="l1", success=True)
    bench.tick(UPDATE_LIMIT_S + 0.1)
    ((head, lines),) = bench.logins
    assert head.changed and len(lines) == 1


def test_log_ins_of_mcp_servers_and_gateways_are_told_to_the_broker(bench: Bench) -> None:
    bench.notify("mcpServer/oauthLogin/completed", name="m", success=True)
    bench.notify("account/gatewayOAuth/changed", providerId="p", status="started")
    bench.notify("account/gatewayOAuth/changed", providerId="p", status="succeeded")
    assert [head for head, _ in bench.logins] == [
        wire.LoginEnded("", [], changed=True, mcp=True),
        wire.LoginEnded("", [], changed=True),
    ]
    assert told(bench) == ["account/gatewayOAuth/changed"]


def test_the_broker_is_asked_for_external_tokens(bench: Bench) -> None:
    ask = {"id": 0, "method": "account/chatgptAuthTokens/refresh", "params": {"reason": "unauthorized"}}
    bench.say(ask)
    assert bench.wanted == [{**ask, "id": "w0/0"}]
    for line in (b'{"id":"w0/0","result":{"accessToken":"t"}}', b'{"id":"w0/0","result":{}}'):
        bench.apply(bench.core.broker_message(wire.ServerRequestAnswer(None), [line], bench.now))
    assert bench.sent[-1] == {"id": 0, "result": {"accessToken": "t"}} and bench.core.held["server_requests"] == 0


def test_the_next_broker_hears_what_the_app_server_has_been_given(bench: Bench) -> None:
    holdings: list[wire.WorkerState] = []
    bench.apply(bench.core.broker_message(wire.SharedState(50.0, 40.0), [b'{"method":"environment/add"}'], bench.now))
    bench.dispatch(LOGIN, {"type": "chatgpt"}, session="s7")
    bench.answer(bench.request(LOGIN), {"type": "chatgpt", "loginId": "l1"})
    for effect in bench.core.broker_message(wire.RegisterRequest(), [], bench.now):
        frames = getattr(effect, "frames", [])
        holdings += [wire.decode_worker_state(frames[2])] if len(frames) == 3 else []
    (held,) = holdings
    assert (held.replayed_requests, held.replayed_at, held.logins) == (
        [b'{"method":"environment/add"}'],
        40.0,
        {"l1": sid("s7")},
    )
