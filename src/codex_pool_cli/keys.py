"""`codex-pool keys`: who may connect over TCP."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from codex_pool.sandbox_modes import READ_ONLY, SANDBOX_MODES

from .errors import reported
from .key_limits import limit_options, taken, words

_expires = click.option(
    "--expires",
    metavar="WHEN",
    help="The key ends by itself: after 30d, 12h or 45m, or when the day YYYY-MM-DD begins; or never.",
)
_directory = click.option(
    "--keys",
    "directory",
    metavar="DIR",
    envvar="CODEX_POOL_KEYS",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the keys are.  [default: $CODEX_POOL_KEYS, else codex-pool/keys in the user's configuration]",
)


@click.group(short_help="Say who may connect, and how much they may use: new, set, rotate, list, ...")
def keys() -> None:
    """Say who else may connect to `codex-pool serve`, with --listen, --listen-ws or --listen-group.

    Who gets a key is a principal of its own, whatever its name: it has the threads that it made, and no others. A
    running daemon sees a new, renewed or revoked key within a second; the sessions of a key that has ended end.
    """


@keys.command(short_help="Make a key for a new principal and allow it.")
@click.argument("name")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="[default: NAME.key]"
)
@click.option("--admin", is_flag=True, help="It may do all that this user may over ipc, with everybody's threads.")
@click.option(
    "--allow",
    "methods",
    metavar="METHOD",
    multiple=True,
    help="Grant a method beside those of threads and turns, or all that begin alike, such as fs/*; may be repeated.",
)
@click.option(
    "--sandbox",
    type=click.Choice(SANDBOX_MODES),
    default=READ_ONLY,
    show_default=True,
    help="The widest sandbox of its threads.",
)
@click.option(
    "--cwd-root",
    "cwd_roots",
    metavar="DIR",
    multiple=True,
    type=click.Path(file_okay=False, resolve_path=True),
    help="Its threads work here or below; may be repeated.  [default: the current directory]",
)
@click.option(
    "--unix-user",
    metavar="USER",
    help="User of this machine, by name or number, who connects as NAME over `serve --listen-unix PATH "
    "--listen-group GROUP`.",
)
@limit_options
@_expires
@_directory
def new(
    name: str,
    output: Path | None,
    admin: bool,
    methods: tuple[str, ...],
    sandbox: str,
    cwd_roots: tuple[str, ...],
    unix_user: str | None,
    expires: str | None,
    directory: Path | None,
    **limits: Any,
) -> None:
    """Make a key for NAME, allow it, and write the file to hand over.

    NAME is a new principal: it has nothing of one that had this name before. Another key for the same one is made by
    `codex-pool keys renew NAME`.
    """
    with reported():
        from codex_pool.auth.keys import KeyStore, check_name, uid_of
        from codex_pool.auth.principal import Identity

        check_name(name)
        uid = -1 if unix_user is None else uid_of(unix_user)
        file = output or Path(f"{name}.key")
        roots = cwd_roots or (str(Path.cwd()),)
        identity = Identity(
            name=name,
            admin=admin,
            methods=methods,
            sandbox=sandbox,  # type: ignore[arg-type]
            cwd_roots=roots,
            **taken(limits),
        )
        store = KeyStore(directory)
        store.new(identity, file, unix_uid=uid, expires=expires or "never")
        before = [entry for entry in store.known().revoked if entry.name == name]
    may = "everything that you may" if admin else f"{sandbox} at most, in {', '.join(roots)}"
    click.echo(f"codex-pool: {name} may connect: {may}", err=True)
    if before:
        click.echo(
            f"codex-pool: this is a new principal, with none of the threads of the {name} whose key was revoked; to "
            f"give that one a new key instead: codex-pool keys revoke {name}, then codex-pool keys renew {name} "
            f"--principal {before[-1].principal}",
            err=True,
        )
    if unix_user is not None:
        click.echo(f"codex-pool: user {unix_user} is {name} over a Unix socket, without a file", err=True)
    _say_how(name, file)


@keys.command(short_help="Make another key for the same principal; the one before ends.")
@click.argument("name")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="[default: NAME.key]"
)
@click.option(
    "--principal", metavar="ID", help="Which one, where several that were revoked had this name; see `keys list`."
)
@limit_options
@_expires
@_directory
def renew(
    name: str,
    output: Path | None,
    principal: str | None,
    expires: str | None,
    directory: Path | None,
    **limits: Any,
) -> None:
    """Make another key for the principal NAME, with the same grants and threads, and write the file to hand over.

    The key before it ends, and its sessions within a second. NAME may have been revoked, and its key expired; of one
    that expires, --expires must be given. To have the key before it go on for a while, see `codex-pool keys rotate`.
    """
    with reported():
        from codex_pool.auth.keys import KeyStore

        file = output or Path(f"{name}.key")
        KeyStore(directory).renew(name, file, principal=principal, expires=expires, limits=taken(limits))
    click.echo(f"codex-pool: {name} may connect with a new key, and no more with the one before", err=True)
    _say_how(name, file)


@keys.command(short_help="Make another key for the same principal; the one before goes on for a while.")
@click.argument("name")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="[default: NAME.key]"
)
@click.option(
    "--grace",
    metavar="TIME",
    default="24h",
    show_default=True,
    help="How long the key before it stays valid, such as 30d, 12h or 45m.",
)
@_expires
@_directory
def rotate(name: str, output: Path | None, grace: str, expires: str | None, directory: Path | None) -> None:
    """Make another key and token for the principal NAME, and write the file to hand over.

    The key and the token before it stay valid for the time of --grace, over every listener, so that each client changes
    over when it suits; then their sessions end. At once: `codex-pool keys renew NAME`.
    """
    with reported():
        from codex_pool.auth.key_entries import duration_s
        from codex_pool.auth.keys import KeyStore

        file = output or Path(f"{name}.key")
        KeyStore(directory).renew(name, file, expires=expires, grace_s=duration_s(grace))
    click.echo(f"codex-pool: {name} may connect with a new key, and for {grace} with the one before", err=True)
    _say_how(name, file)


@keys.command("set", short_help="Change the limits of a key.")
@click.argument("name")
@limit_options
@_directory
def set_(name: str, directory: Path | None, **limits: Any) -> None:
    """Change the limits of the key of NAME; others stay as they are. A running daemon has them within a second.

    Turns that run are not cut. A turn that waits begins, or is refused, as the limits say then.
    """
    changes = taken(limits)
    if not changes:
        raise click.UsageError("name a limit to change, such as --max-tokens-per-day 1000000")
    with reported():
        from codex_pool.auth.keys import KeyStore

        entry = KeyStore(directory).change(name, changes)
    click.echo(f"codex-pool: {name}: {words(entry) or 'no limits of its own'}", err=True)


def _say_how(name: str, file: Path) -> None:
    click.echo(f"  hand over  {file}  (a secret: who has it is {name})", err=True)
    click.echo(f"  then       codex-pool run hello --connect tcp://HOST:PORT --key {file}", err=True)
    click.echo(f"  or         export CODEX_POOL_TOKEN=$(codex-pool keys token {file})", err=True)
    click.echo("             codex --remote wss://HOST:PORT --remote-auth-token-env CODEX_POOL_TOKEN", err=True)


@keys.command(short_help="Print the bearer token in a key file.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def token(file: Path) -> None:
    """Print the bearer token in FILE, the key file of a client, for `Authorization: Bearer` over WebSocket.

    The token is in that file only; the pool keeps its SHA-256.
    """
    with reported():
        from codex_pool.auth.keys import read_token

        click.echo(read_token(file))


@keys.command("list", short_help="Show who is allowed, and who was revoked.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line per principal; times are Unix seconds.")
@_directory
def list_(as_json: bool, directory: Path | None) -> None:
    """Show who is allowed, what they may do, the id of each principal, since when it is there, and who was revoked."""
    with reported():
        from codex_pool.auth.keys import KeyStore

        store = KeyStore(directory)
        known, now = store.known(), store.now()
    for entry in (*known.allowed, *known.revoked):
        if as_json:
            fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
            has_token = bool(fields.pop("token_sha256"))
            former = [{"public_key": key.public_key, "until": key.until} for key in fields.pop("former")]
            row = {**fields, "former": former, "token": has_token, "revoked": bool(entry.revoked_at)}
            click.echo(json.dumps(row))
            continue
        if entry.admin:
            may = "admin"
        else:
            granted = f", and {' '.join(entry.methods)}" if entry.methods else ""
            may = f"{entry.sandbox} in {', '.join(entry.cwd_roots) or 'no directory'}{granted}"
        renewed = f", key of {_day(entry.key_since)}" if entry.key_since != entry.since else ""
        expires = f"  {_expiry(entry.expires_at, now)}" if entry.expires_at and not entry.revoked_at else ""
        revoked = f"  revoked on {_day(entry.revoked_at)}" if entry.revoked_at else ""
        user = f", user {entry.unix_uid}" if entry.unix_uid >= 0 else ""
        token = "" if entry.token_sha256 else ", no token"
        who = f"principal {entry.principal}{user} since {_day(entry.since)}{renewed}{token}"
        limits = f"  [{found}]" if (found := words(entry)) else ""
        ends = [_expiry(key.until, now) for key in entry.former if key.until > now]
        before = f"  key before it {', '.join(ends)}" if ends else ""
        click.echo(f"{entry.name}  {may}{limits}  {who}{expires}{before}{revoked}")
    for problem in known.problems:
        click.echo(f"codex-pool: not allowed: {problem}", err=True)
    if not known.allowed:
        click.echo(
            f"codex-pool: nobody is allowed in {store.directory}; make a key: codex-pool keys new NAME", err=True
        )


def _expiry(at: int, now: float) -> str:
    shown = time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
    return f"expires on {shown}" if at > now else f"expired on {shown}"


def _day(at: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at))


@keys.command(short_help="Take a key off the allow-list.")
@click.argument("name")
@_directory
def revoke(name: str, directory: Path | None) -> None:
    """Take the key of NAME off the allow-list; a running daemon ends its sessions within a second.

    What it may do and which threads are its own is kept for `codex-pool keys renew NAME`.
    """
    with reported():
        from codex_pool.auth.keys import KeyStore

        KeyStore(directory).revoke(name)
    click.echo(f"codex-pool: {name} may not connect any more", err=True)


@keys.command("reset-ownership", short_help="Accept the loss of a home's record of whose its threads are.")
@click.argument("home", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_directory
def reset_ownership(home: Path, directory: Path | None) -> None:
    """Accept the loss of the ownership store of HOME, the CODEX_HOME of a pool that refuses keys.

    What can still be read of the store is kept. All other threads of HOME are the owner's from then on: the
    clients that made them cannot reach them any more. A running daemon lets keys in again within a second.
    """
    with reported():
        import sqlite3

        from codex_pool.auth import ownership
        from codex_pool.auth.keys import KeysError, KeyStore

        store = KeyStore(directory)
        try:
            kept, aside = ownership.reset(home, store.make_directory())
        except (OSError, sqlite3.Error, ownership.OwnershipError) as error:
            raise KeysError(f"the ownership store of {home} cannot be made: {error}") from None
    click.echo(f"codex-pool: {kept} threads of {home} keep their owner, all others are the owner's", err=True)
    if aside is not None:
        click.echo(f"  the store as it was  {aside}", err=True)


@keys.command("reset-usage", short_help="Accept the loss of a home's record of what keys have used.")
@click.argument("home", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_directory
def reset_usage(home: Path, directory: Path | None) -> None:
    """Accept the loss of the usage store of HOME, the CODEX_HOME of a pool that refuses keys with limits of usage.

    A store that can be read is taken as it is. Else counting begins with what the workers of a running daemon have
    counted, which lets these keys in again within a second.
    """
    with reported():
        from codex_pool.auth import usage_store
        from codex_pool.auth.keys import KeysError, KeyStore

        try:
            aside = usage_store.reset(home, KeyStore(directory).make_directory())
        except OSError as error:
            raise KeysError(f"the usage store of {home} cannot be reset: {error}") from None
    click.echo(f"codex-pool: keys with limits of usage may use {home} again", err=True)
    if aside is not None:
        click.echo(f"  the store as it was  {aside}", err=True)


@keys.command("show-server", short_help="Print the server's public key.")
@_directory
def show_server(directory: Path | None) -> None:
    """Print the server's public key, which every key file carries: what to compare when in doubt."""
    with reported():
        from codex_pool.auth.keys import KeyStore

        click.echo(KeyStore(directory).server().public_key)
