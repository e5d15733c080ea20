"""A missing login, found before turns fail of it: no account is logged in, and the model provider needs one.

Measured on the runtime: `account/read` reports `requiresOpenaiAuth` for the built-in provider and for those with
`requires_openai_auth = true`, also where such a provider has a key of its own and works without a login. An app-server
does not use OPENAI_API_KEY or CODEX_API_KEY of its environment unless a provider names it as `env_key`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from codex_app_server import AppServerError

if TYPE_CHECKING:
    from codex_app_server import AsyncCodex, Codex
    from codex_app_server.generated import models

ASK_LIMIT_S = 5.0
LOGIN = "codex-pool login"
DEFAULT_PROVIDER = "openai"

_OWN_CREDENTIALS = ("env_key", "experimental_bearer_token", "auth", "aws")
_CREDENTIAL_HEADERS = {"authorization", "api-key", "x-api-key"}


def provider_of(config: models.Config) -> str:
    """Id of the configured model provider."""
    return config.model_provider or DEFAULT_PROVIDER


def has_own_credentials(config: models.Config) -> bool:
    """True when the configured model provider brings a key, a token or an authorization header of its own."""
    return has_credentials((config.model_extra or {}).get("model_providers"), provider_of(config))


def has_credentials(providers: dict[str, Any] | None, name: str) -> bool:
    """True when the provider `name` of a table `model_providers` brings credentials, as `has_own_credentials`."""
    provider: dict[str, Any] = (providers or {}).get(name) or {}
    if any(provider.get(name) for name in _OWN_CREDENTIALS):
        return True
    headers = [*(provider.get("http_headers") or {}), *(provider.get("env_http_headers") or {})]
    return not _CREDENTIAL_HEADERS.isdisjoint(header.lower() for header in headers)


def is_login_missing(account: models.GetAccountResponse, config: models.Config) -> bool:
    """True when no account is logged in and the configured model provider needs a login."""
    return account.account is None and account.requires_openai_auth and not has_own_credentials(config)


def notice_of(account: Mapping[str, Any], config: Mapping[str, Any], login: str = LOGIN) -> str | None:
    """Text of the warning, from the results of `account/read` and `config/read` as plain JSON; None without need."""
    if account.get("account") is not None or not account.get("requiresOpenaiAuth"):
        return None
    provider = config.get("model_provider") or DEFAULT_PROVIDER
    return None if has_credentials(config.get("model_providers"), provider) else _text(login)


def remedy(endpoint: str | None = None, home: str = "user") -> str:
    """The command that logs in at the daemon of `endpoint`, else in `home`.

    `home` is as `--home` of `codex-pool batch`; a home of a run follows the login of the user's own.
    """
    import shlex

    if endpoint is not None:
        return f"{LOGIN} --connect {shlex.quote(endpoint)}"
    return LOGIN if home in ("run", "user") else f"CODEX_HOME={shlex.quote(home)} {LOGIN}"


def notice(codex: Codex, login: str = LOGIN) -> str | None:
    """Text of the warning if the login is missing; None where it is not, or where that cannot be found out.

    `login` is the command that the text names. Waits ASK_LIMIT_S seconds at most for each of two answers.
    """
    try:
        account = codex.client.request("account/read", {}, timeout_s=ASK_LIMIT_S)
        if account.account is not None or not account.requires_openai_auth:
            return None
        config = codex.client.request("config/read", {}, timeout_s=ASK_LIMIT_S).config
    except AppServerError:
        return None
    return _text(login) if is_login_missing(account, config) else None


async def anotice(codex: AsyncCodex, login: str = LOGIN) -> str | None:
    """Return what `notice` does, for asyncio."""
    try:
        account = await codex.client.request("account/read", {}, timeout_s=ASK_LIMIT_S)
        if account.account is not None or not account.requires_openai_auth:
            return None
        config = (await codex.client.request("config/read", {}, timeout_s=ASK_LIMIT_S)).config
    except AppServerError:
        return None
    return _text(login) if is_login_missing(account, config) else None


def _text(login: str) -> str:
    return f"nobody is logged in, but the provider needs it: turns will fail; run {login}"
