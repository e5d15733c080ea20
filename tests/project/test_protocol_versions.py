"""The tools for other versions of codex, on protocols that are written down here: history, report, decisions, pages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codex_app_server.generated import since

ROOT = Path(__file__).resolve().parents[2]
TEXT = {"type": "string"}


@pytest.fixture
def scripts() -> Iterator[SimpleNamespace]:
    """The modules of scripts/."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import _decisions
        import _history
        import _protocol_diff
        import _schema
        import _since

        yield SimpleNamespace(history=_history, decisions=_decisions, diff=_protocol_diff, schema=_schema, since=_since)
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def protocol(scripts: SimpleNamespace, version: str, **methods: dict[str, Any]) -> Any:
    """A protocol whose requests have these params, with `_` for `/`, and a result with a required text."""
    made = scripts.schema.Protocol(version)
    for name, properties in methods.items():
        method, stem = name.replace("_", "/"), "".join(part.title() for part in name.split("_"))
        made.requests[method] = f"{stem}Params"
        made.definitions[f"{stem}Params"] = {"type": "object", "properties": properties, "required": []}
        result = {"type": "object", "properties": {"text": TEXT}, "required": ["text"]}
        made.definitions[f"{stem}Response"] = result
    return made


def test_versions_come_in_any_order_and_are_read_as_they_were_written(scripts: SimpleNamespace, tmp_path: Path) -> None:
    history = scripts.history.History()
    history.add(protocol(scripts, "0.20.0", a_b={"one": TEXT, "two": TEXT}, c_d={}))
    history.add(protocol(scripts, "0.9.0", a_b={"one": TEXT}, old_one={}))
    history.add(protocol(scripts, "0.10.0", a_b={"one": TEXT, "two": TEXT}))
    path = tmp_path / "history.json"
    path.write_text(history.dump())
    read = scripts.history.read_history(path)
    assert read.dump() == history.dump() and read.versions == ["0.9.0", "0.10.0", "0.20.0"]
    assert (read.since("requests", "a/b"), read.gone("requests", "a/b")) == (None, None)
    assert (read.since("requests", "c/d"), read.gone("requests", "old/one")) == ("0.20.0", "0.10.0")
    assert read.since("params", "a/b two") == "0.10.0"
    # One that is known already is replaced.
    read.add(protocol(scripts, "0.20.0", a_b={"one": TEXT}))
    assert read.since("requests", "c/d") is None and read.gone("params", "a/b two") == "0.20.0"
    path.write_text("{}")
    with pytest.raises(scripts.schema.SchemaError, match="restore it"):
        scripts.history.read_history(path)


def test_a_field_that_not_all_versions_send_is_lenient(scripts: SimpleNamespace) -> None:
    history, new = scripts.history.History(), protocol(scripts, "0.2.0", a_b={}, c_d={})
    old = protocol(scripts, "0.1.0", a_b={}, c_d={})
    old.definitions["ABResponse"]["required"] = []
    history.add(old)
    history.add(new)
    assert scripts.history.lenient_fields(new, history) == {"ABResponse": frozenset({"text"})}
    new.definitions["CDResponse"]["properties"]["text"] = {"anyOf": [TEXT, {"type": "null"}]}
    assert scripts.history.lenient_fields(new, history).keys() == {"ABResponse", "CDResponse"}


def test_the_committed_tables_are_those_of_the_history(scripts: SimpleNamespace) -> None:
    history = scripts.history.read_history()
    assert (history.versions[0], history.versions[-1]) == (since.OLDEST, since.NEWEST)
    for method, span in since.METHODS.items():
        assert span == (history.since("requests", method) or "", history.gone("requests", method) or "")
    from codex_app_server.generated.routing import RUNTIME_VERSION

    page = scripts.since.PAGE.read_text(encoding="utf-8")
    assert scripts.since.emit_page(page, scripts.schema.Protocol(RUNTIME_VERSION), history) == page
    with pytest.raises(scripts.schema.SchemaError, match="no place"):
        scripts.since.emit_page("# A page\n", scripts.schema.Protocol(RUNTIME_VERSION), history)


