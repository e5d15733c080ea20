"""Decisions for a person to make on a method of the protocol: its scope, its rule for keys, the type of its result.

The decisions are lists in scopes.toml and access.toml, and lines in results.toml. For what is undecided there are
candidates: for results the types that are the result of no other method, by the words that they share with the method,
for scopes and rules those of the methods nearest by name. What changes something, and what a key may do, is refused
unless a person decides otherwise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from _routing import THREAD_KEYS, read_reasons, read_results, read_scopes, result_name
from _schema import Protocol, SchemaError, reference
from access_table import read as read_access

UNDECIDED_REASON = "it is not decided yet which app-server may answer it"
OF_THREADS = "own"
REFUSED = "refused"
SCOPES_FILE, ACCESS_FILE, RESULTS_FILE = "scopes.toml", "access.toml", "results.toml"
MAX_CANDIDATES = 4
# The last parts of methods that change nothing.
READING = frozenset({"get", "info", "list", "read", "search", "status"})
_LIST = r"(?ms)^(?P<key>{key}) = \[(?P<items>[^\]]*)\]$"


@dataclass
class Undecided:
    """Methods that wait for a decision, by kind of decision, each with its candidates."""

    results: dict[str, list[str]] = field(default_factory=dict)
    scopes: dict[str, list[str]] = field(default_factory=dict)
    access: dict[str, list[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.results or self.scopes or self.access)

    def lines(self) -> list[str]:
        """The text for people: each method with what may be written into which file."""
        found = []
        for file, methods in ((RESULTS_FILE, self.results), (SCOPES_FILE, self.scopes), (ACCESS_FILE, self.access)):
            if methods:
                found.append(f"undecided in scripts/{file} ({len(methods)}):")
                found += [f"  {method}: {' | '.join(each) or 'no candidate'}" for method, each in methods.items()]
        return found


def undecided(protocol: Protocol, scripts: Path) -> Undecided:
    """Return what the tables in the directory `scripts` leave open for this protocol."""
    found = Undecided()
    free = _free_results(protocol)
    for method, params in (*protocol.requests.items(), *protocol.server_requests.items()):
        try:
            result_name(protocol, method, params)
        except SchemaError:
            found.results[method] = _by_words(method, params, free)
    scopes, access = read_scopes(scripts / SCOPES_FILE), read_access(scripts / ACCESS_FILE)
    for method, params in sorted(protocol.requests.items()):
        is_of_thread = not protocol.required(params).isdisjoint(THREAD_KEYS)
        if method not in scopes and not is_of_thread:
            nearest = _by_neighbours(method, scopes)
            reads = method.rsplit("/", 1)[-1] in READING
            found.scopes[method] = _unlike(nearest if reads else [REFUSED, *nearest])
        if method not in access:
            # Nothing is granted because its neighbour is.
            own = [OF_THREADS] if is_of_thread else []
            found.access[method] = _unlike([REFUSED, *own, *_by_neighbours(method, access)])
    return found


def _unlike(candidates: list[str]) -> list[str]:
    return list(dict.fromkeys(candidates))[:MAX_CANDIDATES]


def _free_results(protocol: Protocol) -> list[str]:
    """The types that are called like results and are the result of no method."""
    used = set()
    for method, params in (*protocol.requests.items(), *protocol.server_requests.items()):
        try:
            used.add(result_name(protocol, method, params))
        except SchemaError:
            continue
    branches = {reference(branch) for union in protocol.unions.values() for branch in union.branches}
    named = {name for name in (*protocol.definitions, *protocol.unions) if name.endswith("Response")}
    return sorted(name for name in named - used - branches if not name.startswith("Unrecognized"))


def _words(text: str) -> list[str]:
    return [word.lower().rstrip("s") for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", text)]


def _by_words(method: str, params: str | None, names: Iterable[str]) -> list[str]:
    wanted = Counter(_words(method) + _words((params or "").removesuffix("Params")))

    def likeness(name: str) -> float:
        own = Counter(_words(name.removesuffix("Response")))
        return (wanted & own).total() / max(1, own.total())

    ranked = sorted(names, key=lambda name: (-likeness(name), name))
    return [name for name in ranked if likeness(name) > 0][:MAX_CANDIDATES]


def _by_neighbours(method: str, decided: Mapping[str, str]) -> list[str]:
    """The decisions about the methods that begin alike, those that share most of the name first."""
    parts = method.split("/")
    found: list[str] = []
    for depth in range(len(parts) - 1, 0, -1):
        near = [value for name, value in decided.items() if name.split("/")[:depth] == parts[:depth]]
        found += [value for value, _ in Counter(near).most_common()]
    return _unlike([*found, REFUSED])


def accept(found: Undecided, protocol: Protocol, scripts: Path) -> None:
    """Write the first candidate of each into its file. Raises SchemaError for a method that has none."""
    kinds = (found.results, found.scopes, found.access)
    none = [method for methods in kinds for method, candidates in methods.items() if not candidates]
    if none:
        raise SchemaError(f"no candidate for {', '.join(none)}; decide, and write it into scripts/*.toml")
    results = scripts / RESULTS_FILE
    with results.open("a", encoding="utf-8") as file:
        file.writelines(f'"{method}" = "{each[0]}"\n' for method, each in found.results.items())
    read_results.cache_clear()
    reasons = read_reasons(scripts / SCOPES_FILE)
    for method, each in found.scopes.items():
        key = each[0]
        if key == REFUSED:
            key = f'"{_reason_beside(method, reasons)}"'
        _insert(scripts / SCOPES_FILE, key, method)
    for method, each in found.access.items():
        _insert(scripts / ACCESS_FILE, each[0], method)


def _reason_beside(method: str, reasons: Mapping[str, str]) -> str:
    """The reason why the methods beside this one are refused."""
    parent = method.rpartition("/")[0]
    beside = Counter(reason for name, reason in reasons.items() if name.rpartition("/")[0] == parent)
    return beside.most_common(1)[0][0] if beside else UNDECIDED_REASON


def remove(methods: Iterable[str], scripts: Path) -> list[str]:
    """Take methods that the protocol does not have out of the tables; returns those that were there."""
    gone = set(methods)
    found: set[str] = set()
    for name in (SCOPES_FILE, ACCESS_FILE):
        path = scripts / name
        text = path.read_text(encoding="utf-8")
        for match in [*re.finditer(_LIST.format(key=r'[\w-]+|"[^"]+"'), text)]:
            items = re.findall(r'"([^"]+)"', match["items"])
            kept = [item for item in items if item not in gone]
            found |= {*items} & gone
            if kept == items:
                continue
            # A reason that nothing is refused for any more is no list at all.
            is_reason = match["key"].startswith('"')
            text = text.replace(match[0], _list(match["key"], kept) if kept or not is_reason else "")
        path.write_text(text, encoding="utf-8")
    return sorted(found)


def _insert(path: Path, key: str, method: str) -> None:
    text = path.read_text(encoding="utf-8")
    match = re.search(_LIST.format(key=re.escape(key)), text)
    if match is None:
        path.write_text(f"{text.rstrip()}\n{_list(key, [method])}\n", encoding="utf-8")
        return
    items = sorted({*re.findall(r'"([^"]+)"', match["items"]), method})
    path.write_text(text.replace(match[0], _list(key, items)), encoding="utf-8")


def _list(key: str, items: list[str]) -> str:
    return f"{key} = [\n" + "".join(f'  "{item}",\n' for item in items) + "]"
