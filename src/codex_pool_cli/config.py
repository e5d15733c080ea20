"""`codex-pool config`: the options of a daemon's pool, and what is wrong with them."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from . import options, pool_options
from .groups import Grouped, group

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from codex_pool.option_sources import Problem, Value


@click.group(short_help="Show and check the options of a daemon: show, check.")
def config() -> None:
    """Show and check the options with which `codex-pool serve` would start.

    They come from a TOML file, from variables CODEX_POOL_<OPTION> and from the command line; later ones go before. The
    file is the one of --pool-config, else of $CODEX_POOL_CONFIG, else codex-pool/config.toml in the user's
    configuration. `codex-pool batch` and `codex-pool score` read a file only if their command names it.
    """


@config.command(short_help="Show the options that count, and where each comes from.", cls=Grouped)
@pool_options.daemon_options
@group("Output")
@click.option("--origin", is_flag=True, help="Add where each value comes from: FILE:LINE, a variable, or a flag.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def show(context: click.Context, /, origin: bool, as_json: bool, **given: Any) -> None:
    """Show the options with which `codex-pool serve`, with the same options here, would start.

    The output is a file for --pool-config: the default of an option that has no value is a comment.

    \b
    Exit codes:
      0  shown
      2  something is wrong: see codex-pool config check
    """
    found = pool_options.given_of(context)
    if found.problems:
        _fail(found.problems)
    values = found.with_flags(pool_options.flags_of(context))
    file = _file_read(found.file)
    if as_json:
        rows = {
            name: {"value": each.value, "from": each.source, **({"at": each.where} if each.where else {})}
            for name, each in values.items()
        }
        shown = {"file": file, "options": rows, "warnings": [_record(each) for each in found.warnings]}
        click.echo(json.dumps(shown))
        return
    _warn(found.warnings)
    click.echo(f"# {found.file}" + ("" if file else ", which is not there"))
    for line in _lines(values, with_origin=origin):
        click.echo(line)


@config.command(short_help="Report all that is wrong with a configuration.")
@click.argument("file", required=False, metavar="[FILE]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(file: str | None, as_json: bool) -> None:
    """Check FILE, or the file that `codex-pool serve` would read, with the environment. Nothing is started.

    \b
    Exit codes:
      0  nothing is wrong; there may be warnings
      2  something is, or FILE cannot be read
    """
    from codex_pool.daemon.options_check import problems_of
    from codex_pool.option_sources import read_given

    found = read_given(file, os.environ)
    problems = found.problems or problems_of(found.with_flags({}))
    read = _file_read(found.file)
    if as_json:
        rows = [_record(each) for each in problems]
        shown = {"ok": not problems, "file": read, "problems": rows, "warnings": [_record(w) for w in found.warnings]}
        click.echo(json.dumps(shown))
    else:
        _warn(found.warnings)
        for problem in problems:
            click.echo(str(problem), err=True)
        if not problems:
            click.echo(f"{found.file}: " + ("valid" if read else "not there, so defaults and variables count"))
    if problems:
        sys.exit(options.USAGE)


def _lines(values: Mapping[str, Value], *, with_origin: bool) -> list[str]:
    import tomli_w

    from codex_pool.options import fields

    rows = []
    for field in fields():
        each = values[field.name]
        if each.value is None and field.kind is str:
            rows.append((f"# {field.name}: {field.option.default}", each))
        else:
            value = 0 if each.value is None else each.value
            rows.append((tomli_w.dumps({field.name: value}).strip(), each))
    width = max(len(text) for text, _ in rows if len(text) <= 44)
    return [f"{text:<{width}}  # {each.where or each.source}" if with_origin else text for text, each in rows]


def _file_read(file: str) -> str | None:
    return file if os.path.exists(file) else None


def _record(problem: Problem) -> dict[str, str]:
    return {"where": problem.where, "message": problem.message}


def _warn(warnings: Sequence[Problem]) -> None:
    for warning in warnings:
        click.echo(f"codex-pool: warning: {warning}", err=True)


def _fail(problems: Sequence[Problem]) -> None:
    for problem in problems:
        click.echo(str(problem), err=True)
    sys.exit(options.USAGE)
