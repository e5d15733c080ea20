"""Variants: named configurations that the samples of one run are each run with, as they are with its epochs.

They are the combinations of the models and efforts that were asked for, or the tables of a file:

    [defaults]                            # of all variants, unless they have their own
    model = "gpt-5.1"

    [[variant]]
    name = "terse"                        # letters, digits, . _ -, at most 64
    effort = "high"
    agents_md = "terse/AGENTS.md"         # a file; relative paths begin at the directory of this file
    codex_bin = "~/codex/bin/codex"       # a binary; a name without a separator is looked for on PATH
    config.model_verbosity = "low"        # keys of codex's configuration, as with -c

Models and efforts that are asked for beside a file are combined with its variants, if these leave them open.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tomli

from codex_app_server import BinaryNotFoundError, StartError
from codex_app_server._runtime.files import read_file, resolved
from codex_app_server.config import find_codex

from ..dataset.fields import describe, printable, quote
from ..workspace.project import MAX_BYTES
from .without_secrets import without_secrets

MAX_VARIANTS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_WORDS = "letters, digits, '.', '_' and '-', at most 64 and not '.', '_' or '-' first"
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TABLES = ("variant", "defaults")
_STRINGS = {
    "model": "the name of a model",
    "effort": "a reasoning effort, such as low or high",
    "agents_md": "the path of a file",
    "codex_bin": "the path of a codex binary",
}
_FIELDS = ("name", *_STRINGS, "config")
# Keys of codex's configuration that a run sets for each thread itself, and what to use in place of them.
_OF_RUN = {
    "model": "use model beside config",
    "model_reasoning_effort": "use effort beside config",
    "sandbox_mode": "a run sets it for each thread: use --sandbox, or sandbox of a sample",
    "approval_policy": "a run sets it for each thread: use -c approval_policy=...",
    "default_permissions": "a run sets it for each thread",
    "permissions": "a run sets it for each thread",
    "project_doc_max_bytes": "a run sets it for each thread",
    "projects": "a run sets it for each thread",
    "sqlite_home": "the pool sets it for each worker",
}


class VariantsError(ValueError):
    """Variants that cannot be run; `problems` holds everything that is wrong, each as `file: variant: field: ...`."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A named configuration of a run. None leaves the run's options, or codex's configuration, in force.

    `config`: keys of codex's configuration, dotted as with `-c`, and their values. `agents_md`: the text that is
    AGENTS.md for the agent. `codex_bin`: absolute path of the binary.
    """

    name: str
    model: str | None = None
    effort: str | None = None
    config: dict[str, Any] = {}
    agents_md: str | None = None
    codex_bin: str | None = None

    @property
    def agents_md_digest(self) -> str | None:
        """Digest of `agents_md`, as fingerprints have those of AGENTS.md files."""
        return None if self.agents_md is None else hashlib.sha256(self.agents_md.encode()).hexdigest()[:16]

    def described(self) -> dict[str, Any]:
        """Return the variant as plain JSON for records and reports: of `agents_md` the digest, of `config` no secrets.

        Fields that are not set are left out, except the name.
        """
        shown = {"agents_md": self.agents_md_digest, "config": _shown(self.config)}
        found = {**msgspec.structs.asdict(self), **shown}
        return {name: value for name, value in found.items() if value not in (None, {})}


def variants_of(models: Sequence[str], efforts: Sequence[str], file: Path | None) -> tuple[Variant, ...]:
    """Make the variants of a run, in order: every one of `file` with every model and every effort.

    Without a file, one model and one effort at most are options of the run, and there are no variants. Raises
    VariantsError.
    """
    problems = [
        f"{option} {value}: is given twice"
        for option, values in (("--model", models), ("--effort", efforts))
        for value in dict.fromkeys(value for value in values if values.count(value) > 1)
    ]
    if file is None and len(models) < 2 and len(efforts) < 2:
        _refuse(problems)
        return ()
    base = (Variant(name="x"),) if file is None else _read(file, problems)
    for option, field, values in (("--model", "model", models), ("--effort", "effort", efforts)):
        own = [variant.name for variant in base if getattr(variant, field) is not None]
        if values and own:
            problems.append(
                f"{option}: {file} sets {field} of {_listed(own)}; leave out {option}, or {field} in the file, so "
                f"that each variant has one"
            )
    _refuse(problems)
    found = [
        msgspec.structs.replace(
            variant,
            name=_name(None if file is None else variant.name, model, effort),
            model=variant.model if model is None else model,
            effort=variant.effort if effort is None else effort,
        )
        for variant in base
        for model in models or (None,)
        for effort in efforts or (None,)
    ]
    _refuse([*_wrong_names(found), *_alike(found)])
    return tuple(found)


def check_daemon(variants: Sequence[Variant]) -> None:
    """Check that variants can run on a daemon, which has a binary of its own. Raises VariantsError."""
    _refuse(
        [
            f"codex_bin of variant {each.name}: cannot go with --connect, because a daemon has its own binary; leave "
            "out --connect, or give the binary to codex-pool serve --codex-bin"
            for each in variants
            if each.codex_bin is not None
        ]
    )


def _name(*parts: str | None) -> str:
    """The name of a combination: all that was asked for, also a single model, so that others can be added later."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(filter(None, parts))).lstrip("._-")


