"""`codex_app_server.compat.openai_codex` and docs/compatibility.md against the published SDK, as its wheel has it."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import importlib
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import openai_codex
import openai_codex.types
import pydantic
import pytest
from openai_codex import errors as published_errors
from openai_codex.generated import notification_registry
from openai_codex.generated import v2_all as published_models
from samples import Samples, Schema

from codex_app_server import InvalidInputError
from codex_app_server import __all__ as ours
from codex_app_server.compat import openai_codex as compat
from codex_app_server.compat.openai_codex import _shapes
from codex_app_server.compat.openai_codex import errors as our_errors
from codex_app_server.generated import models
from codex_app_server.generated.options import OPTION_NAMES
from codex_app_server.generated.routing import REQUESTS
from codex_app_server.presets import PRESETS
from codex_app_server.presets import Sandbox as our_sandbox

PAGE = (Path(__file__).parents[2] / "docs/compatibility.md").read_text(encoding="utf-8")
MODULES = ("api", "async_client", "client", "errors", "generated.v2_all", "models", "retry", "types")
# Of the SDK of which this one keeps the interface, as it was when turns came to be routed by their ids. Types of the
# protocol, which its root package has as well, are left out.
FIRST = {
    "": "AppServerClient AppServerConfig AppServerError AppServerRpcError AsyncAppServerClient AsyncCodex AsyncThread "
    "AsyncTurnHandle Codex ImageInput Input InputItem InternalRpcError InvalidParamsError InvalidRequestError "
    "JsonRpcError LocalImageInput MentionInput MethodNotFoundError ParseError RetryLimitExceededError RunResult "
    "ServerBusyError SkillInput TextInput Thread TransportClosedError TurnHandle __version__ is_retryable_error "
    "retry_on_overload",
    "in a submodule": "Notification RunInput UnknownNotification",
    "of its client": "stream_text wait_for_turn_completed",
}


def own_names(module: ModuleType) -> list[str]:
    """The public names that a published module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and not isinstance(value, typing.TypeVar | typing.ParamSpec)
        and "[" not in name
    ]


def members(kind: Any) -> dict[str, Any]:
    return {name: member.value for name, member in kind.__members__.items()}


def renamed() -> dict[str, str]:
    """Fields and members of other names, as the page lists them."""
    entry = PAGE.split("- **Other names in wire types**")[1].partition("\n\n")[0]
    return {old.rpartition(".")[2]: new for old, new in re.findall(r"`([\w.]+)` is\s+`(\w+)`", entry)}


# Names.


def test_the_names_of_the_package_are_those_of_the_published_one() -> None:
    assert sorted(compat.__all__) == sorted(openai_codex.__all__)
    assert [name for name in compat.__all__ if getattr(compat, name) is None] == []
    assert compat.__version__ == openai_codex.__version__
    assert set(compat.__all__) <= set(dir(compat))


@pytest.mark.parametrize("name", MODULES)
def test_each_public_name_of_a_module_is_there_or_refused_with_a_remedy(name: str) -> None:
    published = importlib.import_module(f"openai_codex.{name}")
    here = importlib.import_module(f"{compat.__name__}.{name}")
    names = {*own_names(published), *getattr(published, "__all__", ())}
    assert names or name == "api"
    refused = {}
    for each in names:
        try:
            assert getattr(here, each) is not None
        except ImportError as error:
            refused[each] = str(error)
    assert [
        each for each, why in refused.items() if not why.startswith(f"{each} of openai_codex.{name} is not in ")
    ] == []
    assert [each for each, why in refused.items() if not re.search(r": codex_app_server\.\w", why)] == []
    assert set(refused) <= {each for each in refused if name == "generated.v2_all" or f"`{each}`" in PAGE}


@pytest.mark.parametrize("name", ["types", "api", "models", "errors"])
def test_what_a_module_exports_is_imported_from_it(name: str) -> None:
    published = importlib.import_module(f"openai_codex.{name}")
    names = getattr(published, "__all__", None) or own_names(published)
    exec(f"from {compat.__name__}.{name} import {', '.join(names)}", {})


