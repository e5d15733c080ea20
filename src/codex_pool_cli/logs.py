"""`codex-pool logs`: the log of a daemon."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from codex_pool.runtime.terminal import plain

from . import options
from .errors import fail, reported

LOOK_EVERY_S = 0.25
DEFAULT_LINES = 100


@click.command(short_help="Show the log of a daemon, or follow it.")
@click.argument("worker", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now on, until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    metavar="N",
    type=click.IntRange(min=0),
    default=DEFAULT_LINES,
    show_default=True,
    help="The last N lines.",
)
@options.connect_option
@click.pass_context
def logs(
    context: click.Context, worker: str | None, follow: bool, lines: int, connect: str | None, key: str | None
) -> None:
    """Show the end of the log of a daemon that runs with --log-file; of one WORKER, by its name or slot, what it has
    logged and what others say of it.

    Warnings and errors that an app-server writes to stderr are in it, as lines of its worker. Secrets that are known
    here are taken out.
    """
    endpoint, key = options.endpoint_of(context, connect, key)
    with reported():
        from codex_pool.auth.keys import default_directory
        from codex_pool.protocol import endpoints

        from .bundle.members import redactor
        from .checks.endpoint import ask
        from .checks.run import homes
        from .log_tail import LogTail, OfWorker

        address = endpoint or endpoints.default_endpoint()
        import msgspec

        status: dict[str, Any] = msgspec.json.decode(ask(address, key, "pool/status", {}, "codex-pool logs"))
        path = _path(status, address)
        chosen = OfWorker(*_worker(status, worker))
        redact = redactor(homes(endpoint), None, default_directory())
        tail = LogTail(path)
        try:
            found = [line for line in tail.last() if chosen.takes(line)]
            _print(redact(line) for line in found[max(0, len(found) - lines) :])
            while follow:
                time.sleep(LOOK_EVERY_S)
                _print(redact(line) for line in tail.more() if chosen.takes(line))
        finally:
            tail.close()


def _path(status: dict[str, Any], address: str) -> Path:
    """The file that the daemon logs to. Exits with a message where there is none to be read."""
    from codex_pool.protocol import endpoints

    log = status.get("log")
    if log is None:
        fail("a limited key is not shown the log; ask the pool's owner", options.SOME_FAILED)
    if "file" not in log:
        fail("the daemon is older than this command and does not name its log; restart it", options.SOME_FAILED)
    if log["file"] is None:
        fail(
            "the daemon logs to its stderr, such as the journal of its unit; to have the log here start it with "
            "codex-pool serve --log-file FILE",
            options.SOME_FAILED,
        )
    if endpoints.is_tcp(address):
        fail(f"the log is {log['file']} on the daemon's machine; run codex-pool logs there", options.SOME_FAILED)
    return Path(log["file"])


def _worker(status: dict[str, Any], wanted: str | None) -> tuple[str | None, int | None]:
    """The name and the pid of a worker by its name or slot. Of one that has ended the pid is not known."""
    if wanted is None:
        return None, None
    rows = [*status.get("workers", ()), *status.get("draining", ())]
    for row in rows:
        if row.get("worker") and wanted in (row["worker"], str(row["slot"])):
            return row["worker"], row.get("pid")
    if wanted.isdigit():
        known = ", ".join(str(row["slot"]) for row in rows) or "none"
        raise click.UsageError(
            f"slot {wanted} has no worker now; there are slots {known}; name a worker, as w0.1-51ac0e"
        )
    return wanted, None


def _print(lines: Any) -> None:
    # What may control the terminal is taken out of each line.
    out = getattr(sys.stdout, "raw_text", sys.stdout)
    for line in lines:
        out.write(f"{plain(line)}\n")
    out.flush()
