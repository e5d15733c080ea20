"""A protocol that has changed: what is new is passed on, what is missing is an error that names both versions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from codex_app_server import (
    AppServerError,
    AsyncCodex,
    Codex,
    MethodNotFoundError,
    TurnFailedError,
    TurnResult,
    UnknownNotification,
    notifications,
)
from codex_app_server._core import silence
from codex_app_server._protocol import runtime_version
from codex_app_server.generated.routing import RUNTIME_VERSION
from codex_app_server.testing import null_app_server
from codex_pool import Pool

VERSION = "9.9.0"
BOTH = rf"codex {VERSION}, this SDK was made for {RUNTIME_VERSION}"
ASK = {"method": "item/hologram/requestApproval", "params": {"reason": "new"}}
ITEM = '"item":\\{"type":"agentMessage"'


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No version has been met; a silent turn is asked about soon."""
    monkeypatch.setattr(silence, "SILENT_S", 0.05)
    runtime_version.in_use.clear()
    notifications.undecoded.clear()
    yield
    runtime_version.in_use.clear()
    notifications.undecoded.clear()


@contextmanager
def sync_client(**scenario: Any) -> Iterator[Callable[[], TurnResult]]:
    with Codex(null_app_server(version=VERSION, **scenario)) as codex:
        yield lambda: codex.thread_start().run("hello", timeout=20)


@contextmanager
def async_client(**scenario: Any) -> Iterator[Callable[[], TurnResult]]:
    async def turn() -> TurnResult:
        async with AsyncCodex(null_app_server(version=VERSION, **scenario)) as codex:
            thread = await codex.thread_start()
            return await thread.run("hello", timeout=20)

    yield lambda: asyncio.run(turn())


@contextmanager
def pool(**scenario: Any) -> Iterator[Callable[[], TurnResult]]:
    with Pool(1, null_app_server(version=VERSION, **scenario)) as pool, pool.connect() as codex:
        yield lambda: codex.thread_start().run("hello", timeout=20)


each_client = pytest.mark.parametrize("client", [sync_client, async_client, pytest.param(pool, marks=pytest.mark.slow)])
Client = Any


def rewritten(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"rewrite": [*map(list, pairs)]}


PASSED_ON: dict[str, tuple[dict[str, Any], Callable[[TurnResult], bool]]] = {
    "fields that are new": (
        rewritten(('"turnId":', '"tenant":{"id":"t"},"turnId":'), ('"params":\\{', '"params":{"more":[1],')),
        lambda result: result.final_response == "null null null ",
    ),
    "a notification that is renamed": (
        rewritten(('"method":"thread/tokenUsage/updated"', '"method":"thread/usage/changed"')),
        lambda result: result.usage is None and result.final_response == "null null null ",
    ),
    "a notification that is gone": (
        rewritten(('\\{"method":"thread/tokenUsage/updated"[^\\n]*\\n', "")),
        lambda result: result.usage is None,
    ),
    "a kind of item that is new": (
        rewritten((f'{ITEM}(.*?"text":)"null', '"item":{"type":"hologram"\\1"null')),
        lambda result: result.items[0].type == "hologram" and result.items[0].text == "null null null ",  # type: ignore[attr-defined]
    ),
    "a value that is new": (
        rewritten(('"status":"completed"', '"status":"postponed"')),
        lambda result: result.status == "postponed",
    ),
    "a question that is new": (
        {"ask": ASK},
        lambda result: "-32601" in str(result.final_response),
    ),
    "fields of the handshake that are gone": (
        rewritten(('"codexHome":"/","platformFamily":"unix","platformOs":"linux"', '"new":1')),
        lambda result: result.final_response == "null null null ",
    ),
    "fields that may be null that are gone": (
        rewritten(('"(projectId|gitInfo|path|name|error|phase|memoryCitation)":null,', "")),
        lambda result: result.error is None,
    ),
    "numbers for the ids of items": (
        rewritten(('"(itemId|id)":"msg_null"', '"\\1":17')),
        lambda result: result.status == "completed" and result.undecoded == ("item/completed",),
    ),
}