def test_a_name_that_is_left_out_is_refused_when_it_is_imported() -> None:
    for statement in (
        "from codex_app_server.compat.openai_codex.client import CodexClient",
        "import codex_app_server.compat.openai_codex as sdk; sdk.client.CodexClient",
    ):
        with pytest.raises(
            ImportError, match=r"CodexClient of openai_codex\.client .*codex_app_server\.AppServerClient"
        ):
            exec(statement, {})
    with pytest.raises(AttributeError, match="has no attribute 'Kodex'"):
        compat.Kodex  # noqa: B018
    assert not hasattr(compat.types, "Kodex")


def test_it_can_stand_in_for_the_published_package() -> None:
    program = """
import sys
from codex_app_server.compat import openai_codex as compat
sys.modules["openai_codex"] = compat
from openai_codex import Codex, TextInput
from openai_codex.api import Thread
from openai_codex.client import CodexConfig
from openai_codex.models import Notification
from openai_codex.types import ReasoningSummary, TurnStatus
import openai_codex.errors
assert Codex is compat.Codex and Thread is compat.Thread and Notification is compat.types.Notification
assert openai_codex.errors.CodexError is compat.CodexError and isinstance(CodexConfig(), compat.client.AppServerConfig)
assert TurnStatus is compat.types.TurnStatus and "site-packages" not in openai_codex.errors.__file__
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=40)


# Keywords and values.


SIGNATURES = [
    *(
        (kind, name)
        for kind in ("Codex", "AsyncCodex", "Thread", "AsyncThread", "TurnHandle", "AsyncTurnHandle")
        for name, method in vars(getattr(openai_codex, kind)).items()
        if inspect.isfunction(method) and not name.startswith("_")
    ),
    *(
        (kind, name)
        for kind in (each for each in openai_codex.__all__ if each.endswith("LoginHandle"))
        for name in ("wait", "cancel")
    ),
    ("Codex", "__init__"),
    ("AsyncCodex", "__init__"),
    ("CodexConfig", "__init__"),
    ("", "retry_on_overload"),
    ("", "is_retryable_error"),
]


@pytest.mark.parametrize(("kind", "name"), SIGNATURES)
def test_a_call_takes_the_published_keywords(kind: str, name: str) -> None:
    def parameters(root: Any) -> list[tuple[str, Any, Any]]:
        call = getattr(getattr(root, kind) if kind else root, name)
        found = inspect.signature(call).parameters.values()
        return [(each.name, each.kind, getattr(each.default, "value", each.default)) for each in found]

    published, here = parameters(openai_codex), parameters(compat)
    assert here[: len(published)] == published
    # What is there besides can be left out.
    assert [each for each in here[len(published) :] if each[2] is inspect.Parameter.empty] == []
    both = [asyncio.iscoroutinefunction(getattr(getattr(root, kind), name)) for root in (openai_codex, compat) if kind]
    assert len(set(both)) <= 1


def test_a_configuration_may_be_given_by_position(tmp_path: Path) -> None:
    given = ("codex", None, ("model=m",), str(tmp_path), {"A": "b"}, "name", "title", "1", False)
    made, published = compat.CodexConfig(*given), openai_codex.CodexConfig(*given)
    for field in dataclasses.fields(openai_codex.CodexConfig):
        assert getattr(made, field.name) == getattr(published, field.name)
    assert compat.CodexConfig().client_name == openai_codex.CodexConfig().client_name


def test_inputs_and_results_have_the_published_fields() -> None:
    for name in ("TextInput", "ImageInput", "LocalImageInput", "SkillInput", "MentionInput", "ExternalMessage"):
        fields = [[field.name for field in dataclasses.fields(getattr(root, name))] for root in (openai_codex, compat)]
        assert fields[0] == fields[1]
    fields = [{field.name for field in dataclasses.fields(root.TurnResult)} for root in (openai_codex, compat)]
    assert fields[0] <= fields[1]


def test_enumerations_have_the_published_members() -> None:
    for name in ("Sandbox", "ApprovalMode"):
        assert members(getattr(compat, name)) == members(getattr(openai_codex, name))
    names = renamed()
    compared = 0
    for name in own_names(published_models):
        published = getattr(published_models, name)
        here = getattr(compat.generated.v2_all, name) if name in models.MODULES or name == "ReasoningEffort" else None
        if isinstance(published, enum.EnumMeta) and isinstance(here, enum.EnumMeta):
            compared += 1
            assert {names.get(each, each): value for each, value in members(published).items()} == members(here), name
    assert compared > 100


@pytest.mark.parametrize("name", ["Sandbox", "ApprovalMode"])
def test_only_members_are_taken(name: str) -> None:
    from codex_app_server.compat.openai_codex._options import to_options

    keyword = {"Sandbox": "sandbox", "ApprovalMode": "approval_mode"}[name]
    with pytest.raises(InvalidInputError, match=f"{keyword} is 'read-only'; expected one of {name}\\."):
        to_options({keyword: "read-only"})
    assert issubclass(InvalidInputError, ValueError)


OPTIONS = {
    "thread_start": "ThreadStartOptions",
    "thread_resume": "ThreadResumeOptions",
    "thread_fork": "ThreadForkOptions",
    "thread_list": "ThreadListOptions",
    "run": "TurnStartOptions",
    "turn": "TurnStartOptions",
}


def test_the_page_names_the_keywords_and_types_that_codex_app_server_itself_calls_otherwise() -> None:
    entry = PAGE.split("- A few option names differ")[1]
    listed = {theirs: own for own, theirs in re.findall(r"`(\w+)` for\s+`(\w+)`", entry)}
    differing = set()
    for name, options in OPTIONS.items():
        method = getattr(openai_codex.Thread if name in ("run", "turn") else openai_codex.Codex, name)
        keywords = {each for each in inspect.signature(method).parameters if each not in ("self", "input", "thread_id")}
        known = OPTION_NAMES[options] | PRESETS.get(options, frozenset())
        differing |= keywords - known
        assert {listed[each] for each in keywords - known} <= known
    assert differing == set(listed)
    plain = {"JsonObject", "Notification", "ReasoningEffort", "ThreadSource"}
    assert set(openai_codex.types.__all__) - set(models.MODULES) == plain
    assert "Efforts and thread sources are strings" in PAGE
    assert f'"{our_sandbox.full_access.value}"' in PAGE and f'"{openai_codex.Sandbox.full_access.value}"' in PAGE


# Wire types.


def test_objects_have_the_published_fields() -> None:
    names = renamed()
    missing = [
        f"{name}.{field}"
        for name in own_names(published_models)
        for kind in [getattr(published_models, name)]
        if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel) and name in models.MODULES
        for here in [getattr(models, name)]
        if isinstance(here, type) and issubclass(here, pydantic.BaseModel)
        for field in kind.model_fields
        if names.get(field, field) not in here.model_fields
    ]
    assert missing == []


def different(published: Any, here: Any, where: str, names: dict[str, str]) -> list[str]:
    """List where the attributes of a published object have no equal among those of ours."""
    if isinstance(published, pydantic.RootModel):
        if not hasattr(here, "root"):
            return [f"{where} has no root"]
        return different(published.root, here.root, f"{where}.root", names)
    if isinstance(published, pydantic.BaseModel):
        found = []
        for field in type(published).model_fields:
            name = names.get(field, field)
            if not hasattr(here, name):
                found.append(f"{where}.{field}")
                continue
            found += different(getattr(published, field), getattr(here, name), f"{where}.{field}", names)
        return found
    if isinstance(published, enum.Enum):
        return [] if here.value == published.value else [f"{where} is {here!r}, not {published!r}"]
    if isinstance(published, list):
        return [
            each
            for place, (left, right) in enumerate(zip(published, here, strict=True))
            for each in different(left, right, f"{where}[{place}]", names)
        ]
    if isinstance(published, dict):
        if isinstance(here, pydantic.BaseModel):
            here = here.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return [each for key in published for each in different(published[key], here[key], f"{where}[{key!r}]", names)]
    return [] if here == published else [f"{where} is {here!r}, not {published!r}"]


def published_notifications() -> dict[str, type[pydantic.BaseModel]]:
    return dict(notification_registry.NOTIFICATION_MODELS)


ANSWERS = {
    "account/login/cancel": "CancelLoginAccountResponse",
    "account/read": "GetAccountResponse",
    "model/list": "ModelListResponse",
    "thread/archive": "ThreadArchiveResponse",
    "thread/compact/start": "ThreadCompactStartResponse",
    "thread/list": "ThreadListResponse",
    "thread/name/set": "ThreadSetNameResponse",
    "thread/read": "ThreadReadResponse",
    "turn/interrupt": "TurnInterruptResponse",
    "turn/steer": "TurnSteerResponse",
}


@pytest.mark.parametrize("full", [False, True])
def test_what_is_received_is_read_as_with_the_published_types(definitions: Schema, full: bool) -> None:
    samples = Samples(definitions, full=full)
    kinds = {
        **{kind.__name__: kind for kind in published_notifications().values()},
        **{name: getattr(published_models, name) for name in ANSWERS.values()},
        **{name: getattr(published_models, name) for name in ("ThreadItem", "Turn", "Account", "CodexErrorInfo")},
    }
    assert {REQUESTS[method].result for method in ANSWERS} == set(ANSWERS.values())
    names, compared, found = renamed(), 0, []
    for name, kind in kinds.items():
        if name not in definitions:
            assert name == "RawResponseItemCompletedNotification"
            continue
        for value in samples.of(definitions[name]):
            try:
                published = kind.model_validate(value)
            except pydantic.ValidationError:
                # A sample may have what the published types are too old or too strict for.
                continue
            here = _shapes.shaped(models.adapter(name).validate_python(value))
            compared += 1
            found += different(published, here, name, names)
    assert found == []
    assert compared > 100


def test_a_union_is_a_class() -> None:
    types = compat.types
    item = types.ThreadItem.model_validate({"type": "agentMessage", "id": "1", "text": "x"})
    assert types.ThreadItem is compat.generated.v2_all.ThreadItem
    assert item.root is item and item.root.type == "agentMessage"
    assert isinstance(item, types.ThreadItem) and not isinstance("item", types.ThreadItem)
    assert isinstance(item, compat.generated.v2_all.AgentMessageThreadItem)
    assert not isinstance(item, types.SandboxPolicy)
    policy = types.SandboxPolicy(root=models.ReadOnlySandboxPolicy())
    assert policy.root.type == "readOnly" and types.SandboxPolicy.model_validate_json('{"type": "readOnly"}') == policy
    assert types.ReasoningSummary.model_validate("concise").root == "concise"
    assert types.AskForApproval.model_validate("never").root.value == "never"
    assert types.ThreadListCwdFilter(root="/x").root == "/x" and types.ThreadListCwdFilter(["/x"]).root == ["/x"]
    with pytest.raises(pydantic.ValidationError):
        types.SandboxPolicy.model_validate({"type": 1})

    class Stored(pydantic.BaseModel):
        items: list[types.ThreadItem]
        summary: types.ReasoningSummary | None = None

    stored = Stored.model_validate({"items": [{"type": "plan", "id": "1", "text": "x"}], "summary": "auto"})
    assert stored.items[0].root.text == "x" and stored.summary.root.value == "auto"
    assert Stored.model_validate_json(stored.model_dump_json()).items == stored.items


def test_a_shaped_object_is_dumped_as_before() -> None:
    value = {"type": "imageView", "id": "1", "path": "/x"}
    item = _shapes.shaped(models.adapter("ThreadItem").validate_python(value))
    assert item.path.root == "/x" and item.path == "/x" and isinstance(item.path, str)
    assert item.model_dump(mode="json", by_alias=True, exclude_unset=True) == value


def test_server_info_is_read_from_the_user_agent() -> None:
    from openai_codex._initialize_metadata import validate_initialize_metadata
    from openai_codex.models import InitializeResponse

    from codex_app_server.compat.openai_codex._received import of_metadata

    wire = {
        "userAgent": "codex_x/0.163.0 (Linux; x)",
        "platformFamily": "unix",
        "platformOs": "linux",
        "codexHome": "/x",
    }
    published = validate_initialize_metadata(InitializeResponse.model_validate(wire))
    made = of_metadata(models.InitializeResponse.model_validate(wire))
    assert made.model_dump(exclude={"codexHome"}) == published.model_dump()
    assert made.serverInfo is not None and made.serverInfo.name == "codex_x"


# Errors.


CODES = (-32700, -32600, -32601, -32602, -32603, -32000, -32001, -32050, -32099, -32100, 1)
MESSAGES = ("no", "retry limit reached", "Too many failed attempts")
DATA: tuple[Any, ...] = (
    None,
    "server_overloaded",
    {"codexErrorInfo": "server_overloaded"},
    {"codexErrorInfo": {"reason": "server_overloaded"}},
    {"error": [{"codex_error_info": "server_overloaded"}]},
    {"codexErrorInfo": "badRequest"},
)
SAME_CLASS = {"CodexError": "AppServerError", "CodexRpcError": "AppServerRpcError"}


@pytest.mark.parametrize("code", CODES)
def test_an_error_answer_is_caught_by_the_same_clauses(code: int) -> None:
    for message in MESSAGES:
        for data in DATA:
            published = published_errors.map_jsonrpc_error(code, message, data)
            here = our_errors.map_jsonrpc_error(code, message, data)
            assert isinstance(here, getattr(compat, type(published).__name__)), (code, message, data)
            assert (here.code, here.message, here.data) == (code, message, data)
            # -32001, what the runtime answers when it is overloaded, is retryable here alone.
            retryable = openai_codex.is_retryable_error(published) or code == -32001
            assert compat.is_retryable_error(here) is retryable, (code, message, data)


def test_a_retry_ends_as_the_published_one_does() -> None:
    for data, message in (("server_overloaded", "busy"), ("server_overloaded", "retry limit"), (None, "no")):
        calls = {}
        for root, errors in ((openai_codex, published_errors), (compat, our_errors)):
            count = 0

            def call() -> None:
                nonlocal count
                count += 1
                raise errors.map_jsonrpc_error(-32000, message, data)  # noqa: B023

            with pytest.raises(root.CodexError):
                root.retry_on_overload(call, max_attempts=3, initial_delay_s=0.001, max_delay_s=0.001)
            calls[root] = count
        assert calls[openai_codex] == calls[compat]


# The page.


def table() -> list[tuple[list[str], str, str]]:
    """The rows of the table of names: names, and what they are in the first and in the published SDK."""
    lines = PAGE.split("| name | first | 0.163.0 | here |\n|---|---|---|---|\n")[1].split("\n\n")[0].splitlines()
    rows = []
    for line in lines:
        names, first, published, _ = (cell.strip() for cell in line.strip("|").split("|"))
        rows.append((re.findall(r"`(\w+)`", names), first, published))
    return rows


def test_the_table_has_each_name_of_all_three_once() -> None:
    names = [name for row in table() for name in row[0]]
    assert len(names) == len(set(names))
    others = {name for _, first, published in table() for name in re.findall(r"`(\w+)`", first + published)}
    assert {*ours} == {*names}
    assert {name for of_place in FIRST.values() for name in of_place.split()} <= {*names, *others}
    assert set(openai_codex.__all__) <= {*names, *others}


@pytest.mark.parametrize("row", table(), ids=lambda row: ",".join(row[0]))
def test_the_table_says_where_the_published_sdk_has_a_name(row: tuple[list[str], str, str]) -> None:
    names, first, published = row
    match published.partition(" ")[0]:
        case "=":
            assert set(names) <= set(openai_codex.__all__)
        case "-":
            assert [
                name for name in names if name in openai_codex.__all__ or hasattr(openai_codex.client.CodexClient, name)
            ] == []
        case "in":
            assert [name for name in names if name in openai_codex.__all__] == []
            home = re.findall(r"`(\w+)`", published)[0]
            assert all(hasattr(importlib.import_module(f"openai_codex.{home}"), name) for name in names)
        case "of":
            assert all(hasattr(openai_codex.client.CodexClient, name) for name in names)
        case _:
            others = re.findall(r"`(\w+)`", published)
            for other in others:
                assert other not in names and (
                    other in openai_codex.__all__
                    or hasattr(openai_codex.client, other)
                    or hasattr(openai_codex.async_client, other)
                )
            assert [name for name in names if name in openai_codex.__all__] == []
    assert first.partition(" ")[0] in ("=", "-", "in", "of") or re.match(r"`\w+`", first)
    place = {"=": "", "in": "in a submodule", "of": "of its client"}.get(first.partition(" ")[0])
    if place is not None:
        assert set(names) <= set(FIRST[place].split())
    elif first != "-":
        assert set(re.findall(r"`(\w+)`", first)) <= set(FIRST[""].split())
    else:
        assert [name for name in names for known in FIRST.values() if name in known.split()] == []
