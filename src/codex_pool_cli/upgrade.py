"""`codex-pool upgrade`: another codex binary for a daemon that runs."""

from __future__ import annotations

import os
from typing import Any

import click

from . import options
from .errors import fail
from .steering import Operator, operator, operator_options

_UNDER_WAY = ("checking", "replacing", "going back")


@click.command(short_help="Have a daemon run another codex binary, without a failed turn.")
@click.option(
    "--codex-bin",
    # Another name than that of the option which makes a pool of one's own: this one goes with --connect.
    "binary",
    metavar="FILE",
    help="The codex binary, on the daemon's machine.  [default: the path that it runs, where there is another file]",
)
@click.option("--probe-turn", is_flag=True, help="Try it out with a turn too, which costs what a short one does.")
@click.option("--self", "of_self", is_flag=True, help="Upgrade codex-pool itself, to what is installed now.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the end; `codex-pool status` shows it.")
@operator_options
@click.pass_context
def upgrade(
    context: click.Context,
    binary: str | None,
    probe_turn: bool,
    of_self: bool,
    no_wait: bool,
    connect: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Have a daemon run another codex binary, until it is started again.

    The binary is tried out first, beside the workers and with a copy of a stored thread. Then the workers are replaced
    one after the other, as `recycle` does: turns that run finish, threads keep their histories and sandboxes. If any
    step fails, all workers go back to the binary that they had.

    With --self, codex-pool: after `pip install` of another version, the daemon becomes it without ending. Clients that
    are connected connect again by themselves.

    Ctrl-C ends the command and not the upgrade.

    \b
    Exit codes:
      0  all workers run the binary
      1  refused, or it has failed: the workers run what they have run before
      3  there is no daemon at the endpoint
    """
    if of_self:
        if binary is not None or probe_turn:
            raise click.UsageError("--self is about codex-pool; --codex-bin and --probe-turn are about codex")
        _upgrade_self(context, connect, key, as_json=as_json, no_wait=no_wait)
        return
    if binary == "":
        raise click.BadParameter("is empty; name a file", param_hint="--codex-bin")
    params: dict[str, Any] = {"probeTurn": True} if probe_turn else {}
    if binary is not None:
        is_here = connect is None or not connect.startswith("tcp://")
        params["codexBin"] = os.path.abspath(binary) if is_here else binary
    with operator(context, connect, key, as_json=as_json) as daemon:
        asked = daemon.ask("pool/upgrade", params, shows=not as_json or no_wait)
        found = asked["upgrade"] if no_wait or not _is_under_way(asked["upgrade"]) else _wait_for(daemon)
        if as_json and not no_wait:
            daemon.print_json({**asked, "upgrade": found})
    if not no_wait and asked["changed"] and found["state"] == "failed":
        fail(f"the upgrade to {found['codexBin']} has failed: {found['problem']}", options.SOME_FAILED)
    if not no_wait and found.get("state") == "done" and not as_json:
        click.echo(f"all workers run {found['codexBin']} (codex {found['codexVersion']})")


def _upgrade_self(
    context: click.Context, connect: str | None, key: str | None, *, as_json: bool, no_wait: bool
) -> None:
    with operator(context, connect, key, as_json=as_json) as daemon:
        asked = daemon.ask("pool/upgradeSelf", {}, shows=not as_json or no_wait)
        row = asked["codexPool"]
        # The broker that answers has the row of before until the next supervisor has sent its own.
        while not no_wait and _is_under_way(row):
            daemon.wait()
            row = daemon.status().get("codexPool", row)
        if as_json and not no_wait:
            daemon.print_json({**asked, "codexPool": row})
    if not no_wait and row["state"] == "failed":
        fail(f"the upgrade of codex-pool has failed: {row['problem']}", options.SOME_FAILED)
    if not no_wait and not as_json:
        click.echo(f"all processes run codex-pool {row['version']}")


def _is_under_way(row: dict[str, Any]) -> bool:
    return row.get("state") in _UNDER_WAY


def _wait_for(daemon: Operator) -> dict[str, Any]:
    """Wait for the end of an upgrade, and return it."""
    from codex_pool.daemon.status_text import upgrade_text

    while True:
        row: dict[str, Any] = daemon.status().get("upgrade", {})
        if row and not _is_under_way(row):
            return row
        if row:
            daemon.say(upgrade_text(row))
        daemon.wait()