@each_client
@pytest.mark.parametrize("case", PASSED_ON)
def test_what_is_new_is_passed_on(client: Client, case: str) -> None:
    scenario, holds = PASSED_ON[case]
    with client(**scenario) as turn:
        assert holds(turn())


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "the end of a turn is renamed": (
        rewritten(('"method":"turn/completed"', '"method":"turn/finished"')),
        TurnFailedError,
        f"ended without a turn/completed that can be read: .* idle; .*{BOTH}",
    ),
    "the end of a turn names it elsewhere": (
        rewritten(('("method":"turn/completed".*?)"turn":\\{"id":', '\\1"exchange":{"key":')),
        TurnFailedError,
        f"ended without a turn/completed that can be read: .*{BOTH}",
    ),
    "the end of a turn, and how a thread is read": (
        {
            **rewritten(('"method":"turn/completed"', '"method":"turn/finished"')),
            "on": {"thread/read": {"result": {"conversation": {}}}},
        },
        TurnFailedError,
        f"the status of its thread is unreadable; .*{BOTH}",
    ),
    "the end of a turn, and thread/read is gone": (
        {
            **rewritten(('"method":"turn/completed"', '"method":"turn/finished"')),
            "on": {"thread/read": {"error": {"code": -32600, "message": "unknown variant `thread/read`, expected"}}},
        },
        TurnFailedError,
        f"the status of its thread is unknown; .*{BOTH}",
    ),
    "the end of a turn has no status": (
        rewritten(('"status":"completed",', "")),
        TurnFailedError,
        f"without a readable turn/completed; .*{BOTH}",
    ),
    "the answer to thread/start is another one": (
        rewritten(('"thread":\\{"id"', '"conversation":{"id"')),
        AppServerError,
        f"the answer to the start of a thread does not name one: .*{BOTH}",
    ),
    "the answer to turn/start is another one": (
        {"on": {"turn/start": {"result": {"exchange": {"id": "1"}}}}},
        AppServerError,
        f"the answer to the start of a turn does not name one: .*{BOTH}",
    ),
    "numbers for the ids of threads": (
        rewritten(('"(threadId|id|sessionId)":"00000000-0000[^"]*"', '"\\1":17')),
        AppServerError,
        f"the answer to the start of a thread does not name one: .*{BOTH}",
    ),
    "numbers for the ids of turns": (
        rewritten(('"(turnId|id)":"00000000-0001[^"]*"', '"\\1":17')),
        AppServerError,
        f"the answer to the start of a turn does not name one: .*{BOTH}",
    ),
    "turn/start is gone": (
        {"on": {"turn/start": {"error": {"code": -32600, "message": "unknown variant `turn/start`, expected one of"}}}},
        MethodNotFoundError,
        f"the runtime does not know turn/start; .*{BOTH}",
    ),
}


@each_client
@pytest.mark.parametrize("case", ERRORS)
def test_what_is_missing_is_an_error_that_names_both_versions(client: Client, case: str) -> None:
    scenario, kind, words = ERRORS[case]
    with client(**scenario) as turn, pytest.raises(kind, match=words):
        turn()


def test_other_answers_name_both_versions() -> None:
    words = f"the answer to model/list is not a ModelListResponse: (?s:.*){BOTH}"
    config = null_app_server(version=VERSION, on={"model/list": {"result": {"data": 5}}})
    with Codex(config) as codex, pytest.raises(AppServerError, match=words):
        codex.models()


def test_a_renamed_notification_is_in_the_stream_of_its_turn() -> None:
    config = null_app_server(version=VERSION, **rewritten(('"method":"item/completed"', '"method":"item/done"')))
    with Codex(config) as codex, codex.thread_start().turn("hello").stream() as stream:
        (done,) = [each for each in stream if each.method == "item/done"]
        assert isinstance(done.payload, UnknownNotification) and done.payload.problem is None
        assert done.payload.params["item"]["text"] == "null null null "


def test_a_turn_that_is_silent_and_runs_is_waited_for(tmp_path: Any) -> None:
    """The turn is asked about many times; another version is met as often as it is met, and warned of once."""
    config = null_app_server(version=VERSION, hold=str(tmp_path / "go"))
    with Codex(config) as codex:
        turn = codex.thread_start().turn("hello")
        stream = turn.stream()
        while (seen := stream.next(20)) is not None and seen.method != "thread/tokenUsage/updated":
            pass
        with pytest.raises(TimeoutError):
            stream.next(0.5)
        (tmp_path / "go").touch()
        assert turn.run(timeout=20).status == "completed"


def test_one_warning_for_each_other_version(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for version in (VERSION, VERSION, "0.147.0", RUNTIME_VERSION, "0.0.0", "0.1.0"):
            with Codex(null_app_server(version=version)) as codex:
                assert codex.client.runtime_version == version
    found = [each.getMessage() for each in caplog.records]
    assert len(found) == 3
    assert BOTH.replace("\\", "") in found[0] and "what is new in it comes as plain JSON" in found[0]
    assert "codex 0.147.0" in found[1] and found[1].endswith("are tested")
    assert found[2].endswith("upgrade it, or expect errors")
