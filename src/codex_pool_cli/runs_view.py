"""`codex-pool runs view`: runs in a browser, while they go on and afterwards."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from . import options
from .errors import fail

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path, resolve_path=True)


@click.command()
@click.argument("directories", metavar="[DIRECTORY]...", nargs=-1, type=_DIRECTORY)
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="Of 127.0.0.1.  [default: any]")
def view(directories: tuple[Path, ...], port: int) -> None:
    """Serve pages of the runs in DIRECTORY and three levels below, the current one unless given, until Ctrl-C.

    Prints the address to open. A page is as that of `codex-pool report`, and follows its run: figures, samples, and the
    transcript of a sample while it runs. The address has a token, and only this machine is served; for another one:
    ssh -L PORT:127.0.0.1:PORT HOST, with --port PORT.
    """
    from codex_batch.view.runs import Runs
    from codex_batch.view.server import ViewServer

    try:
        server = ViewServer(Runs(directories or (Path.cwd(),)), port)
    except OSError as error:
        fail(f"--port {port}: {error.strerror or error}; name another port", options.USAGE)
    with server:
        click.echo(server.address)
        click.echo("codex-pool: open this address in a browser; Ctrl-C ends it", err=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