def _wrong_names(variants: Sequence[Variant]) -> Iterator[str]:
    """Problems of names, which also name directories."""
    if len(variants) > MAX_VARIANTS:
        yield f"there are {len(variants):,} variants; expected at most {MAX_VARIANTS}"
    # Two names that differ in case alone would be one directory on some file systems.
    names = [variant.name.lower() for variant in variants]
    for variant in variants:
        if not _NAME.fullmatch(variant.name):
            yield (
                f"variant {quote(variant.name)} ({_in_words(variant)}): its name is made of {_NAME_WORDS}; "
                "name it in a file of variants"
            )
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        them = [variant for variant in variants if variant.name.lower() == name]
        what = ", ".join(f"{each.name} ({_in_words(each)})" for each in them)
        yield f"the name {name} stands for {len(them)} variants: {what}; give each a name of its own in a file"


def _alike(variants: Sequence[Variant]) -> Iterator[str]:
    """Problems of variants that would do the same."""
    first: dict[bytes, str] = {}
    for variant in variants:
        same = msgspec.json.encode(msgspec.structs.replace(variant, name=""), order="deterministic")
        other = first.setdefault(same, variant.name)
        if other != variant.name:
            yield f"variants {other} and {variant.name} have the same configuration; for repetitions use --epochs"


def _in_words(variant: Variant) -> str:
    return ", ".join(filter(None, (variant.model, variant.effort))) or "no model, no effort"


# The file.


def _read(file: Path, problems: list[str]) -> tuple[Variant, ...]:
    """The variants of a file; what is wrong is added to `problems`."""
    table = _table(file)
    for name in table:
        if name not in _TABLES:
            hint = "; write [[variant]] with name = ..." if name in ("variants", "Variant") else ""
            problems.append(f"{file}: {_unknown(name, _TABLES)}{hint}")
    entries, defaults = table.get("variant"), table.get("defaults", {})
    if not isinstance(defaults, dict):
        problems.append(f"{file}: defaults: is {describe(defaults)}; expected a table: [defaults]")
        defaults = {}
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        if "variant" in table:
            problems.append(f"{file}: variant: expected a list of tables: [[variant]], each with name = ...")
        elif not problems:
            problems.append(f"{file}: has no variant; expected [[variant]], each with name = ...")
        return ()
    reader = _Reader(file, problems)
    of_all = reader.fields("defaults", defaults, ignored=())
    if "name" in defaults:
        problems.append(f"{file}: defaults: name: stands in defaults; expected in each [[variant]]")
    found: list[Variant] = []
    names: dict[str, int] = {}
    for number, entry in enumerate(entries, start=1):
        name = entry.get("name")
        is_name = isinstance(name, str) and _NAME.fullmatch(name) is not None
        where = f"variant {number} ({name})" if is_name else f"variant {number}"
        if name is None:
            problems.append(f'{file}: {where}: name: is missing; expected name = "..."')
        elif not is_name:
            problems.append(f"{file}: {where}: name: is {describe(name)}; expected {_NAME_WORDS}")
        elif name.lower() in names:
            problems.append(
                f"{file}: {where}: name: is that of variant {names[name.lower()]} as well; expected another"
            )
        else:
            names[name.lower()] = number
        own = reader.fields(where, entry, ignored=("name",))
        config = {**of_all.get("config", {}), **own.get("config", {})}
        if is_name:
            found.append(Variant(**{**of_all, **own, "config": config, "name": name}))
    if not entries:
        problems.append(f"{file}: variant: is an empty list; expected [[variant]], each with name = ...")
    if not problems:
        problems += [f"{file}: {problem}" for problem in _alike(found)]
    return tuple(found)


