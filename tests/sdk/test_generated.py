"""The generated package against the schema of the installed runtime, and against what it promises its users."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from maintainer import program
from pydantic import ValidationError
from samples import BUNDLE, Samples, Schema

from codex_app_server.generated import models, options, routing

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "update_sdk_artifacts.py"
GENERATED = ROOT / "src" / "codex_app_server" / "generated"
# All types are generated in some 20 s of CPU, beside other tests.
LIMIT_S = 140.0
pytestmark = pytest.mark.timeout(2 * LIMIT_S + 20.0)


@pytest.fixture
def changed(dumps: tuple[Path, Path], tmp_path: Path) -> Iterator[tuple[tuple[Path, Path], Schema, Schema]]:
    """A copy of the dumps with both bundles opened for changes; `save(changed)` writes them back."""
    copies = tmp_path / "stable", tmp_path / "experimental"
    for source, target in zip(dumps, copies, strict=True):
        target.mkdir()
        shutil.copyfile(source / BUNDLE, target / BUNDLE)
    stable, experimental = (json.loads((copy / BUNDLE).read_text(encoding="utf-8")) for copy in copies)
    return copies, stable, experimental


def save(changed: tuple[tuple[Path, Path], Schema, Schema]) -> tuple[Path, Path]:
    for directory, bundle in zip(changed[0], changed[1:], strict=True):
        (directory / BUNDLE).write_text(json.dumps(bundle), encoding="utf-8")
    return changed[0]


@pytest.fixture(scope="session")
def scripts() -> Iterator[ModuleType]:
    """The maintainer script as a module."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import update_sdk_artifacts

        yield update_sdk_artifacts
    finally:
        sys.path.remove(str(SCRIPT.parent))


def generate(out: Path, schemas: tuple[Path, Path]) -> subprocess.CompletedProcess[str]:
    flags = ["--schema-dir", str(schemas[0]), "--experimental-schema-dir", str(schemas[1]), "--out", str(out)]
    command = [sys.executable, str(SCRIPT), "generate-types", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.mark.parametrize("where", ["here", "path"])
def test_a_codex_by_its_bare_name(where: str, tmp_path: Path, dumps: tuple[Path, Path]) -> None:
    """The file of that name in the current directory, and without one the program on PATH."""
    here, path = tmp_path / "here", tmp_path / "path"
    for directory in (here, path):
        directory.mkdir()
        if where in (directory.name, "here"):
            program(directory / "my-codex", f"#!/bin/sh\necho asked {directory.name}; exit 3\n")
    flags = ["--schema-dir", str(dumps[0]), "--experimental-schema-dir", str(dumps[1]), "--out", str(tmp_path / "out")]
    command = [sys.executable, str(SCRIPT), "generate-types", "--codex-bin", "my-codex", *flags]
    environ = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=here, env=environ)
    assert done.returncode == 1
    assert f"gave 'asked {where}'" in done.stderr
    command[command.index("my-codex")] = "no-codex"
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=here, env=environ)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: no-codex cannot be run: ")


def files(package: Path) -> dict[str, bytes]:
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in sorted(package.rglob("*.py"))}


def run(code: str, *paths: Path) -> str:
    """Runs code in a fresh interpreter and returns what it prints."""
    prelude = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- the generator


