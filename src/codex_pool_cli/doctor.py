"""`codex-pool doctor`: what is wrong on this machine, and what to do about it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from codex_pool.runtime.terminal import plain

from . import options
from .errors import reported

if TYPE_CHECKING:
    from .checks.findings import Finding

_COLOURS = {"ok": "\x1b[32m", "warning": "\x1b[33m", "failure": "\x1b[31m", "unknown": "\x1b[33m"}
_RESET = "\x1b[0m"


def examined(function: options.F) -> options.F:
    """Give a verb that examines this machine `--codex-bin` and `--keys`.

    Their keywords are not those of verbs with a pool of their own: here they go with --connect.
    """
    for option in (
        click.option(
            "--keys",
            "keys_directory",
            metavar="DIR",
            envvar="CODEX_POOL_KEYS",
            help="Where the keys are.  [default: $CODEX_POOL_KEYS, else codex-pool/keys in the user's configuration]",
        ),
        click.option(
            "--codex-bin", "binary", metavar="FILE", help="The codex binary.  [default: the installed package's]"
        ),
    ):
        function = option(function)
    return function


@click.command(short_help="Check this machine, the log-in, the keys and the daemon.")
@options.connect_option
@examined
@click.option("--lean", is_flag=True, help="Measure what switches of app-servers save here, instead; see below.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object; its findings have check, level, message, remedy."
)
@click.pass_context
def doctor(
    context: click.Context,
    connect: str | None,
    key: str | None,
    binary: str | None,
    keys_directory: str | None,
    lean: bool,
    as_json: bool,
) -> None:
    """Check what codex-pool needs: Python, the codex binary, its sandbox, the log-in, CODEX_HOME and its growth, disks,
    limits, the clock, the endpoint with its daemon, and keys.

    Changes nothing, asks nothing of the network but the daemon of --connect, and ends within half a minute. Each
    finding has a level: ok, warning, failure, or unknown where a check could not be made.

    --lean checks nothing. It starts app-servers on a home for the time being, runs turns on the built-in model on
    loopback, and shows what each switch of the guide of pools saves here - CPU of a turn, memory, time to start - and
    what is given up for it. It takes up to two minutes, needs no account, and changes nothing either. Its JSON has
    rounds, base and switches.

    \b
    Exit codes:
      0  no finding is a failure
      1  some are
      3  --lean: it could not be measured
    """
    if lean:
        with reported():
            _lean(context, binary, as_json)
        return
    with reported():
        address, key = address_of(context, connect, key)
        from .checks.findings import as_plain, findings_of
        from .checks.run import collect

        found = findings_of(collect(address, key, binary, keys_directory))
    if as_json:
        import json

        click.echo(json.dumps(as_plain(found)))
    else:
        _print(found)
    sys.stdout.flush()
    sys.exit(options.SOME_FAILED if any(each.level == "failure" for each in found) else options.OK)


def _lean(context: click.Context, binary: str | None, as_json: bool) -> None:
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in ("connect", "key", "keys_directory")
        and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"{', '.join(given)}: --lean measures this machine and asks no daemon; leave it out")
    from codex_pool.runtime import startup

    from .lean import measure, table

    startup.interrupt_on_signals()
    with measure.bench(binary) as bench:
        measured = measure.measure_all(bench, lambda text: click.echo(text, err=True))
    if as_json:
        import json

        click.echo(json.dumps(table.as_plain(measure.BASE, bench.switches, measured)))
    else:
        click.echo("\n".join(table.lines_of(measure.BASE, bench.switches, measured)))


def address_of(context: click.Context, connect: str | None, key: str | None) -> tuple[str | None, str | None]:
    """The address that --connect names, None for the default one, and its key. No directory is made for it."""
    if connect in (None, "default"):
        if context.get_parameter_source("key") is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("--key goes with --connect tcp://HOST:PORT")
        return None, None
    return options.endpoint_of(context, connect, key)


def _print(found: list[Finding]) -> None:
    styled = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    lines = []
    for each in found:
        begin, end = (_COLOURS[each.level], _RESET) if styled else ("", "")
        lines.append(f"{begin}{each.level:<8}{end} {each.check:<12} {plain(each.message)}")
        if each.remedy:
            lines.append(f"{'':<21} -> {plain(each.remedy)}")
    # What may control the terminal has been taken out of each line.
    out = getattr(sys.stdout, "raw_text", sys.stdout)
    out.write("\n".join(lines) + "\n")
