"""`codex-pool serve`: a pool as a daemon."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from codex_pool.cli import options, streams
from codex_pool.cli.errors import reported

if TYPE_CHECKING:
    from codex_pool.pool import Pool


@click.command(short_help="Run a pool as a daemon that programs connect to.")
@click.option(
    "--endpoint",
    metavar="ipc:///PATH",
    help="Where clients connect.  [default: default.sock in the user's runtime directory]",
)
@click.option(
    "--listen",
    metavar="tcp://HOST:PORT",
    help="Where clients with a key connect as well; `codex-pool keys new NAME` makes one.",
)
@options.keys_option
@click.option(
    "--home",
    metavar="own|user|PATH",
    help="CODEX_HOME: one of the daemon's own, made from yours without the directories that it trusts; your own; or "
    "PATH.  [default: own with --listen, else user]",
)
@options.pool_options
@options.limit_options
@options.demo_option
@click.option(
    "--json", "as_json", is_flag=True, help="JSON lines on stdout: a launch record once ready, a done record last."
)
def serve(
    endpoint: str | None,
    listen: str | None,
    keys: str | None,
    home: str | None,
    workers: int,
    turns_per_worker: int,
    overrides: tuple[str, ...],
    codex_bin: str | None,
    demo: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Run a pool as a daemon until Ctrl-C or SIGTERM.

    Programs connect with codex_pool.connect(), the command line with --connect. Only the same user can connect,
    and with --listen who has a key.
    """
    from codex_pool.daemon.config import DaemonConfig
    from codex_pool.daemon.lifecycle import run_daemon

    if home is not None and demo:
        raise click.UsageError("--demo has a home of its own and cannot go with --home")
    if home == "":
        raise click.BadParameter("is empty; give own, user, or an existing CODEX_HOME", param_hint="--home")
    config = DaemonConfig(
        endpoint, workers, turns_per_worker, overrides, codex_bin, demo, listen=listen, keys=keys, home=home, **limits
    )

    def on_ready(pool: Pool) -> None:
        if as_json:
            tcp = {} if listen is None else {"listen": listen}
            launch = {"endpoint": pool.endpoint, **tcp, "workers": workers, "pid": pool.supervisor_pid}
            _say({"record": "launch", **launch})
        if listen is not None:
            click.echo(f"  also  {listen}, for clients with a key (codex-pool keys list)", err=True)
        where = "" if endpoint is None else f" --connect {pool.endpoint}"
        click.echo(
            f"codex-pool: {workers} {'worker' if workers == 1 else 'workers'} ready on {pool.endpoint}", err=True
        )
        click.echo(f'  try   codex-pool run "hello"{where}', err=True)
        click.echo(f"        codex-pool status{where}", err=True)
        click.echo("  stop  Ctrl-C", err=True)
        missing = None if demo else _missing_login(pool, endpoint)
        if missing is not None:
            click.echo(f"codex-pool: {missing}", err=True)
            if as_json:
                _say({"record": "warning", "kind": "login_missing", "message": missing})

    streams.unblock("the daemon goes on", patience_s=1.0)
    with reported():
        notice = config.notice()
        if notice is not None:
            click.echo(f"codex-pool: {notice}", err=True)
        if home == "user" and listen is not None:
            click.echo(
                "codex-pool: --home user: threads of clients with a key are stored among yours, and directories that "
                "codex trusts for keys with danger-full-access are trusted in your home",
                err=True,
            )
        run_daemon(config, on_ready)
    if as_json:
        _say({"record": "done", "exit_code": options.OK})
    click.echo("codex-pool: stopped", err=True)


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