@pytest.mark.generate
def test_the_committed_files_are_what_the_script_makes(dumps: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "generated"
    (out / "models").mkdir(parents=True)
    (out / "models" / "_left_over.py").write_text("raise RuntimeError\n")
    done = generate(out, dumps)
    assert done.returncode == 0, done.stderr
    assert files(out) == files(GENERATED)


@pytest.mark.generate
def test_a_new_method_appears_in_routing_and_models(
    changed: tuple[tuple[Path, Path], Schema, Schema], tmp_path: Path
) -> None:
    text = {"type": "string"}
    for bundle in changed[1:]:
        for method, name, keys in (
            ("widget/polish", "WidgetPolish", ["shadeName"]),
            ("thread/widget/polish", "ThreadWidgetPolish", ["threadId"]),
        ):
            params = {"type": "object", "properties": dict.fromkeys(keys, text), "required": keys}
            bundle["definitions"]["v2"][f"{name}Params"] = params
            bundle["definitions"]["v2"][f"{name}Response"] = {"type": "object", "properties": {"gloss": text}}
            call = {"method": {"enum": [method]}, "params": {"$ref": f"#/definitions/v2/{name}Params"}}
            bundle["definitions"]["ClientRequest"]["oneOf"].append({"type": "object", "properties": call})
    done = generate(tmp_path / "grown", save(changed))
    assert done.returncode == 0, done.stderr
    printed = run(
        "from grown import models, routing\n"
        "import json\n"
        "rows = {m: r._asdict() for m, r in routing.REQUESTS.items() if 'widget' in m}\n"
        "made = models.WidgetPolishParams(shade_name='red').model_dump_json(by_alias=True)\n"
        "print(json.dumps([rows, made]))",
        tmp_path,
    )
    rows, made = json.loads(printed)
    assert made == '{"shadeName":"red"}'
    assert rows["widget/polish"] == {
        "params": "WidgetPolishParams",
        "result": "WidgetPolishResponse",
        "scope": "unassigned",
        "thread": None,
        "turn": None,
        "result_thread": False,
        "result_turn": False,
        "experimental": False,
    }
    assert (rows["thread/widget/polish"]["scope"], rows["thread/widget/polish"]["thread"]) == ("owner", "threadId")


@pytest.mark.generate
def test_integers_that_are_literals(changed: tuple[tuple[Path, Path], Schema, Schema], tmp_path: Path) -> None:
    """One that tells branches apart is a constant; another is any integer, because a newer runtime may send more."""

    def branch(kind: Any, number: int) -> Schema:
        literal = "string" if isinstance(kind, str) else "integer"
        properties = {"kind": {"type": literal, "enum": [kind]}, "version": {"type": "integer", "enum": [number]}}
        return {"type": "object", "properties": properties, "required": ["kind", "version"]}

    for bundle in changed[1:]:
        made = bundle["definitions"]["v2"]
        made["ByText"] = {"oneOf": [branch("hide", 1), branch("show", 1)]}
        made["ByNumber"] = {"oneOf": [branch(0, 1), branch(2, 1)]}
        made["Level"] = {"type": "integer", "enum": [1, 2]}
        fields = {"text": {"$ref": "#/definitions/v2/ByText"}, "number": {"$ref": "#/definitions/v2/ByNumber"}}
        fields |= {"level": {"$ref": "#/definitions/v2/Level"}, "inner": {"type": "integer", "enum": [3, 4]}}
        made["ModelListResponse"]["properties"] |= fields
    done = generate(tmp_path / "grown", save(changed))
    assert done.returncode == 0, done.stderr
    printed = run(
        "from grown import models as m\n"
        "def made(**fields): return m.ModelListResponse.model_validate({'data': [], **fields})\n"
        "text = [made(text={'kind': k, 'version': v}).text for k, v in (('show', 1), ('hide', 7), ('new', 1))]\n"
        "number = [made(number={'kind': k, 'version': 1}).number for k in (0, 2, 9)]\n"
        "print([type(each).__name__ for each in (*text, *number)], made(level=9, inner=8).level)",
        tmp_path,
    )
    known = ["ShowByText", "HideByText", "UnrecognizedByText", "Kind0ByNumber", "Kind2ByNumber", "UnrecognizedByNumber"]
    assert printed == f"{known} 9"


@pytest.mark.generate
def test_params_of_two_methods_name_none_of_them(
    changed: tuple[tuple[Path, Path], Schema, Schema], scripts: ModuleType
) -> None:
    for bundle in changed[1:]:
        shared = {"method": {"enum": ["thread/peek"]}, "params": {"$ref": "#/definitions/v2/ThreadReadParams"}}
        bundle["definitions"]["v2"]["ThreadPeekResponse"] = {"type": "object"}
        bundle["definitions"]["ClientRequest"]["oneOf"].append({"type": "object", "properties": shared})
    from _routing import methods_of_params

    methods = methods_of_params(scripts.load("0", *save(changed)))
    assert routing.METHODS.keys() - methods.keys() == {"ThreadReadParams"}
    assert methods["ApiKeyLoginAccountParams"] == methods["UnrecognizedLoginAccountParams"] == "account/login/start"


@pytest.mark.generate
def test_a_result_that_cannot_be_found_is_an_error_that_names_it(
    changed: tuple[tuple[Path, Path], Schema, Schema], tmp_path: Path
) -> None:
    for bundle in changed[1:]:
        call = {"method": {"enum": ["widget/polish"]}}
        bundle["definitions"]["ClientRequest"]["oneOf"].append({"type": "object", "properties": call})
    done = generate(tmp_path / "out", save(changed))
    assert done.returncode == 1
    assert "widget/polish" in done.stderr and "WidgetPolishResponse" in done.stderr and "results.toml" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.generate
def test_two_definitions_that_want_one_name_are_an_error(
    changed: tuple[tuple[Path, Path], Schema, Schema], scripts: ModuleType
) -> None:
    for bundle in changed[1:]:
        bundle["definitions"]["v2"]["TextUserInput"] = {"type": "object", "properties": {"b": {"type": "string"}}}
    with pytest.raises(scripts.SchemaError, match=r"TextUserInput comes from .* and from .*UserInput"):
        scripts.load("0", *save(changed))


@pytest.mark.generate
def test_a_scope_for_a_method_that_is_gone_is_an_error(dumps: tuple[Path, Path], scripts: ModuleType) -> None:
    with pytest.raises(scripts.SchemaError, match="thread/gone"):
        scripts.emit_routing(scripts.load("0", *dumps), {"thread/gone": "any"})


@pytest.mark.generate
@pytest.mark.parametrize(
    ("table", "message"),
    [('anywhere = ["a/b"]', "anywhere"), ('any = ["a/b"]\nall = ["a/b"]', "a/b is in any and in all")],
)
def test_a_wrong_scopes_table_is_an_error(table: str, message: str, tmp_path: Path, scripts: ModuleType) -> None:
    path = tmp_path / "scopes.toml"
    path.write_text(table)
    with pytest.raises(scripts.SchemaError, match=message):
        scripts.read_scopes(path)


def test_no_wording_of_the_schema_is_carried_over(definitions: Schema) -> None:
    written = "".join(path.read_text(encoding="utf-8") for path in GENERATED.rglob("*.py"))

    def sentences(schema: Any) -> Iterator[str]:
        if isinstance(schema, dict):
            if isinstance(schema.get("description"), str):
                yield from (line for line in schema["description"].splitlines() if len(line) > 30)
            for value in schema.values():
                yield from sentences(value)
        elif isinstance(schema, list):
            for value in schema:
                yield from sentences(value)

    found = set(sentences(definitions))
    assert len(found) > 100
    assert [line for line in found if line in written] == []


# --- routing


def test_every_method_of_the_runtime_has_a_scope() -> None:
    assert [method for method, request in routing.REQUESTS.items() if request.scope == "unassigned"] == []


def test_every_method_that_a_pool_refuses_has_a_reason() -> None:
    refused = {method for method, request in routing.REQUESTS.items() if request.scope == "refused"}
    assert routing.REFUSED.keys() == refused
    page = (GENERATED.parents[2] / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    listed = page.partition("## Refused through a pool")[2]
    assert all(f"`{method}`" in listed and reason in listed for method, reason in routing.REFUSED.items())


def test_scopes_follow_the_rule_and_the_table() -> None:
    scopes = {method: request.scope for method, request in routing.REQUESTS.items()}
    assert {scopes[m] for m in ("thread/resume", "turn/start", "turn/interrupt", "thread/read")} == {"owner"}
    assert scopes["thread/start"] == "any"
    assert scopes["thread/unsubscribe"] == scopes["initialize"] == scopes["command/exec"] == "session"
    assert scopes["thread/list"] == scopes["thread/loaded/list"] == "merged"
    assert scopes["config/value/write"] == "all"
    assert scopes["account/login/start"] == "account"
    assert scopes["windowsSandbox/setupStart"] == "refused"
    assert all(request.thread for request in routing.REQUESTS.values() if request.scope == "owner")


def test_every_method_of_the_schema_is_there(dumps: tuple[Path, Path], definitions: Schema) -> None:
    stable = json.loads((dumps[0] / BUNDLE).read_text(encoding="utf-8"))["definitions"]
    for kind, table in (
        ("ClientRequest", routing.REQUESTS),
        ("ServerNotification", routing.NOTIFICATIONS),
        ("ServerRequest", routing.SERVER_REQUESTS),
    ):
        listed = {branch["properties"]["method"]["enum"][0] for branch in definitions[kind]["oneOf"]}
        assert table.keys() == listed
        known = {branch["properties"]["method"]["enum"][0] for branch in stable[kind]["oneOf"]}
        if kind != "ServerRequest":
            assert {method for method, row in table.items() if not row.experimental} == known  # type: ignore[union-attr]


def test_ids_are_where_the_schema_has_them(definitions: Schema) -> None:
    direct = {
        branch["properties"]["method"]["enum"][0]
        for branch in definitions["ServerNotification"]["oneOf"]
        if "turnId" in definitions[branch["properties"]["params"]["$ref"].rsplit("/", 1)[-1]].get("properties", {})
    }
    assert {method for method, row in routing.NOTIFICATIONS.items() if row.turn == "turnId"} == direct
    assert len(direct) >= 28
    assert {m for m, row in routing.NOTIFICATIONS.items() if row.turn == "turn.id"} == {
        "turn/started",
        "turn/completed",
    }
    assert routing.NOTIFICATIONS["thread/started"].thread == "thread.id"
    assert routing.REQUESTS["turn/steer"].turn == "expectedTurnId"
    assert routing.SERVER_REQUESTS["execCommandApproval"].thread == "conversationId"
    elicitation = routing.SERVER_REQUESTS["mcpServer/elicitation/request"]
    assert (elicitation.thread, elicitation.turn) == ("threadId", "turnId")


def test_results_that_carry_ids_are_known() -> None:
    starts = {method for method, request in routing.REQUESTS.items() if request.result_turn}
    assert starts == {"turn/start", "review/start", "thread/queue/start"}
    assert {"thread/start", "thread/resume", "thread/fork"} <= {
        m for m, r in routing.REQUESTS.items() if r.result_thread
    }


def test_only_pieces_that_come_again_whole_are_droppable() -> None:
    droppable = {method for method, row in routing.NOTIFICATIONS.items() if row.droppable}
    assert {"item/agentMessage/delta", "item/reasoning/textDelta", "item/commandExecution/outputDelta"} <= droppable
    assert not droppable & {
        "turn/completed",
        "item/completed",
        "command/exec/outputDelta",
        "process/outputDelta",
        "error",
    }


def test_routing_and_options_do_without_pydantic() -> None:
    printed = run(
        "import codex_app_server.generated.routing, codex_app_server.generated.options\n"
        "print([name for name in sys.modules if name.startswith('pydantic') or '.models' in name])",
        ROOT / "src",
    )
    assert printed == "[]"


# --- models


def test_importing_models_loads_no_model() -> None:
    printed = run(
        "from codex_app_server.generated import models\n"
        "before = {name for name in sys.modules if '.models._' in name or name == 'pydantic.main'}\n"
        "models.Turn\n"
        "print(before, 'codex_app_server.generated.models._plugin' in sys.modules)",
        ROOT / "src",
    )
    assert printed == "set() False"


def test_a_first_turn_loads_one_module_in_which_all_is_built_from_built_parts() -> None:
    printed = run(
        "from codex_app_server import operations\n"
        "operations.load_types()\n"
        "from codex_app_server.generated import models\n"
        "print(sorted(name for name in sys.modules if '.models._' in name))\n"
        "print([name for name in models.FIRST_TURN if not getattr(models, name).__pydantic_complete__])",
        ROOT / "src",
    )
    package = "codex_app_server.generated.models"
    assert printed.splitlines() == [str([f"{package}._base", f"{package}._first_turn"]), "[]"]
    needed = {"ThreadStartParams", "ThreadStartResponse", "TurnStartParams", "TurnStartResponse", "InitializeResponse"}
    assert needed | {"Turn", "ItemCompletedNotification", "TurnCompletedNotification"} <= set(models.FIRST_TURN)
    places = {name: place for place, name in enumerate(models.FIRST_TURN)}
    assert places["AgentMessageThreadItem"] < places["Turn"] < places["TurnStartResponse"]


@pytest.mark.generate
def test_a_first_turn_that_is_not_in_the_schema_is_an_error_that_names_it(
    changed: tuple[tuple[Path, Path], Schema, Schema], scripts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import _models

    monkeypatch.setattr(_models, "FIRST_TURN_ROOTS", ("Turn", "TurnOfTheTide"))
    with pytest.raises(scripts.SchemaError, match="TurnOfTheTide"):
        scripts.render(scripts.load("0", *save(changed)), {})


def test_every_name_resolves_and_the_unknown_one_does_not() -> None:
    for name in models.MODULES:
        assert getattr(models, name) is not None
    assert set(models.MODULES) <= set(dir(models))
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        models.Nope  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("full", [False, True], ids=["small", "full"])
def test_every_definition_round_trips(definitions: Schema, full: bool) -> None:
    samples = Samples(definitions, full=full)
    tried = 0
    for name in sorted(models.MODULES.keys() & definitions.keys()):
        adapter = models.adapter(name)
        for sample in samples.of(definitions[name]):
            wire = json.dumps(sample)
            dumped = adapter.dump_json(adapter.validate_json(wire), by_alias=True, exclude_unset=True)
            assert json.loads(dumped) == sample, f"{name}: {wire}"
            tried += 1
    assert tried > 1000


def test_every_type_that_routing_names_is_a_definition(definitions: Schema) -> None:
    names = {name for row in routing.REQUESTS.values() for name in (row.params, row.result) if name is not None}
    names |= {row.payload for row in routing.NOTIFICATIONS.values()}
    names |= {name for row in routing.SERVER_REQUESTS.values() for name in (row.params, row.result)}
    assert names <= models.MODULES.keys() & definitions.keys()


def test_fields_are_snake_case_here_and_camel_case_on_the_wire() -> None:
    wire = {"threadId": "a", "turnId": "b", "itemId": "c", "delta": "d"}
    from_wire = models.AgentMessageDeltaNotification.model_validate(wire)
    from_python = models.AgentMessageDeltaNotification(thread_id="a", turn_id="b", item_id="c", delta="d")
    assert from_wire == from_python
    assert (from_wire.thread_id, from_wire.item_id) == ("a", "c")
    assert from_python.model_dump(by_alias=True) == wire
    assert models.TextUserInput(text="t", text_elements=[]).model_dump(by_alias=True)["text_elements"] == []


def test_a_null_is_kept_apart_from_what_is_not_set() -> None:
    params = models.TurnStartParams(thread_id="t", input=[], model=None)
    assert json.loads(params.model_dump_json(by_alias=True, exclude_unset=True)) == {
        "threadId": "t",
        "input": [],
        "model": None,
    }


def turn(**changes: Any) -> Schema:
    return {"id": "t", "items": [], "status": "completed", **changes}


def test_enums_compare_with_members_and_with_strings() -> None:
    status = models.Turn.model_validate(turn()).status
    assert status is models.TurnStatus.completed
    assert status == "completed"
    assert f"{status} {status!s}" == "completed completed"
    assert models.TurnStatus.in_progress.value == "inProgress"


def test_an_unknown_enum_value_is_kept() -> None:
    parsed = models.Turn.model_validate_json(json.dumps(turn(status="hibernating")))
    assert parsed.status == "hibernating"
    assert parsed.status != models.TurnStatus.completed
    assert parsed.status == "hibernating"
    assert isinstance(parsed.status, models.TurnStatus)
    assert json.loads(parsed.model_dump_json(by_alias=True, exclude_unset=True)) == turn(status="hibernating")
    assert "hibernating" not in models.TurnStatus.__members__
    with pytest.raises(ValidationError):
        models.Turn.model_validate(turn(status=5))


def test_an_unknown_item_is_kept_among_known_ones() -> None:
    items = [
        {"type": "hologram", "id": "h", "beamWidth": {"x": 1}},
        {"type": "agentMessage", "id": "m", "text": "hi"},
    ]
    parsed = models.Turn.model_validate(turn(items=items))
    unknown, known = parsed.items
    assert isinstance(unknown, models.UnrecognizedThreadItem)
    assert (unknown.type, unknown.id) == ("hologram", "h")  # type: ignore[attr-defined]
    assert isinstance(known, models.AgentMessageThreadItem)
    assert known.text == "hi"
    assert parsed.model_dump(by_alias=True, exclude_unset=True)["items"] == items


def test_a_mistake_in_a_known_branch_is_an_error_not_an_unknown_branch() -> None:
    with pytest.raises(ValidationError, match="'agentMessage' is a known branch"):
        models.Turn.model_validate(turn(items=[{"type": "agentMessage", "id": "m"}]))
    with pytest.raises(ValidationError, match="'granular' is a known branch"):
        models.adapter("AskForApproval").validate_python({"granular": {"rules": True}})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("serverOverloaded", "CodexErrorInfoValue"),
        ("somethingNew", "CodexErrorInfoValue"),
        ({"httpConnectionFailed": {"httpStatusCode": 502}}, "HttpConnectionFailedCodexErrorInfo"),
        ({"quantumFailure": {"spin": 1}}, "UnrecognizedCodexErrorInfo"),
    ],
)
def test_unions_of_strings_and_objects_are_open_on_both_sides(value: Any, expected: str) -> None:
    adapter = models.adapter("CodexErrorInfo")
    parsed = adapter.validate_python(value)
    assert type(parsed).__name__ == expected
    assert adapter.dump_python(parsed, mode="json", by_alias=True, exclude_unset=True) == value


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "boolean", "default": True}, "McpElicitationBooleanSchema"),
        ({"type": "string", "format": "email"}, "McpElicitationStringSchema"),
        ({"type": "integer", "minimum": 1}, "McpElicitationNumberSchema"),
        ({"type": "string", "enum": ["a"]}, "McpElicitationUntitledSingleSelectEnumSchema"),
        ({"type": "string", "enum": ["a"], "enumNames": ["A"]}, "McpElicitationLegacyTitledEnumSchema"),
        ({"type": "tensor", "rank": 3}, "UnrecognizedMcpElicitationPrimitiveSchema"),
    ],
)
def test_a_form_field_is_told_by_its_shape(schema: Schema, expected: str) -> None:
    adapter = models.adapter("McpElicitationPrimitiveSchema")
    parsed = adapter.validate_python(schema)
    assert type(parsed).__name__ == expected
    assert adapter.dump_python(parsed, mode="json", by_alias=True, exclude_unset=True) == schema


