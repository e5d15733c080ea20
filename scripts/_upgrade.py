"""The subcommand upgrade: from one codex binary to types, tables, pages and tests of its version."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import _decisions
from _history import PATH, read_history
from _protocol_diff import report
from _runtimes import RUNTIME, fetch_runtime, is_from_index
from _schema import Protocol, SchemaError, binary_version, dump_schema, load
from _since import PAGE, emit_page

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
ROUTING = ROOT / "src" / "codex_app_server" / "generated" / "routing.py"
REPORTS = ROOT / "out" / "upgrade"
PINNED = ("pyproject.toml", "constraints.txt")
# Sentences that name the version of the runtime: file -> what stands before it.
NAMED = {
    "README.md": "codex runtime that it is made for (",
    "docs/compatibility.md": "is made for**, ",
    "docs/clients.md": "The version is the one of the pool, ",
}
TESTS_TIMEOUT_S = 900


@dataclass
class Step:
    """Something that was done, or is left to a person."""

    text: str
    is_left: bool = False

    def __str__(self) -> str:
        return f"{'TO DO' if self.is_left else 'done'}: {self.text}"


def protocol_of(codex: Path) -> Protocol:
    """The protocol that a binary speaks."""
    version = binary_version(codex)
    with tempfile.TemporaryDirectory(prefix="codex-schema-") as scratch:
        stable, experimental = Path(scratch, "stable"), Path(scratch, "experimental")
        dump_schema(codex, stable, experimental=False)
        dump_schema(codex, experimental, experimental=True)
        return load(version, stable, experimental)


def made_for() -> str:
    """The version that the generated types are those of."""
    found = re.search(r'^RUNTIME_VERSION = "(.+)"$', ROUTING.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SchemaError(f"{ROUTING} names no RUNTIME_VERSION; restore it")
    return found[1]


def compare(codex: Path) -> tuple[Protocol, Protocol, Path]:
    """The protocols that the types are made for and that of the binary, and the file with the report."""
    old, new = protocol_of(fetch_runtime(made_for())), protocol_of(codex)
    REPORTS.mkdir(parents=True, exist_ok=True)
    path = REPORTS / f"{new.version}.md"
    path.write_text(report(old, new), encoding="utf-8")
    return old, new, path


def decide(new: Protocol, *, accepts: bool) -> list[str]:
    """Make the tables fit the protocol; returns what is said. Raises SchemaError when a person has to decide."""
    found = _decisions.undecided(new, SCRIPTS)
    if found and not accepts:
        remedy = "decide in these files and run this again, or with --accept, which takes the first candidates"
        raise SchemaError("\n".join([*found.lines(), remedy]))
    if found:
        _decisions.accept(found, new, SCRIPTS)
    known = {**dict.fromkeys(_decisions.read_scopes(SCRIPTS / _decisions.SCOPES_FILE))}
    known |= dict.fromkeys(_decisions.read_access(SCRIPTS / _decisions.ACCESS_FILE))
    gone = _decisions.remove(known.keys() - new.requests.keys(), SCRIPTS)
    said = [f"accepted {line.strip()}" for line in found.lines() if line.startswith("  ")]
    return said + [f"no longer there: {method}" for method in gone]


TABLES = (_decisions.SCOPES_FILE, _decisions.ACCESS_FILE, _decisions.RESULTS_FILE, PATH.name)


@contextlib.contextmanager
def tables_kept() -> Iterator[None]:
    """The tables are as before if what is done with them fails."""
    before = {name: (SCRIPTS / name).read_bytes() for name in TABLES}
    try:
        yield
    except BaseException:
        for name, content in before.items():
            (SCRIPTS / name).write_bytes(content)
        raise


def note_history(new: Protocol) -> None:
    """Add the version to the history of the protocol."""
    history = read_history()
    history.add(new)
    PATH.write_text(history.dump(), encoding="utf-8")


def refresh_pages(old: str, new: Protocol, codex: Path) -> list[Step]:
    """Bring tables, pages and named versions up to date."""
    run(SCRIPTS / "access_table.py")
    PAGE.write_text(emit_page(PAGE.read_text(encoding="utf-8"), new, read_history()), encoding="utf-8")
    steps = [Step("scripts/access_table.py, and the tables of docs/compatibility.md")]
    problem = _failure([SCRIPTS / "probe_methods.py", "--codex-bin", codex, "--incomplete"])
    steps.append(
        Step("docs/reference/methods.md, each stable method asked once")
        if problem is None
        else Step(f"scripts/probe_methods.py: {problem}", is_left=True)
    )
    for name, before in NAMED.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        if before + old in text:
            path.write_text(text.replace(before + old, before + new.version), encoding="utf-8")
        else:
            steps.append(Step(f"{name} does not say {before + old!r}; correct it", is_left=True))
    return [*steps, *_pins(old, new.version)]


def _pins(old: str, new: str) -> list[Step]:
    if not is_from_index(new):
        pins = f"{RUNTIME}=={new} in {' and '.join(PINNED)}"
        return [Step(f"it is not on the package index; once it is, pin {pins}", is_left=True)]
    for name in PINNED:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f"{RUNTIME}=={old}", f"{RUNTIME}=={new}"), encoding="utf-8")
    peer = "openai-codex, which codex_app_server.compat stands in for: pin it when it is published, and see its tests"
    return [Step(f"pinned {RUNTIME}=={new}; install it: pip install -e ."), Step(peer, is_left=True)]


def check(version: str, codex: Path) -> Step:
    """Run the tests of the range on this version."""
    environ = {**os.environ, "VERSIONS": f"{version}={codex}"}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "versions", "tests/versions/test_range.py"]
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=TESTS_TIMEOUT_S
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode == 0:
        return Step(f"tests of the range pass on {version}")
    return Step("tests of the range fail:\n  " + "\n  ".join(lines or [done.stderr.strip()[-2000:]]), is_left=True)


def run(*command: object) -> None:
    """Run a script of this project. Raises SchemaError with its last words."""
    problem = _failure(list(command))
    if problem is not None:
        raise SchemaError(problem)


def _failure(command: list[object]) -> str | None:
    argv = [sys.executable, *map(str, command)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TESTS_TIMEOUT_S)
    return None if done.returncode == 0 else (done.stderr + done.stdout).strip()[-1000:]
