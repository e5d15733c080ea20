"""Emits `generated/since.py`, and the tables of docs/compatibility.md: which versions of codex have which methods."""

from __future__ import annotations

from pathlib import Path

from _history import SEPARATOR, History, number
from _options import OPTIONS, snake
from _schema import Protocol, SchemaError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "compatibility.md"
BEGIN, END = "<!-- versions: scripts/update_sdk_artifacts.py -->", "<!-- versions end -->"
PRELUDE = '''
"""The versions of codex that have each method and each of its fields, as far as they differ. Imports nothing.

From the schemas of the versions OLDEST to NEWEST: a version is the first one of those looked at. ("0.149.0", "") is
something that 0.149.0 has brought, ("", "0.156.0") something that was there before OLDEST and is not since 0.156.0.
"""

from __future__ import annotations

OLDEST = {oldest!r}
NEWEST = {newest!r}

# Requests: first version with it, first version without it.
METHODS: dict[str, tuple[str, str]] = {{
{methods}
}}

# The same of the fields of their params, by their names on the wire.
FIELDS: dict[str, dict[str, tuple[str, str]]] = {{
{fields}
}}
'''


def emit_since(history: History) -> str:
    """The text of since.py."""
    methods = {
        name: span for name in sorted(history.names["requests"]) if any(span := _span(history, "requests", name))
    }
    rows = "\n".join(f'    "{name}": {span!r},' for name, span in methods.items())
    fields = "\n".join(f'    "{method}": {found!r},' for method, found in _fields(history).items())
    oldest, newest = history.versions[0], history.versions[-1]
    return PRELUDE.format(oldest=oldest, newest=newest, methods=rows, fields=fields).lstrip("\n")


def _span(history: History, kind: str, name: str) -> tuple[str, str]:
    return history.since(kind, name) or "", history.gone(kind, name) or ""


def _fields(history: History) -> dict[str, dict[str, tuple[str, str]]]:
    """The fields that came after their method, or went before it."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for name in sorted(history.names["params"]):
        method, _, own = name.partition(SEPARATOR)
        since, gone = _span(history, "params", name)
        of_method = _span(history, "requests", method)
        span = since if since != of_method[0] else "", gone if gone != of_method[1] else ""
        if any(span):
            found.setdefault(method, {})[own] = span
    return found


def emit_page(page: str, protocol: Protocol, history: History) -> str:
    """The page of docs with its tables brought up to date. Raises SchemaError when it has no place for them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SchemaError(f"{PAGE.name} has no place for the tables: {BEGIN} ... {END}; restore it")
    return f"{before}{BEGIN}\n\n{_tables(protocol, history)}\n\n{END}{after}"


def _tables(protocol: Protocol, history: History) -> str:
    since: dict[str, tuple[list[str], list[str], list[str]]] = {each: ([], [], []) for each in history.versions[1:]}
    gone: list[str] = []
    for column, kind in enumerate(("requests", "notifications")):
        for name in sorted(history.names[kind]):
            first, last = _span(history, kind, name)
            if first:
                since[first][column].append(f"`{name}`")
            if last:
                gone.append(f"`{name}` since {last}")
    called = {method: type_name for type_name, (method, _) in OPTIONS.items()}
    for method, fields in _fields(history).items():
        if method not in called:
            continue
        for own, (first, last) in fields.items():
            if first:
                since[first][2].append(f"`{snake(own)}` of `{method}`")
            if last:
                gone.append(f"`{snake(own)}` of `{method}` since {last}")
    lines = [
        f"The types are those of {protocol.version}. What every version from {history.versions[0]} to "
        f"{history.versions[-1]} has is left out; a method that is newer than {protocol.version} has no type: give its "
        "name and its fields in wire names, and the result is plain JSON.",
        "",
        "| since | requests | notifications | options |",
        "|---|---|---|---|",
    ]
    for version in sorted(since, key=number):
        if any(since[version]):
            cells = " | ".join(", ".join(cell) or "-" for cell in since[version])
            lines.append(f"| {version} | {cells} |")
    lines += ["", f"Not in all of them: {', '.join(gone)}." if gone else "None of them has lost any."]
    return "\n".join(lines)