def test_a_branch_made_by_hand_sends_its_tag() -> None:
    params = models.TurnStartParams(
        thread_id="t",
        input=[models.TextUserInput(text="hi")],
        approval_policy=models.AskForApprovalValue.never,
        sandbox_policy=models.WorkspaceWriteSandboxPolicy(writable_roots=["/w"]),
    )
    assert json.loads(params.model_dump_json(by_alias=True, exclude_unset=True)) == {
        "threadId": "t",
        "input": [{"type": "text", "text": "hi"}],
        "approvalPolicy": "never",
        "sandboxPolicy": {"type": "workspaceWrite", "writableRoots": ["/w"]},
    }


# --- options


def test_options_are_the_params_that_are_not_passed_by_position(definitions: Schema) -> None:
    assert options.OPTION_NAMES["TurnSteerOptions"] == {
        "additional_context",
        "client_user_message_id",
        "responsesapi_client_metadata",
    }
    for name, names in options.OPTION_NAMES.items():
        assert getattr(options, name).__optional_keys__ == names
    model = models.ThreadStartParams
    assert options.OPTION_NAMES["ThreadStartOptions"] == model.model_fields.keys()
    assert {"threadId", "thread_id", "input"}.isdisjoint(options.OPTION_NAMES["TurnStartOptions"])
    assert (
        models.TurnStartParams.model_fields.keys() - {"thread_id", "input"} == options.OPTION_NAMES["TurnStartOptions"]
    )
