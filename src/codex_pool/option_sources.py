"""Sources of the options of a pool: a TOML file and, for a daemon, the environment and the command line. Pure but for
the functions that read.

    default  <  file: FILE, $CODEX_POOL_CONFIG, or the default file  <  $CODEX_POOL_<OPTION>  <  command line

A later source goes before an earlier one. Each value is kept with its origin, and all problems of a source are found at
once. A pool that belongs to a run takes none of the environment and no default file: its options are those of its
command.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from .options import GROUPS, Field, Group, fields, invalid
from .runtime.startup import as_utf8

Source = Literal["default", "file", "environment", "command line"]

PREFIX = "CODEX_POOL_"
FILE_VARIABLE = "CODEX_POOL_CONFIG"
# Of commands of this project beside `serve`, and of those that they start.
_OTHERS = frozenset(
    PREFIX + name
    for name in (
        *("CONFIG", "ENDPOINT", "KEY", "TOKEN", "CODEX_BIN", "RUN", "STATE", "EXIT_CODE", "WORKSPACE", "NAME"),
        *("SAMPLE", "SAMPLE_ID", "EPOCH", "VARIANT", "TASK", "HOOK", "ARTIFACTS"),
    )
)
# Kubernetes sets these for a service that is named codex-pool.
_OF_SERVICES = re.compile(PREFIX + r"(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_\w+)?)")
# Files with more errors of syntax are no TOML.
_MAX_SYNTAX_ERRORS = 10
_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")
_LIKE = "expected a TOML file with lines such as workers = 4"


class Value(NamedTuple):
    """A value of an option. `where`: FILE:LINE, a variable or a flag; "" for a default."""

    value: Any
    source: Source
    where: str = ""


class Problem(NamedTuple):
    """An error, or a warning. `where`: FILE:LINE, FILE, or a variable; "" for one of options together."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class Layer(NamedTuple):
    """The options that one source gives, None for no limit, and what is wrong with it."""

    values: dict[str, Value]
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


class Given(NamedTuple):
    """Options from file and environment of a daemon. `file` is absolute, and need not be there unless `is_named`."""

    file: str
    is_named: bool
    values: dict[str, Value]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]

    def with_flags(self, flags: Mapping[str, Any]) -> dict[str, Value]:
        """The values of all options, each with its origin; `flags` are those of the command line, by option."""
        known = fields()
        line = {
            field.name: Value(flags[field.name], "command line", field.flag) for field in known if field.name in flags
        }
        return merged(known, [self.values, line])

    def source(self, flags: Mapping[str, Any]) -> ConfigSource:
        """Return the source from which a daemon with these flags reads its options again."""
        values = self.with_flags(flags)
        over = ("environment", "command line")
        return ConfigSource(
            file=as_utf8(self.file),
            # One that was there does not vanish unnoticed.
            is_required=self.is_named or any(value.source == "file" for value in values.values()),
            over={name: value.value for name, value in values.items() if value.source in over},
            running={name: value.value for name, value in values.items()},
        )


class ConfigSource(msgspec.Struct, frozen=True, kw_only=True):
    """Source from which a daemon reads its options again. `file`: an absolute path; it must be there if `is_required`.

    `over`: values that go before those of the file, from the environment and the command line. `running`: the value of
    every option, as the sources gave it, that is in force.
    """

    file: str
    is_required: bool
    over: dict[str, Any]
    running: dict[str, Any]


# Layers.


def of_file(shown: str, data: bytes, known: Sequence[Field]) -> Layer:
    """The options in a TOML file: a line each, named as the keywords of `Pool`; 0 is no limit."""
    import tomli

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Layer({}, (Problem(shown, f"{error}; expected a TOML file in UTF-8"),))
    text = text.replace("\r\n", "\n")
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    lines = text.split("\n")
    for _ in range(_MAX_SYNTAX_ERRORS):
        try:
            # With a last newline, what is missing at the end of a line is reported as of that line.
            found = tomli.loads("\n".join(lines) + "\n")
            break
        except (tomli.TOMLDecodeError, RecursionError) as error:
            at = _AT_LINE.search(str(error))
            number = int(at[1]) if at else 0
            message = _AT_LINE.sub("", str(error)).strip()
            problems.append(Problem(f"{shown}:{number}" if number else shown, f"{message}; {_LIKE}"))
            if not 0 < number <= len(lines):
                break
            # The others may be right.
            lines[number - 1] = ""
    numbers = _line_numbers(lines)
    by_name = {field.name: field for field in known}
    values: dict[str, Value] = {}
    for name, value in found.items():
        where = f"{shown}:{numbers[name]}" if name in numbers else shown
        field = by_name.get(name)
        if field is None:
            problems.append(Problem(where, _no_option(name, value, by_name)))
            continue
        problem = None if field.is_none(value) else field.problem(value, none="0")
        if problem is not None:
            problems.append(Problem(where, f"{name} {problem}"))
        else:
            values[name] = Value(None if field.is_none(value) else value, "file", where)
    return Layer(values, tuple(problems))


