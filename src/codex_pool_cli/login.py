"""`codex-pool login`: an account for codex."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING

import click

from . import options
from .account_client import AccountClient, account_options, described, opened
from .errors import fail

if TYPE_CHECKING:
    from codex_app_server.login import ChatgptLoginHandle, DeviceCodeLoginHandle

# Codex itself gives a login by browser 10 minutes, a code 15.
WAIT_LIMIT_S = 20 * 60.0
KEY_LIMIT = 4096
# Of a shorter key the end that is shown would be too much of it.
SHOWN_FROM = 16
SHOWN = 4
KEY_ON_STDIN = "give it on stdin: printenv OPENAI_API_KEY | codex-pool login --api-key"


@click.command(short_help="Log in to the account that codex uses.")
@click.argument("arguments", nargs=-1, metavar="")
@click.option("--device", is_flag=True, help="Log in by a code that you enter in a browser anywhere.")
@click.option("--api-key", "by_key", is_flag=True, help="Log in with an API key, read from stdin or prompted for.")
@account_options
@click.pass_context
def login(
    context: click.Context,
    arguments: tuple[str, ...],
    device: bool,
    by_key: bool,
    connect: str | None,
    key: str | None,
    overrides: tuple[str, ...],
    codex_bin: str | None,
) -> None:
    """Log in to the account that codex uses; by default with your browser.

    The login is stored in CODEX_HOME (~/.codex), which is made if it is missing; an earlier login is replaced. If a
    daemon runs at the default endpoint, it logs in, with all its workers; --connect names another one, and -c or
    --codex-bin ask for an app-server of its own.

    \b
    Exit codes:
      0    logged in
      1    the login failed
      2    wrong usage
      3    codex could not start, or there is no daemon at the endpoint
      130  interrupted; nothing has changed

    \b
    Examples:
      codex-pool login
      codex-pool login --device
      printenv OPENAI_API_KEY | codex-pool login --api-key
    """
    if arguments:
        # Not shown: it may be a key.
        raise click.UsageError(f"login takes no argument; an API key there can be seen by all users: {KEY_ON_STDIN}")
    if device and by_key:
        raise click.UsageError("--device and --api-key are two ways to log in; give one of them")
    endpoint, key = options.endpoint_of(context, connect, key)
    api_key = _read_key() if by_key else None
    with opened("login", endpoint, key, overrides, codex_bin, make_home=True) as client:
        if (
            client.endpoint is None
            and (client.config.model_extra or {}).get("cli_auth_credentials_store") == "ephemeral"
        ):
            remedy = "log in at a daemon, with --connect, or set it to file"
            fail(f"cli_auth_credentials_store is ephemeral: a login would be lost at once; {remedy}", options.USAGE)
        ending = ""
        if api_key is not None:
            client.codex.login_api_key(api_key)
            ending = f" (ending in {api_key[-SHOWN:]})" if len(api_key) >= SHOWN_FROM else ""
        elif device:
            _by_device(client)
        else:
            _by_browser(client)
        account = client.account().account
        if account is None:
            fail("codex took the login, but says that nobody is logged in; try again", options.SOME_FAILED)
        how = "with" if account.type == "apiKey" else "as"
        click.echo(f"codex-pool: logged in {how} {described(account)}{ending}", err=True)


def _by_device(client: AccountClient) -> None:
    handle = client.codex.login_chatgpt_device_code()
    click.echo("codex-pool: open this page in any browser, log in, and enter the code:\n", err=True)
    click.echo(f"  {handle.verification_url}\n  {handle.user_code}\n", err=True)
    click.echo("Waiting, for 15 minutes at most; Ctrl-C gives up. Never share the code.", err=True)
    _wait(handle)


def _by_browser(client: AccountClient) -> None:
    handle = client.codex.login_chatgpt()
    click.echo("codex-pool: log in with the browser of this machine:\n", err=True)
    click.echo(f"  {handle.auth_url}\n", err=True)
    click.echo("Waiting, for 10 minutes at most; Ctrl-C gives up. No browser here: codex-pool login --device", err=True)
    if _has_browser():
        # Some browsers return when they are closed.
        try:
            threading.Thread(target=_open_browser, args=(handle.auth_url,), daemon=True).start()
        except RuntimeError as error:
            click.echo(f"codex-pool: the browser was not opened: {error}; open the page yourself", err=True)
    _wait(handle)


def _wait(handle: ChatgptLoginHandle | DeviceCodeLoginHandle) -> None:
    from codex_app_server import AppServerError

    try:
        ended = handle.wait(WAIT_LIMIT_S)
    except BaseException as error:
        with contextlib.suppress(AppServerError):
            handle.cancel()
        if not isinstance(error, TimeoutError):
            raise
        fail(f"nobody logged in within {WAIT_LIMIT_S / 60:.0f} minutes", options.SOME_FAILED)
    if not ended.success:
        fail(f"the login failed: {ended.error or 'codex gives no reason'}", options.SOME_FAILED)


def _has_browser() -> bool:
    if not sys.stderr.isatty():
        return False
    # Without a display, a browser would be one that takes the terminal.
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _open_browser(url: str) -> None:
    import webbrowser

    with contextlib.suppress(webbrowser.Error, OSError):
        webbrowser.open(url)


def _read_key() -> str:
    """The API key, from stdin or by a prompt that does not show it. Raises UsageError for what cannot be one."""
    if sys.stdin.isatty():
        try:
            text: str = click.prompt("API key", hide_input=True, err=True, default="", show_default=False)
        except click.Abort:
            fail("interrupted", options.INTERRUPTED)
    else:
        text = sys.stdin.read(KEY_LIMIT + 1)
    key = text.strip()
    if not key:
        raise click.UsageError("no API key given" if sys.stdin.isatty() else f"no API key: {KEY_ON_STDIN}")
    if len(text) > KEY_LIMIT or not key.isascii() or not key.isprintable() or " " in key:
        raise click.UsageError(f"that is no API key: expected one word of ASCII, at most {KEY_LIMIT} characters")
    return key
