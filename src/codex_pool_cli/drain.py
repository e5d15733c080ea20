"""`codex-pool drain`: lets turns finish, and takes no new ones."""

from __future__ import annotations

from typing import Any

import click

from . import options
from .errors import fail
from .steering import Operator, operator, operator_options, waits_for


@click.command(short_help="Let the turns of a daemon, or of a worker, finish, and take no new ones.")
@click.argument("worker", required=False)
@click.option("--wait", is_flag=True, help="Wait until nothing runs any more.")
@click.option(
    "--approval-grace",
    type=float,
    metavar="S",
    help="Interrupt turns that have waited for a person for so many seconds, from now on.  [default: wait for them]",
)
@operator_options
@click.pass_context
def drain(
    context: click.Context,
    worker: str | None,
    wait: bool,
    approval_grace: float | None,
    connect: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Let turns finish, and take no new ones. `resume` ends it.

    Of a daemon, new turns and threads are refused with an error after which clients may retry. The WORKER of a slot
    (`1`, or the beginning of its name) ends once its turns are over, and its slot stays empty; threads move to others.
    """
    params: dict[str, Any] = {} if worker is None else {"worker": worker}
    if approval_grace is not None:
        params["approvalGrace"] = approval_grace
    with operator(context, connect, key, as_json=as_json) as daemon:
        result = daemon.ask("pool/drain", params)
        if wait and worker is None:
            _wait_for_all(daemon)
        elif wait:
            _wait_for(daemon, set(result["workers"]))
    if wait:
        click.echo("drained", err=True)


def _wait_for_all(daemon: Operator) -> None:
    while not (status := daemon.status()).get("drained"):
        if status["mode"] not in ("draining", "stopping"):
            fail("the drain was ended by `codex-pool resume`", options.SOME_FAILED)
        daemon.show(waits_for(status))
        daemon.wait()


def _wait_for(daemon: Operator, names: set[str]) -> None:
    while True:
        status = daemon.status()
        rows = {row["worker"]: row for row in (*status["workers"], *status["draining"]) if "worker" in row}
        left = [rows[name] for name in names & rows.keys()]
        if not left:
            return
        turns, waiting = (sum(row[count] for row in left) for count in ("turns", "waiting"))
        if turns:
            daemon.show({"turns": turns, "clients": {}, "waiting": waiting})
        daemon.wait()
