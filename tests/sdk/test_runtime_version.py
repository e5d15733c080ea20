"""Versions of the runtime: which is in use, and what it does not have."""

from __future__ import annotations

import asyncio

import pytest

from codex_app_server import AppServerError, AsyncCodex, Codex, InvalidInputError, MethodNotFoundError
from codex_app_server._core.runtime import Runtime
from codex_app_server._protocol import runtime_version
from codex_app_server.generated.routing import RUNTIME_VERSION
from codex_app_server.generated.since import NEWEST, OLDEST
from codex_app_server.testing import null_app_server

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("user_agent", "version", "number"),
    [
        ("codex_python/0.163.0 (Debian 12; x86_64) xterm (me; 1)", "0.163.0", (0, 163, 0)),
        ("a/b c/0.171.0-alpha.3 (Linux)", "0.171.0-alpha.3", (0, 171, 0)),
        ("a/1.2.3/0.163.0 (x)", "0.163.0", (0, 163, 0)),
        ("codex/0.0.0 (x)", "0.0.0", None),
        ("codex", None, None),
        ("", None, None),
        (None, None, None),
        ("codex/" + "9" * 200 + ".1.2", None, None),
    ],
)
def test_the_version_in_a_user_agent(
    user_agent: str | None, version: str | None, number: tuple[int, int, int] | None
) -> None:
    found = runtime_version.version_of(user_agent)
    if user_agent is not None and "999" in user_agent:
        assert found is not None and len(found) == 64
    else:
        assert (found, runtime_version.number_of(found)) == (version, number)


def runtime(version: str | None) -> Runtime:
    made = Runtime()
    made.note(f"codex/{version} (x)" if version is not None else "codex")
    return made


@pytest.mark.parametrize("version", [None, "0.0.0", "unreadable"])
def test_nothing_is_refused_for_a_version_that_is_not_known(version: str | None) -> None:
    assert not runtime(version).lacks
    assert runtime_version.warning(version) is None


def test_what_a_version_does_not_have_is_refused_by_name() -> None:
    old, new = runtime(OLDEST), runtime(NEWEST)
    refused = old.refusal("thread/queue/add", b"{}")
    assert isinstance(refused, MethodNotFoundError)
    assert refused.message == f"thread/queue/add needs codex 0.149.0 or newer; the runtime is codex {OLDEST}"
    option = old.refusal("turn/start", b'{"threadId":"t","input":[],"serviceTierForTurn":"fast"}')
    assert isinstance(option, InvalidInputError)
    words = f"option 'service_tier_for_turn' needs codex 0.153.4 or newer; the runtime is codex {OLDEST}"
    assert str(option).startswith(f"turn/start: {words}, which would ignore it")
    gone = new.refusal("thread/rollback", None)
    assert isinstance(gone, MethodNotFoundError) and "is not in codex 0.156.0 and newer" in gone.message
    assert old.refusal("thread/rollback", None) is None


def test_what_it_has_is_not_refused() -> None:
    old = runtime(OLDEST)
    for method, params in (
        ("turn/start", b'{"threadId":"t","input":[],"effort":"low"}'),
        ("turn/start", b'{"serviceTierForTurn":null}'),
        ("thread/queue/invented", b"{}"),
        ("thread/list", None),
    ):
        assert old.refusal(method, params) is None
    made_for = runtime(RUNTIME_VERSION)
    assert all(lack.method or lack.fields for lack in made_for.lacks.values())
    assert made_for.refusal("turn/start", b'{"serviceTierForTurn":"fast"}') is None


def test_other_errors_are_left_alone() -> None:
    assert runtime("0.171.0").explained("model/list", MethodNotFoundError(-32601, "no")) is None
    assert runtime("0.171.0").explained("model/list", InvalidInputError("no")) is None
    found = runtime("0.171.0").explained("model/list", AppServerError("no"))
    assert str(found) == f"no; the runtime is codex 0.171.0, this SDK was made for {RUNTIME_VERSION}"


OLD = f"the runtime is codex {OLDEST}"


def test_the_clients_refuse_it_before_anything_is_sent() -> None:
    """The null app-server would answer each of them."""
    with Codex(null_app_server(version=OLDEST)) as codex:
        thread = codex.thread_start()
        with pytest.raises(MethodNotFoundError, match=OLD):
            codex.client.request("thread/queue/list", {"thread_id": thread.id})
        with pytest.raises(InvalidInputError, match=OLD):
            thread.run("hello", disabled_plugin_ids=["a"])
        assert thread.run("hello", timeout=20).status == "completed"

    async def ask() -> None:
        async with AsyncCodex(null_app_server(version=OLDEST)) as codex:
            with pytest.raises(InvalidInputError, match=r"'project_id' needs codex 0\.149\.0"):
                await codex.thread_start(project_id="p")
            with pytest.raises(MethodNotFoundError, match=OLD):
                await codex.client.request("modelProvider/list")

    asyncio.run(ask())