def of_environment(environ: Mapping[str, str], known: Sequence[Field]) -> Layer:
    """The options in variables CODEX_POOL_<OPTION>; an empty one is not set. Others that begin alike are warnings."""
    by_name = {field.envvar: field for field in known if field.envvar}
    values: dict[str, Value] = {}
    problems: list[Problem] = []
    warnings: list[Problem] = []
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or text == "":
            continue
        field = by_name.get(name)
        if field is None:
            if name not in _OTHERS and not _OF_SERVICES.fullmatch(name):
                meant = nearest(name[len(PREFIX) :], [each[len(PREFIX) :] for each in (*by_name, *_OTHERS)])
                hint = f"; did you mean {PREFIX}{meant}?" if meant else "; codex-pool config show lists the options"
                warnings.append(Problem(name, f"no variable of codex-pool{hint}"))
            continue
        value = field.of_text(text)
        problem = None if field.is_none(value) else field.problem(value, none="0")
        if problem is not None:
            problems.append(Problem(name, problem))
        else:
            values[field.name] = Value(None if field.is_none(value) else value, "environment", name)
    return Layer(values, tuple(problems), tuple(warnings))


def merged(known: Sequence[Field], layers: Iterable[Mapping[str, Value]]) -> dict[str, Value]:
    """The value of each option, by the last layer that has it."""
    found = {field.name: Value(field.default, "default") for field in known}
    for layer in layers:
        found.update(layer)
    return found


# Reading.


def default_file(environ: Mapping[str, str]) -> Path:
    """The file that a daemon reads if none is named: codex-pool/config.toml in the user's configuration."""
    base = environ.get("XDG_CONFIG_HOME") or ""
    root = Path(base) if os.path.isabs(base) else Path(environ.get("HOME") or os.path.expanduser("~"), ".config")
    return root / "codex-pool" / "config.toml"


def file_of(named: str | None, environ: Mapping[str, str]) -> tuple[str, bool]:
    """The file of a daemon, absolute, and whether it was named, so that it must be there."""
    given = named or environ.get(FILE_VARIABLE) or None
    return os.path.abspath(given if given is not None else default_file(environ)), given is not None


def read_given(named: str | None, environ: Mapping[str, str]) -> Given:
    """Read what a daemon reads: the file that is named, or its default one, and the environment."""
    known = fields()
    file, is_named = file_of(named, environ)
    in_file, in_environment = read_layer(file, known, is_required=is_named), of_environment(environ, known)
    return Given(
        file,
        is_named,
        {**in_file.values, **in_environment.values},
        (*in_file.problems, *in_environment.problems),
        in_environment.warnings,
    )


def read_layer(path: str | os.PathLike[str], known: Sequence[Field], *, is_required: bool = True) -> Layer:
    """The options in a file; one that is not there has none, unless it is required."""
    from codex_app_server._runtime.files import read_file

    shown = os.fspath(path)
    try:
        data = read_file(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not is_required:
            return Layer({})
        return Layer({}, (Problem(shown, f"{error.strerror or error}; {_LIKE}"),))
    return of_file(shown, data, known)


def read_options(path: str | os.PathLike[str], groups: Iterable[Group] = GROUPS) -> dict[str, Any]:
    """The options in a TOML file, None for no limit. Raises InvalidInputError with all that is wrong with it."""
    layer = read_layer(path, fields(groups=tuple(groups)))
    if layer.problems:
        raise invalid("\n".join(map(str, layer.problems)))
    return {name: value.value for name, value in layer.values.items()}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like this one, None if none is."""
    import difflib

    plain = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=1, cutoff=0.75)
    return plain[found[0]] if found else None


def _no_option(name: str, value: Any, known: Mapping[str, Field]) -> str:
    if isinstance(value, dict):
        return f"[{name}] is a table; options stand in none, such as workers = 4"
    if name in {field.name for field in fields()}:
        return f"{name} is an option of codex-pool serve only, not of a pool that belongs to a run"
    meant = nearest(name, known)
    return f"no option {name}; " + (f"did you mean {meant}?" if meant else f"there are {', '.join(known)}")


def _line_numbers(lines: Sequence[str]) -> dict[str, int]:
    """The line on which each key outside of tables begins, and each table. Pieces that are TOML by themselves count."""
    import tomli

    found: dict[str, int] = {}
    begin, in_table = 0, False
    for number in range(len(lines)):
        try:
            piece = tomli.loads("\n".join(lines[begin : number + 1]))
        except (tomli.TOMLDecodeError, RecursionError):
            # The first of the lines of one value.
            continue
        for name, value in piece.items():
            is_header = isinstance(value, dict) and lines[begin].lstrip().startswith("[")
            if is_header or not in_table:
                found.setdefault(name, begin + 1)
            in_table = in_table or is_header
        begin = number + 1
    return found
