"""`codex-pool logout`: the account forgotten."""

from __future__ import annotations

import click

from . import options
from .account_client import AccountClient, NoHomeError, account_options, described, opened
from .errors import fail

NOBODY = "codex-pool: nobody was logged in"


@click.command(short_help="Forget the account that codex uses.")
@account_options
@click.pass_context
def logout(
    context: click.Context,
    connect: str | None,
    key: str | None,
    overrides: tuple[str, ...],
    codex_bin: str | None,
) -> None:
    """Forget the account that codex uses. At a daemon if one runs, as in `codex-pool login`.

    \b
    Exit codes:
      0    logged out, or nobody was logged in
      1    codex could not log out
      3    codex could not start, or there is no daemon at the endpoint
    """
    endpoint, key = options.endpoint_of(context, connect, key)
    try:
        with opened("logout", endpoint, key, overrides, codex_bin) as client:
            before = _who(client)
            # Also where no account is: what is stored may be a login that codex cannot use.
            client.codex.logout()
            after = client.account().account
    except NoHomeError as error:
        click.echo(f"{NOBODY}: CODEX_HOME {error} does not exist", err=True)
        return
    if after is not None:
        fail(f"still logged in: {described(after)}", options.SOME_FAILED)
    click.echo(NOBODY if before is None else f"codex-pool: logged out: {before}", err=True)


def _who(client: AccountClient) -> str | None:
    from codex_app_server import JsonRpcError

    try:
        account = client.codex.account().account
    except JsonRpcError:
        return "a login that codex could not read"
    return None if account is None else described(account)
