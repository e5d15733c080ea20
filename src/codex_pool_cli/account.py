"""`codex-pool account`: who is logged in."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from . import options
from .account_client import AccountClient, NoHomeError, account_options, described, opened
from .errors import fail

if TYPE_CHECKING:
    from codex_app_server.generated import models

# The limits are asked of the account's service, which may be out of reach.
LIMITS_LIMIT_S = 4.0


@click.command(short_help="Show who is logged in.")
@account_options
@click.option("--json", "as_json", is_flag=True, help="One JSON line; names as in the app-server's protocol.")
@click.pass_context
def account(
    context: click.Context,
    connect: str | None,
    key: str | None,
    overrides: tuple[str, ...],
    codex_bin: str | None,
    as_json: bool,
) -> None:
    """Show who is logged in, with the rate limits of a ChatGPT account.

    Asks a daemon if one runs, as `codex-pool login` does.

    \b
    Exit codes:
      0  somebody is logged in, or the configured model provider needs nobody
      1  nobody is logged in, and the provider needs it
      3  codex could not start or does not say, or there is no daemon at the endpoint
    """
    endpoint, key = options.endpoint_of(context, connect, key)
    try:
        with opened("account", endpoint, key, overrides, codex_bin) as client:
            found = client.account()
            limits = _limits(client, found)
    except NoHomeError as error:
        if as_json:
            # Without a home there is nothing to be asked.
            names = ("account", "requiresOpenaiAuth", "modelProvider", "rateLimits", "endpoint")
            click.echo(json.dumps(dict.fromkeys(names) | {"loginMissing": True, "codexHome": str(error)}))
        fail(f"nobody is logged in: CODEX_HOME {error} does not exist; codex-pool login makes it", options.SOME_FAILED)
    from codex_pool import account_notice

    is_missing = account_notice.is_login_missing(found, client.config)
    if as_json:
        fields = {
            "account": _wire(found.account),
            "requiresOpenaiAuth": found.requires_openai_auth,
            "loginMissing": is_missing,
            "modelProvider": account_notice.provider_of(client.config),
            "rateLimits": _wire(limits),
            "codexHome": client.home,
            "endpoint": client.endpoint,
        }
        click.echo(json.dumps(fields))
    else:
        who = "nobody" if found.account is None else described(found.account)
        rows = [("logged in", f"{who}; run {account_notice.remedy(endpoint)}" if is_missing else who)]
        rows += [("" if number else "rate limit", text) for number, text in enumerate(_windows(limits))]
        rows += [("provider", _provider(client, found)), ("CODEX_HOME", client.home)]
        for name, text in rows:
            click.echo(f"{name:<10}  {text}")
    sys.exit(options.SOME_FAILED if is_missing else options.OK)


def _provider(client: AccountClient, found: models.GetAccountResponse) -> str:
    from codex_pool import account_notice

    name = account_notice.provider_of(client.config)
    if not found.requires_openai_auth:
        return f"{name}, which needs no OpenAI login"
    if account_notice.has_own_credentials(client.config):
        return f"{name}, which has credentials of its own"
    return f"{name}, which needs an OpenAI login"


def _limits(client: AccountClient, found: models.GetAccountResponse) -> models.GetAccountRateLimitsResponse | None:
    """The rate limits of a ChatGPT account; None where there are none, or where they cannot be had now."""
    from codex_app_server import AppServerError
    from codex_app_server.generated import models

    if not isinstance(found.account, models.ChatgptAccount):
        return None
    try:
        limits: models.GetAccountRateLimitsResponse = client.codex.client.request(
            "account/rateLimits/read", timeout_s=LIMITS_LIMIT_S
        )
        return limits
    except AppServerError:
        return None


def _wire(value: Any) -> Any:
    return None if value is None else value.model_dump(mode="json", by_alias=True)


def _windows(limits: models.GetAccountRateLimitsResponse | None) -> list[str]:
    if limits is None:
        return []
    found = (limits.rate_limits.primary, limits.rate_limits.secondary)
    return [window_text(window, time.time()) for window in found if window is not None]


def window_text(window: models.RateLimitWindow, now: float) -> str:
    """Format one rate limit as people read it; `now` in seconds since 1970."""
    text = f"{window.used_percent} % used"
    minutes = window.window_duration_mins
    if minutes:
        long, unit = (minutes / 60, "h") if minutes < 48 * 60 else (minutes / 60 / 24, "days")
        text += f" of {long:.4g} {unit}"
    if window.resets_at is not None:
        at = time.localtime(window.resets_at)
        is_soon = 0 <= window.resets_at - now < 20 * 3600
        text += f", resets at {time.strftime('%H:%M' if is_soon else '%Y-%m-%d %H:%M', at)}"
    return text