def _table(file: Path) -> dict[str, Any]:
    """The TOML of a file. Raises VariantsError."""
    try:
        return tomli.loads(read_file(file).decode("utf-8-sig"))
    except OSError as error:
        raise VariantsError([f"{file}: cannot be read: {error.strerror}; expected a file of variants (TOML)"]) from None
    except UnicodeDecodeError:
        raise VariantsError([f"{file}: not UTF-8; expected a file of variants (TOML)"]) from None
    except (tomli.TOMLDecodeError, RecursionError) as error:
        raise VariantsError([f"{file}: not TOML: {error}; expected a file of variants"]) from None


class _Reader:
    """Reads the fields of tables of a file; what is wrong is added to `problems`."""

    def __init__(self, file: Path, problems: list[str]) -> None:
        self._file = file
        self._directory = resolved(file).parent
        self._problems = problems
        self._texts: dict[str, str] = {}

    def fields(self, where: str, table: Mapping[str, Any], *, ignored: Sequence[str]) -> dict[str, Any]:
        """Return the fields that are right, as a variant has them."""
        found: dict[str, Any] = {}
        for field, value in table.items():
            place = f"{self._file}: {where}: {printable(field)}"
            try:
                if field in _STRINGS:
                    found[field] = self._string(field, value)
                elif field == "config":
                    found[field] = dict(self._config(place, value))
                elif field not in _FIELDS:
                    hint = "; keys of codex's configuration stand in config" if not _near(field, _FIELDS) else ""
                    self._problems.append(f"{self._file}: {where}: {_unknown(field, _FIELDS)}{hint}")
            except ValueError as error:
                self._problems.append(f"{place}: {error}")
        return found

    def _string(self, field: str, value: Any) -> str:
        """Raises ValueError."""
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise ValueError(f"is {_described(value)}; expected {_STRINGS[field]}")
        if field == "agents_md":
            return self._text(self._directory / os.path.expanduser(value))
        if field == "codex_bin":
            try:
                has_directory = bool(os.path.dirname(value))
                return str(find_codex(str(self._directory / os.path.expanduser(value)) if has_directory else value))
            except (BinaryNotFoundError, StartError) as error:
                raise ValueError(str(error)) from None
        return value

    def _text(self, path: Path) -> str:
        try:
            data = read_file(path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}; expected a text file") from None
        if len(data) > MAX_BYTES:
            raise ValueError(f"{path} has {len(data):,} bytes; codex reads {MAX_BYTES:,} at most: shorten it")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8; expected a text file in UTF-8") from None

    def _config(self, place: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield dotted keys and their values. Raises ValueError."""
        if not isinstance(value, dict):
            raise ValueError(f"is {_described(value)}; expected a table of keys of codex's configuration")
        for key, each in _flat(value):
            remedy = _OF_RUN.get(key) or _OF_RUN.get(key.partition(".")[0])
            problem = f"cannot be set by a variant: {remedy}" if remedy else _value_problem(each)
            if problem is None:
                yield key, each
            else:
                self._problems.append(f"{place}.{printable(key)}: {problem}")


def _flat(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a table with keys that cannot be dotted is a value."""
    for key, value in table.items():
        name = f"{path}{key}"
        if isinstance(value, dict) and value and all(map(_PLAIN_KEY.fullmatch, value)):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _value_problem(value: Any) -> str | None:
    """The reason why a value of TOML cannot be sent as JSON; None if it can."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return next(filter(None, map(_value_problem, inner)), None)
    is_right = isinstance(value, str | int | float) and (not isinstance(value, float) or math.isfinite(value))
    return None if is_right else f"is {_described(value)}; expected a string, a finite number, a boolean, list or table"


def _described(value: Any) -> str:
    try:
        return describe(value)
    except TypeError:
        # TOML has dates, JSON has not.
        return f"{value}, of type {type(value).__name__}"


def _shown(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys without their secrets: of environments and headers the names."""
    nested: dict[str, Any] = {}
    for key, value in config.items():
        *path, last = key.split(".")
        table = nested
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    shown = {key: without_secrets(value, key) for key, value in nested.items()}
    return {key: value for key, value in _flat(shown) if value not in (None, {}, [])}


def _near(name: str, known: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(name, known, 1)


def _unknown(name: str, known: Sequence[str]) -> str:
    near = _near(name, known)
    hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(known)}"
    return f"{printable(name)}: is not known; {hint}"


def _listed(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _refuse(problems: list[str]) -> None:
    if problems:
        raise VariantsError(problems)
