"""Members of a debug bundle: collected from this machine and the daemon, each on its own, redacted as they are made."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from codex_app_server.errors import AppServerError
from codex_pool import __version__
from codex_pool.protocol import endpoints

from ..checks import home as home_probe
from . import scrub

if TYPE_CHECKING:
    from ..checks.facts import Facts

MAX_LOG_BYTES = 1 << 20
MAX_LISTED = 20_000

README = """\
Made by codex-pool debug-bundle, for people who look for a fault. Look through it before you hand it over.

versions.json      codex-pool, Python, codex, system
doctor.json        findings of codex-pool doctor
status.json        answer of the daemon to pool/status with its trace: ids and counts, no texts
environment.json   names of all variables; values of harmless ones
options.json       options that a daemon takes from file and environment, with their origins
config-N.json      config.toml of CODEX_HOME, and of the daemon's own home: numbers, booleans, known words
home-N.txt         names and sizes of the files there; no contents
log.txt            the end of the log, if one was named

Not in it: prompts, texts of threads, keys, tokens, auth.json. What is known as a secret is taken out of all of it.
"""


def redactor(homes: list[Path], key: str | None, keys_directory: Path) -> scrub.Redact:
    """Return a function that takes secrets out of a text.

    They are those of the environment, the homes and the keys, and all that has the shape of one.
    """
    from codex_batch.redaction.known_secrets import known_secrets
    from codex_batch.redaction.redactor import Redactor

    known = Redactor(known_secrets(os.environ, homes, key=key))
    known.add({f"server_{name}": value for name, value in _secrets_of(keys_directory / "server.json").items()})
    # A secret could be cut by the shapes, and its rest would not be known any more.
    return lambda text: scrub.shapeless(known.text(text))


def _secrets_of(file: Path) -> dict[str, str]:
    from codex_batch.redaction.known_secrets import known_secrets

    return known_secrets({}, (), key=str(file))


def log_of(facts: Facts) -> Path | None:
    """The log of a daemon that runs on this machine and logs to a file; None where that is not known."""
    found = facts.endpoint
    if found is None or found.status is None or endpoints.is_tcp(found.endpoint):
        return None
    name = found.status.get("log", {}).get("file")
    return Path(name) if isinstance(name, str) else None


def members(facts: Facts, homes: list[Path], log: Path | None, redact: scrub.Redact) -> Iterator[tuple[str, bytes]]:
    """Names and contents. A member that cannot be made has the reason as its content."""
    makers: list[tuple[str, Callable[[], bytes]]] = [
        ("README.txt", README.encode),
        ("versions.json", lambda: _versions(facts, redact)),
        ("doctor.json", lambda: _doctor(facts, redact)),
        ("status.json", lambda: _status(facts, redact)),
        ("environment.json", lambda: scrub.as_json(scrub.environment(os.environ), redact)),
        ("options.json", lambda: _options(redact)),
    ]
    for number, home in enumerate(homes):
        makers.append((f"config-{number}.json", partial(_config, home, redact)))
        makers.append((f"home-{number}.txt", partial(_listing, home, redact)))
    if log is not None:
        makers.append(("log.txt", lambda: _log(log, redact)))
    for name, make in makers:
        try:
            content = make()
        except (AppServerError, OSError, ValueError, RecursionError) as error:
            content = scrub.as_text(f"not made: {type(error).__name__}: {error}\n", redact)
        yield name, content


def _versions(facts: Facts, redact: scrub.Redact) -> bytes:
    codex = facts.binary
    values = {
        "codexPool": __version__,
        "python": sys.version,
        "executable": sys.executable,
        "system": platform.platform(),
        "codex": None if codex is None else codex.version,
        "codexBinary": None if codex is None else codex.path,
    }
    return scrub.as_json(values, redact)


def _doctor(facts: Facts, redact: scrub.Redact) -> bytes:
    from ..checks.findings import as_plain, findings_of

    return scrub.as_json(as_plain(findings_of(facts)), redact)


def _status(facts: Facts, redact: scrub.Redact) -> bytes:
    found = facts.endpoint
    if found is None or found.status is None:
        why = "no daemon" if found is None or found.problem is None else found.problem
        return scrub.as_json({"status": None, "why": why}, redact)
    return scrub.as_json(found.status, redact)


def _options(redact: scrub.Redact) -> bytes:
    """The options of file and environment with which `serve` would start, their origins, and the places of errors."""
    from codex_pool.option_sources import read_given

    given = read_given(None, os.environ)
    options = {
        name: {"value": value.value, "source": value.source, "where": value.where}
        for name, value in given.with_flags({}).items()
    }
    # The message of an error has the value that was written there.
    errors = [problem.where for problem in given.problems]
    return scrub.as_json({"file": given.file, "options": options, "errors": errors}, redact)


def _config(home: Path, redact: scrub.Redact) -> bytes:
    config, problem = home_probe.configuration(home)
    # The message of a file that is no TOML names line and column, not what stands there.
    return scrub.as_json({"home": str(home), "problem": problem, "config": scrub.settings(config)}, redact)


def _listing(home: Path, redact: scrub.Redact) -> bytes:
    rows = list(islice(home_probe.files_of(home), MAX_LISTED + 1))
    lines = [str(home), *(f"{size_bytes:>12}  {name}" for name, size_bytes in rows[:MAX_LISTED])]
    if len(rows) > MAX_LISTED:
        lines.append(f"more than {MAX_LISTED} files; the others are left out")
    return scrub.as_text("\n".join(lines) + "\n", redact)


def _log(path: Path, redact: scrub.Redact) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        size_bytes = os.fstat(fd).st_size
        file.seek(max(0, size_bytes - MAX_LOG_BYTES))
        content = file.read(MAX_LOG_BYTES)
    if size_bytes > MAX_LOG_BYTES:
        # The first line is not whole, nor may a secret in it be.
        content = content.partition(b"\n")[2]
    return scrub.as_text(content.decode("utf-8", "replace"), redact)
