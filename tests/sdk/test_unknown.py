"""Data unknown to this version is passed on; what it should know and cannot read is counted, said and marked."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_app_server as fake
import pytest
from worker_bench import Bench, sid

from codex_app_server import (
    AppServerError,
    AsyncCodex,
    Codex,
    Notification,
    OutputTypeError,
    UnknownNotification,
    notifications,
)
from codex_app_server.results import TurnCollector
from codex_app_server.testing import null_app_server
from codex_pool import Pool
from codex_pool.protocol import jsonrpc, wire

MODELS = {"data": [], "nextCursor": None}
NAMES = {
    "turnId": '"threadId":"$THREAD","turnId":"$TURN"',
    "turn.id": '"thread":{"id":"$THREAD"},"turn":{"id":"$TURN","more":[1]}',
    "turn.id only": '"turn":{"id":"$TURN"}',
}


def says(names: str) -> dict[str, Any]:
    """A step: the app-server says something that nobody knows, of the turn that runs."""
    return {
        "bytes": '{"method":"item/new/thing","params":{NAMES,"x":5},"extra":{"a":1}}\n'.replace("NAMES", NAMES[names])
    }


@pytest.fixture
def scenario(tmp_path: Path) -> dict[str, Any]:
    held = str(tmp_path / "go")
    on = {"model/list": {"do": [says(names) for names in NAMES], "result": MODELS}}
    return {"hold": held, "on": on, "end": "completed"}


def check_unknown(seen: list[Notification]) -> None:
    unknown = [each for each in seen if each.method == "item/new/thing"]
    assert len(unknown) == len(NAMES)
    for each in unknown:
        assert isinstance(each.payload, UnknownNotification) and each.payload.problem is None
        assert each.payload.params["x"] == 5 and json.loads(each.raw)["extra"] == {"a": 1}


@pytest.mark.parametrize("over", ["app-server", "pool"])
def test_an_unknown_notification_reaches_the_stream_of_its_turn(
    over: str, scenario: dict[str, Any], tmp_path: Path
) -> None:
    def use(codex: Codex) -> None:
        turn = codex.thread_start().turn("hello")
        stream = turn.stream()
        seen = [next(stream)]
        while seen[-1].method != "turn/started":
            seen.append(next(stream))
        codex.models()
        (tmp_path / "go").touch()
        check_unknown([*seen, *stream])

    if over == "app-server":
        with Codex(null_app_server(**scenario)) as codex:
            use(codex)
    else:
        with Pool(1, null_app_server(**scenario)) as pool, pool.connect() as codex:
            use(codex)


def test_an_unknown_notification_of_no_turn_passes_through_a_pool() -> None:
    lines = [
        '{"method":"new/global","params":{"x":1}}\n',
        '{"method":"new/ofThread","params":{"threadId":"$THREAD","x":2}}\n',
        '{"method":"new/ofThread","params":{"thread":{"id":"$THREAD"},"x":3}}\n',
        '{"method":"new/ofThread","params":{"threadId":"somebody","x":4}}\n',
    ]
    on = {"model/list": {"do": [{"bytes": each} for each in lines], "result": MODELS}}
    with Pool(1, null_app_server(on=on)) as pool, pool.connect() as codex:
        codex.thread_start().run("hello")
        codex.models()
        seen: list[Any] = []
        while not seen or seen[-1][1]["x"] < 3:
            notification = codex.client.next_notification(20)
            assert notification is not None
            if notification.method.startswith("new/"):
                seen.append((notification.method, notification.params))
        assert [(method, params["x"]) for method, params in seen] == [
            ("new/global", 1), ("new/ofThread", 2), ("new/ofThread", 3)
        ]  # fmt: skip


# Members of messages.


TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": None}


def test_a_worker_keeps_what_it_has_no_use_for() -> None:
    bench = Bench().start()
    line = jsonrpc.encode({"id": "a", "method": "model/list", "params": {"new": [1]}, "trace": TRACE, "more": 1})
    bench.apply(bench.core.broker_message(wire.Dispatch(77, sid("s1"), "full"), [line], bench.now))
    number = bench.request("model/list")
    sent = bench.open[number]
    assert sent == {"id": number, "method": "model/list", "params": {"new": [1]}, "trace": TRACE, "more": 1}
    bench.say({"id": number, "result": {"data": [], "new": 2}, "trace": TRACE})
    assert bench.answered[77][1] == {"id": "a", "result": {"data": [], "new": 2}, "trace": TRACE}
    # And of an error.
    del bench.open[number]
    bench.apply(
        bench.core.broker_message(wire.Dispatch(78, sid("s1"), "full"), [line.replace(b'"a"', b'"b"')], bench.now)
    )
    error = {"code": -32600, "message": "no", "data": None, "new": 3}
    bench.say({"id": bench.request("model/list"), "error": error, "trace": TRACE})
    assert bench.answered[78][1] == {"id": "b", "error": error, "trace": TRACE}


def test_a_question_and_its_answer_keep_them_too() -> None:
    bench = Bench().start()
    bench.thread()
    bench.turn("u1")
    params = {"threadId": "t1", "turnId": "u1", "new": 1}
    bench.say({"id": 9, "method": "item/tool/requestUserInput", "params": params, "trace": TRACE})
    (asked,) = [line for _, lines in bench.lines for line in lines if line["method"] == "item/tool/requestUserInput"]
    assert (asked["params"], asked["trace"]) == (params, TRACE)
    answer = jsonrpc.encode({"id": asked["id"], "result": {"answers": {}, "new": 2}, "trace": TRACE})
    bench.apply(bench.core.broker_message(wire.ServerRequestAnswer(sid("s1")), [answer], bench.now))
    assert bench.sent[-1] == {"id": 9, "result": {"answers": {}, "new": 2}, "trace": TRACE}


def test_the_time_of_what_is_told_under_another_id_is_kept() -> None:
    bench = Bench().start()
    bench.thread()
    bench.turn("u1")
    bench.say({"id": 9, "method": "item/tool/requestUserInput", "params": {"threadId": "t1", "turnId": "u1"}})
    resolved = {"method": "serverRequest/resolved", "params": {"threadId": "t1", "requestId": 9}, "emittedAtMs": 5}
    bench.say(resolved)
    (told,) = [line for _, lines in bench.lines for line in lines if line["method"] == "serverRequest/resolved"]
    assert told == {**resolved, "params": {"threadId": "t1", "requestId": told["params"]["requestId"]}}


def test_unknown_fields_of_requests_and_answers_survive_the_sdk(tmp_path: Path) -> None:
    config = fake.config(["answer", "model/list", {"data": [], "nextCursor": None, "brandNew": {"a": 1}}])
    with Codex(config) as codex:
        assert codex.models().brandNew == {"a": 1}  # type: ignore[attr-defined]
    params = {"thread_id": "th", "brandNew": 5}
    from codex_app_server import operations

    assert json.loads(operations.request("thread/archive", params).params or b"") == {"threadId": "th", "brandNew": 5}


# A known notification that does not fit its type.


def note(method: str, **params: Any) -> Notification:
    return Notification(jsonrpc.encode({"method": method, "params": {"threadId": "th", "turnId": "tu", **params}}))


END = note("turn/completed", turn={"id": "tu", "items": [], "status": "completed"})
GOOD = note("item/completed", item={"type": "agentMessage", "id": "i", "text": "early"}, completedAtMs=1)
BAD = {
    "no text": {"type": "agentMessage", "id": "i", "words": "late"},
    "text in parts": {"type": "agentMessage", "id": "i", "text": ["late"]},
    "no type": {"id": "i", "text": "late"},
    "no item": None,
    "other item": {"type": "commandExecution", "id": "i"},
}


@pytest.fixture
def counted() -> Iterator[None]:
    notifications.undecoded.clear()
    yield
    notifications.undecoded.clear()


@pytest.mark.parametrize("item", BAD.values(), ids=[*BAD])
def test_an_item_that_cannot_be_read_is_marked(item: Any, counted: None, caplog: pytest.LogCaptureFixture) -> None:
    collector = TurnCollector("tu")
    bad = note("item/completed", item=item, completedAtMs=1)
    for notification in (bad, END):
        collector.add(notification)
    with caplog.at_level(logging.WARNING, "codex_app_server"):
        result = collector.result()
        assert result.final_response is None and result.undecoded == ("item/completed",) and result.items == []
        assert collector.may_lack_answer
    assert notifications.undecoded == {"item/completed": 1}
    assert [record.args[0] for record in caplog.records if record.args] == ["item/completed"]  # type: ignore[index]
    assert isinstance(bad.payload, UnknownNotification) and bad.payload.problem
    again = pickle.loads(pickle.dumps(result))
    assert again == result and again.undecoded == ("item/completed",)


def test_it_is_logged_once(counted: None, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert isinstance(note("item/completed", item=None).payload, UnknownNotification)
    assert len(caplog.records) == 1 and notifications.undecoded["item/completed"] == 3


def test_an_earlier_answer_is_marked_too(counted: None) -> None:
    collector = TurnCollector("tu")
    for notification in (GOOD, note("item/completed", item=BAD["no text"], completedAtMs=1), END):
        collector.add(notification)
    assert collector.may_lack_answer
    assert collector.result().final_response == "early" and collector.result().undecoded == ("item/completed",)


def test_what_fits_is_not_marked(counted: None) -> None:
    collector = TurnCollector("tu")
    for notification in (GOOD, END):
        collector.add(notification)
    result = collector.result()
    assert not collector.may_lack_answer and result.undecoded == () and not notifications.undecoded


def items(*wrong: Any) -> list[Any]:
    """Steps: a turn whose only items are these."""
    sent = [
        ["send", {"method": "item/completed", "params": {"item": each, "threadId": "th", "turnId": "tu"}}]
        for each in wrong
    ]
    return [["answer", "thread/start", {"thread": {"id": "th"}}], fake.started("tu"), *sent, fake.completed("th", "tu")]


def test_run_marks_it_and_a_typed_answer_is_an_error(counted: None) -> None:
    with Codex(fake.config(*items(BAD["no text"]))) as codex:
        result = codex.thread_start().run("hello", timeout=20)
        assert result.final_response is None and result.undecoded == ("item/completed",)
    missing = r"without a final response that can be read \(undecoded: item/completed\)"
    with Codex(fake.config(*items(BAD["no text"]))) as codex, pytest.raises(OutputTypeError, match=missing):
        codex.thread_start().run("hello", output_type=int, timeout=20)


def test_text_that_cannot_be_read_is_an_error(counted: None) -> None:
    bad = {"method": "item/agentMessage/delta", "params": {"threadId": "th", "turnId": "tu", "words": "x"}}
    steps = [["answer", "thread/start", {"thread": {"id": "th"}}], fake.started("tu"), ["send", bad]]
    unread = r"a piece of the text of a turn could not be read: .*Field required"
    with Codex(fake.config(*steps, fake.completed("th", "tu"))) as codex, pytest.raises(AppServerError, match=unread):
        list(codex.thread_start().turn("hello").text())

    async def run() -> None:
        async with AsyncCodex(fake.config(*steps, fake.completed("th", "tu"))) as codex:
            turn = await (await codex.thread_start()).turn("hello")
            with pytest.raises(AppServerError, match="a piece of the text of a turn could not be read"):
                async for _ in turn.text():
                    pass

    asyncio.run(run())
