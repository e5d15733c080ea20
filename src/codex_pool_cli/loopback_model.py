"""`codex-pool loopback-model`: the scripted model server alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from . import streams
from .errors import fail

if TYPE_CHECKING:
    from codex_app_server.testing.loopback import LoopbackModel


@click.command("loopback-model", short_help="Run the built-in scripted model server on loopback.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0 takes a free one.")
@click.option("--script", metavar="FILE", help="A script of answers; `demo` is the one of --demo.")
@click.option(
    "--write-home", type=click.Path(file_okay=False), help="Also make this directory a CODEX_HOME that uses the model."
)
def loopback_model(port: int, script: str | None, write_home: str | None) -> None:
    """Run the built-in model server on 127.0.0.1 until Ctrl-C.

    It speaks the Responses API and answers by script, so that codex runs real turns without account or network.
    """
    from codex_app_server.testing.loopback import serve_forever, write_loopback_home

    def on_ready(model: LoopbackModel) -> None:
        click.echo(f"codex-pool: loopback model ready at {model.base_url}", err=True)
        if write_home is not None:
            write_loopback_home(write_home, model.base_url)
            click.echo(f"  try   CODEX_HOME={write_home} codex-pool run hello", err=True)

    streams.unblock("the model goes on", patience_s=1.0)
    try:
        serve_forever(port, script, on_ready=on_ready)
    except (OSError, ValueError) as error:
        fail(str(error), 2)
