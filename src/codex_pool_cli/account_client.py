"""The app-server that the account verbs ask: a daemon's, or one of their own on the user's CODEX_HOME."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from codex_pool.runtime import startup

from . import options
from .errors import fail, reported

if TYPE_CHECKING:
    from codex_app_server import Codex
    from codex_app_server.generated import models

F = TypeVar("F", bound=Callable[..., Any])


class NoHomeError(Exception):
    """The user's CODEX_HOME does not exist, and so holds no login; the argument is its path."""


@dataclass(frozen=True, slots=True)
class AccountClient:
    """A client that answers, and its configuration. `endpoint` is None for an app-server of its own."""

    codex: Codex
    endpoint: str | None
    config: models.Config

    @property
    def home(self) -> str:
        """CODEX_HOME, where the login is stored."""
        return str(self.codex.metadata.codex_home)

    def account(self) -> models.GetAccountResponse:
        """The account as the app-server knows it. Exits with 3 where it does not report it."""
        from codex_app_server import JsonRpcError

        try:
            return self.codex.account()
        except JsonRpcError as error:
            why = f"{error.message}; a ChatGPT account is looked up on the network"
            fail(f"codex cannot say who is logged in: {why}", options.CANNOT_START)


def account_options(function: F) -> F:
    """`-c`, `--codex-bin`, `--connect`, `--key`."""
    return options.app_server_options(options.connect_option(function))


def home_of_user() -> Path:
    """The user's own CODEX_HOME, which need not exist."""
    from codex_app_server import AppServerConfig
    from codex_pool.pool import codex_home

    return codex_home(AppServerConfig())


@contextlib.contextmanager
def opened(
    verb: str,
    endpoint: str | None,
    key: str | None,
    overrides: tuple[str, ...],
    codex_bin: str | None,
    *,
    make_home: bool = False,
) -> Iterator[AccountClient]:
    """A client of the daemon at `endpoint`, else of the one at the default endpoint, else of an own app-server.

    For an own one a CODEX_HOME that does not exist is made with `make_home`, and NoHomeError raised without.
    Exits with 3 where the configuration cannot be read: it decides where a login is stored, and an app-server that
    cannot read it goes on with the defaults.
    """
    startup.interrupt_on_signals()
    with reported(), contextlib.ExitStack() as stack:
        codex, endpoint = _connected(stack, verb, endpoint, key, is_own=bool(overrides or codex_bin))
        if codex is None:
            from codex_app_server import AppServerConfig, Codex

            home = home_of_user()
            if not make_home and not home.is_dir():
                raise NoHomeError(home)
            codex = stack.enter_context(Codex(AppServerConfig(codex_bin=codex_bin, config_overrides=overrides)))
        yield AccountClient(codex, endpoint, _config(codex))


def _connected(
    stack: contextlib.ExitStack, verb: str, endpoint: str | None, key: str | None, *, is_own: bool
) -> tuple[Codex | None, str | None]:
    from codex_pool import homes
    from codex_pool.connecting import connect
    from codex_pool.protocol import endpoints

    if endpoint is not None:
        return stack.enter_context(connect(endpoint, name=f"codex-pool {verb}", key=key)), endpoint
    found = None if is_own else endpoints.running_daemon(endpoints.default_endpoint())
    if found is None:
        return None, None
    codex = connect(found, name=f"codex-pool {verb}")
    home = Path(codex.metadata.codex_home or "")
    if home == homes.demo_home_of(found):
        codex.close()
        click.echo(f"codex-pool: the daemon at {found} is a demo, which has no account; using your own home", err=True)
        return None, None
    stack.enter_context(codex)
    where = "" if os.path.realpath(home) == os.path.realpath(home_of_user()) else f", whose CODEX_HOME is {home}"
    click.echo(f"codex-pool: using the daemon at {found}{where}", err=True)
    return codex, found


def _config(codex: Codex) -> models.Config:
    from codex_app_server import JsonRpcError

    try:
        config: models.Config = codex.client.request("config/read").config
        return config
    except JsonRpcError as error:
        fail(f"the configuration cannot be read: {' '.join(error.message.split())}", options.CANNOT_START)


def described(account: models.Account) -> str:
    """An account as people read it."""
    from codex_app_server.generated import models

    if isinstance(account, models.ChatgptAccount):
        plan = str(account.plan_type).replace("_", " ")
        name = account.email or "a ChatGPT account"
        return name if plan == "unknown" else f"{name} ({plan[:1].upper()}{plan[1:]})"
    if isinstance(account, models.ApiKeyAccount):
        return "an API key"
    if isinstance(account, models.AmazonBedrockAccount):
        own = "" if account.uses_codex_managed_credentials else " (credentials of the environment)"
        return f"Amazon Bedrock{own}"
    return str(account.type)