def test_the_report_says_what_was_added_removed_and_changed(scripts: SimpleNamespace) -> None:
    old = protocol(scripts, "0.1.0", a_b={"one": TEXT}, gone={})
    new = protocol(
        scripts, "0.2.0", a_b={"one": {"type": ["integer", "null"]}, "two": {"items": TEXT, "type": "array"}}
    )
    new.requests["new/one"], new.experimental = "ABParams", frozenset({"new/one", "a/b"})
    for made, values in ((old, ["x", "y"]), (new, ["y", "z"])):
        made.definitions["Colour"] = {"type": "string", "enum": values}
    rows = scripts.diff.report(old, new).splitlines()
    for row in (
        "# The protocol of codex 0.2.0 against 0.1.0",
        "- added: `new/one` (experimental)",
        "- removed: `gone`",
        "- changed: `a/b` is experimental now",
        "- added: `ABParams.two`: list of string (sent)",
        "- changed: `ABParams.one`: string -> integer or null (sent)",
        "- added: 'z' of `Colour`",
        "- removed: 'x' of `Colour`",
        "- `GoneParams`",
    ):
        assert row in rows, row
    assert scripts.diff.report(old, old).strip() == "# The protocol of codex 0.1.0 against 0.1.0"


SCOPES = """any = [
  "shop/list",
]

[refused]
"it is far away" = [
  "shop/open",
]
"""
ACCESS = 'own = [\n  "shop/look",\n]\n\nrefused = [\n  "shop/open",\n  "shop/list",\n]\n'


def test_all_decisions_are_asked_for_at_once_and_refused_unless_made(scripts: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "scopes.toml").write_text(SCOPES)
    (tmp_path / "access.toml").write_text(ACCESS)
    (tmp_path / "results.toml").write_text("")
    methods: dict[str, Any] = {name: {} for name in ("shop_list", "shop_open", "shop_status", "shop_burn", "yard_burn")}
    new = protocol(scripts, "0.2.0", **methods)
    new.definitions["LocalThreadParams"] = {
        "type": "object",
        "properties": {"threadId": TEXT},
        "required": ["threadId"],
    }
    new.requests["local/thread"] = "LocalThreadParams"
    new.definitions["ThreadOfLocalResponse"] = {"type": "object", "properties": {}}
    found = scripts.decisions.undecided(new, tmp_path)
    assert found.results == {"local/thread": ["ThreadOfLocalResponse"]}
    assert found.scopes == {
        "shop/burn": ["refused", "any"],
        "shop/status": ["any", "refused"],
        "yard/burn": ["refused"],
    }
    assert {each[0] for each in found.access.values()} == {"refused"} and found.access["local/thread"][1] == "own"
    assert "shop/status: any | refused" in "\n".join(found.lines())
    scripts.decisions.accept(found, new, tmp_path)
    scopes, reasons = (read(tmp_path / "scopes.toml") for read in _readers(scripts))
    assert scopes["shop/status"] == "any" and reasons["shop/burn"] == "it is far away"
    assert reasons["yard/burn"] == scripts.decisions.UNDECIDED_REASON
    assert scripts.decisions.read_access(tmp_path / "access.toml")["shop/status"] == "refused"
    assert (tmp_path / "results.toml").read_text() == '"local/thread" = "ThreadOfLocalResponse"\n'
    assert scripts.decisions.undecided(new, tmp_path).scopes == {}
    assert scripts.decisions.remove(["shop/open", "shop/burn", "shop/list"], tmp_path) == [
        "shop/burn",
        "shop/list",
        "shop/open",
    ]
    assert "it is far away" not in (tmp_path / "scopes.toml").read_text()


def _readers(scripts: SimpleNamespace) -> tuple[Any, Any]:
    return scripts.decisions.read_scopes, scripts.decisions.read_reasons
