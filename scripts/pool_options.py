"""Writes what is made of `codex_pool.options.PoolOptions`: the keywords of `Pool`, and docs/reference/pool-options.md.

python scripts/pool_options.py            write both
python scripts/pool_options.py --check    exit with 1 where one is not what it should be
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from codex_pool.options import GROUPS, LIVE, OF_RUNS, TAKES_PATHS, Field, fields

ROOT = Path(__file__).parents[1]
POOL = ROOT / "src" / "codex_pool" / "pool.py"
PAGE = ROOT / "docs" / "reference" / "pool-options.md"
BEGIN = "    # Made of PoolOptions by scripts/pool_options.py, down to the next such line: `make options`.\n"
END = "    # End of what is made of PoolOptions.\n"
CONFIG = "config: AppServerConfig | None = None"
ON_SLOTS = "on_slots: OnSlots | None = None"
TEXTS = {
    "config": "How each app-server is started; the pool adds only switches that the model cannot see.",
    "on_slots": "Called with the slots' states, from a thread of the pool, whenever they change.",
}
PAGE_HEAD = """\
# Options of a pool

Every pool takes these, under the same names: `Pool(workers=4)`, `codex-pool serve --workers 4`, `workers = 4` in a
TOML file that `--pool-config FILE` names. `batch` and `score` make a pool of their own with the same options, but for
those of connections: nobody else connects to it, and its log is in the run directory. What the command line says goes
before what the file says. `serve` also reads a default file and the environment, `CODEX_POOL_WORKERS=4`: see
[configuration](../operate.md#configuration).

A limit of `None`, on the command line and in a file 0, is none. Units are in the names: `_s` is seconds, `_bytes`
bytes. A value that an option cannot have is refused before anything starts, with its name, the value and what was
expected. What recycling is: [the daemon](../guides/daemon.md#recycling).

This page is made by `make options`.
"""
PAGE_TABLE = """
## {group}

Of {places}. {live}

| keyword, key | option | variable of `serve` | type | default | |
|---|---|---|---|---|---|
"""


def annotation(field: Field) -> str:
    """The type of the keyword: paths may be given as such."""
    parts = [field.kind.__name__]
    if field.option.takes in TAKES_PATHS:
        parts.append("os.PathLike[str]")
    if field.optional:
        parts.append("None")
    return " | ".join(parts)


def literal(value: object) -> str:
    """A default as source; long numbers in groups of digits."""
    return f"{value:_}" if isinstance(value, int) and not isinstance(value, bool) else repr(value)


def keywords(of: Sequence[Field]) -> str:
    """The source of `Pool.__init__`."""
    given = [f"{field.name}: {annotation(field)} = {literal(field.default)}" for field in of]
    parameters = ["self", given[0], CONFIG, "*", *given[1:], ON_SLOTS]
    lines = ["def __init__(", *(f"    {each}," for each in parameters), ") -> None:"]
    lines += ['    """Keywords, as options of a pool; see docs/reference/pool-options.md.', ""]
    texts = {field.name: field.option.help for field in of} | TEXTS
    for name in (of[0].name, "config", *(field.name for field in of[1:]), "on_slots"):
        lines += textwrap.wrap(
            f"`{name}`: {texts[name]}", 112, initial_indent="    ", subsequent_indent="        ", break_long_words=False
        )
    lines += ["", "    Raises InvalidInputError.", '    """', "    self._options = options_of(", "        {"]
    lines += [f'            "{field.name}": {field.name},' for field in of]
    lines += ["        }", "    )", "    self._set_up(config, on_slots)"]
    return textwrap.indent("\n".join(lines), "    ", lambda line: line.strip() != "") + "\n\n"


def with_keywords(source: str, of: Sequence[Field]) -> str:
    """The source of pool.py with the keywords written again."""
    head, begin, rest = source.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{POOL}: expected the lines {BEGIN.strip()!r} and {END.strip()!r}")
    return head + BEGIN + keywords(of) + END + tail


def shown_default(field: Field) -> str:
    """The default in words."""
    if field.default is None:
        return field.option.default
    if field.kind is bool:
        return "no"
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def page(of: Sequence[Field]) -> str:
    """The page of the docs."""
    parts = [PAGE_HEAD]
    for group in GROUPS:
        places = "`Pool`, `serve`, `batch`, `score`" if group in OF_RUNS else "`Pool` and `serve`"
        live = "A daemon that runs takes new values" if group in LIVE else "New values need a restart of the daemon"
        parts.append(PAGE_TABLE.format(group=group, places=places, live=f"{live}."))
        for field in of:
            if field.option.group == group:
                kind = annotation(field).replace("|", "\\|")
                flag = field.flag if field.kind is bool else f"{field.flag} {field.option.metavar}"
                variable = f"`{field.envvar}`" if field.envvar else "-"
                cells = (f"`{field.name}`", f"`{flag}`", variable, f"`{kind}`", shown_default(field))
                parts.append(f"| {' | '.join(cells)} | {field.option.help} |\n")
    return "".join(parts)


def main() -> int:
    """Write, or check; the exit code."""
    found = {POOL: with_keywords(POOL.read_text(), fields()), PAGE: page(fields())}
    if sys.argv[1:] == ["--check"]:
        wrong = [
            str(path.relative_to(ROOT)) for path, text in found.items() if not path.exists() or path.read_text() != text
        ]
        if wrong:
            print(f"{', '.join(wrong)}: not as PoolOptions says; run `make options`", file=sys.stderr)
        return 1 if wrong else 0
    for path, text in found.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
