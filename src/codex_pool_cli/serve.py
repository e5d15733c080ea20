"""`codex-pool serve`: a pool as a daemon."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from codex_app_server._runtime.text import plural

from . import options, pool_options, streams
from .errors import reported
from .groups import Grouped, group

if TYPE_CHECKING:
    from codex_pool.options import PoolOptions
    from codex_pool.pool import Pool


@click.command(short_help="Run a pool as a daemon that programs connect to.", cls=Grouped)
@pool_options.pool_options(of_run=False)
@click.option(
    "--home",
    metavar="own|user|PATH",
    help="CODEX_HOME: one of the daemon's own, made from yours without the directories that it trusts; your own; or "
    "PATH.  [default: own where keys let others in, else user]",
)
@options.demo_option
@group("Output")
@click.option(
    "--json", "as_json", is_flag=True, help="JSON lines on stdout: a launch record once ready, a done record last."
)
@click.pass_context
def serve(
    context: click.Context,
    /,
    home: str | None,
    overrides: tuple[str, ...],
    codex_bin: str | None,
    demo: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Run a pool as a daemon until Ctrl-C, SIGTERM or `codex-pool stop`.

    SIGTERM and `stop` wait for running turns first, for up to --drain-timeout; Ctrl-C ends it at once. SIGHUP reads its
    configuration again, as `codex-pool reload` does.

    Programs connect with codex_pool.connect(), the command line with --connect; codex itself, editors and other
    clients of `codex app-server` with --listen-unix, --listen-ws or --control-socket. Only the same user can connect,
    and clients with a key where --listen or one of these lets keys in.
    """
    from codex_pool.daemon.config import DaemonConfig
    from codex_pool.daemon.lifecycle import run_daemon

    if home is not None and demo:
        raise click.UsageError("--demo has a home of its own and cannot go with --home")
    if home == "":
        raise click.BadParameter("is empty; give own, user, or an existing CODEX_HOME", param_hint="--home")
    asked = pool_options.take(given)
    endpoint, listen, workers = asked.endpoint, asked.listen, asked.workers
    sources = pool_options.given_of(context)
    source = sources.source(pool_options.flags_of(context))
    config = DaemonConfig(asked, overrides, codex_bin, demo, home=home, source=source)
    for warning in sources.warnings:
        click.echo(f"codex-pool: warning: {warning}", err=True)

    def on_ready(pool: Pool) -> None:
        if as_json:
            named = ("listen", "listen_unix", "listen_ws")
            more = {name: getattr(asked, name) for name in named if getattr(asked, name) is not None}
            launch = {"endpoint": pool.endpoint, **more, "workers": workers, "pid": pool.supervisor_pid}
            _say({"record": "launch", **launch})
        where = "" if endpoint is None else f" --connect {pool.endpoint}"
        click.echo(f"codex-pool: {plural(workers, 'worker')} ready on {pool.endpoint}", err=True)
        if listen is not None:
            click.echo(f"  also  {listen}, for clients with a key (codex-pool keys list)", err=True)
        for line in _listeners(asked):
            click.echo(f"  also  {line}", err=True)
        click.echo(f'  try   codex-pool run "hello"{where}', err=True)
        click.echo(f"        codex-pool status{where}", err=True)
        click.echo("  stop  Ctrl-C", err=True)
        missing = None if demo else _missing_login(pool, endpoint)
        if missing is not None:
            click.echo(f"codex-pool: {missing}", err=True)
            if as_json:
                _say({"record": "warning", "kind": "login_missing", "message": missing})

    def on_drain(text: str) -> None:
        if as_json:
            _say({"record": "draining", "message": text})
        click.echo(f"codex-pool: {text}", err=True)

    streams.unblock("the daemon goes on", patience_s=1.0)
    with reported():
        notice = config.notice()
        if notice is not None:
            click.echo(f"codex-pool: {notice}", err=True)
        if home == "user" and asked.lets_keys_in:
            click.echo(
                "codex-pool: --home user: threads of clients with a key are stored among yours, and directories that "
                "codex trusts for keys with danger-full-access are trusted in your home",
                err=True,
            )
        run_daemon(config, on_ready, on_drain)
    if as_json:
        _say({"record": "done", "exit_code": options.OK})
    click.echo("codex-pool: stopped", err=True)


def _listeners(asked: PoolOptions) -> Iterator[str]:
    if asked.listen_unix is not None:
        group = "" if asked.listen_group is None else f", for this user and users of {asked.listen_group} with a key"
        yield f"codex --remote unix://{os.path.abspath(asked.listen_unix)}{group}"
    if asked.listen_ws is not None:
        scheme = "ws" if asked.tls_cert is None else "wss"
        token = "" if asked.insecure_no_auth else " --remote-auth-token-env VAR  (codex-pool keys token FILE)"
        yield f"codex --remote {scheme}://{asked.listen_ws}{token}"
    if asked.control_socket:
        yield "codex, which finds this pool by itself"


def _missing_login(pool: Pool, endpoint: str | None) -> str | None:
    from codex_app_server import AppServerError
    from codex_pool import account_notice

    try:
        with pool.connect(name="codex-pool serve") as codex:
            return account_notice.notice(codex, account_notice.remedy(endpoint))
    except AppServerError:
        # The daemon serves all the same.
        return None


def _say(record: dict[str, object]) -> None:
    print(json.dumps(record), flush=True)
