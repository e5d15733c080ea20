"""`codex-pool run`: one turn, its text on stdout."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from codex_pool import start
from codex_pool.cli import options
from codex_pool.cli.errors import fail, reported

if TYPE_CHECKING:
    from codex_app_server import Codex


# Until the turn has begun. The user's own home may hold thousands of threads, and a first start reads them all.
START_LIMIT_S = 60.0
DEMO_START_LIMIT_S = 10.0


@click.command(short_help="Run one turn; its text goes to stdout.")
@click.argument("prompt")
@options.connect_option
@options.demo_option
@click.option("-c", "--config", "overrides", metavar="KEY=VALUE", multiple=True, help="As in `codex-pool serve`.")
@click.option("--codex-bin", metavar="FILE", help="As in `codex-pool serve`.")
@click.option("--model", help="Model of the turn.  [default: the configured one]")
@click.option("--effort", help="Reasoning effort of the turn.  [default: the configured one]")
@click.option("--sandbox", type=click.Choice(["read-only", "workspace-write", "danger-full-access"]))
@click.option("--cwd", type=click.Path(exists=True, file_okay=False, resolve_path=True), help="Where codex works.")
@click.pass_context
def run(
    context: click.Context,
    prompt: str,
    connect: str | None,
    key: str | None,
    demo: bool,
    overrides: tuple[str, ...],
    codex_bin: str | None,
    model: str | None,
    effort: str | None,
    sandbox: str | None,
    cwd: str | None,
) -> None:
    """Run one turn and stream its text to stdout. PROMPT `-` reads it from stdin.

    Uses the daemon at the default endpoint if one is running there, else an app-server of its own; --connect names a
    daemon, and -c, --codex-bin or --demo ask for an own app-server.

    Ctrl-C, SIGTERM and the end of the terminal interrupt the turn; the exit code is then 130, of the last one 129.
    """
    endpoint, key = options.endpoint_of(context, connect, key)
    prompt = _decoded(sys.stdin.buffer.read() if prompt == "-" else os.fsencode(prompt))
    if not prompt.strip():
        raise click.UsageError("the prompt is empty; give a text as PROMPT, or `-` and the text on stdin", context)
    start.interrupt_on_signals()
    limit_s = DEMO_START_LIMIT_S if demo else START_LIMIT_S
    with reported(), _ready_within(limit_s) as ready, _codex(endpoint, key, overrides, codex_bin, demo, ready) as codex:
        from codex_pool import account_notice

        missing = None if demo else account_notice.notice(codex, account_notice.remedy(endpoint))
        if missing is not None:
            click.echo(f"codex-pool: {missing}", err=True)
        threads = {**_safely(codex, sandbox, cwd), "model": model, "cwd": cwd}
        _run_turn(codex, prompt, threads, {"effort": effort}, ready)


@contextlib.contextmanager
def _ready_within(limit_s: float) -> Iterator[Callable[[], None]]:
    """Raises StartError in the main thread unless the function that it gives is called in time.

    An app-server that may not start its threads can wait without end. By a signal: a thread might not start either.
    """
    from codex_app_server import StartError

    def late(number: int, frame: object) -> None:
        raise StartError(f"the turn was not begun within {limit_s:.0f} s: the app-server does not answer", "other")

    def ready() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield ready
    finally:
        ready()
        signal.signal(signal.SIGALRM, before)


def _decoded(prompt: bytes) -> str:
    """The prompt as text: UTF-8, whatever the locale, or as the locale says. Raises UsageError."""
    for encoding in ("utf-8", sys.stdin.encoding):
        with contextlib.suppress(UnicodeDecodeError, LookupError):
            return prompt.decode(encoding)
    raise click.UsageError(f"the prompt is not UTF-8, nor of the locale: {prompt[:80]!a}; convert it, as with iconv")


@contextlib.contextmanager
def _codex(
    endpoint: str | None,
    key: str | None,
    overrides: tuple[str, ...],
    codex_bin: str | None,
    demo: bool,
    ready: Callable[[], None],
) -> Iterator[Codex]:
    from codex_app_server import AppServerConfig, Codex
    from codex_pool import endpoints
    from codex_pool.pool import connect, running_daemon

    if endpoint is None and not (overrides or codex_bin or demo):
        endpoint = running_daemon(endpoints.default_endpoint())
        if endpoint is not None:
            click.echo(f"codex-pool: using the daemon at {endpoint}", err=True)
    with contextlib.ExitStack() as stack:
        if endpoint is not None:
            # A turn may wait there for others, for as long as they take.
            ready()
            yield stack.enter_context(connect(endpoint, name="codex-pool run", key=key))
            return
        env = {}
        if demo:
            import tempfile
            from pathlib import Path

            from codex_pool.demo import demo_home

            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codex-pool-demo-")))
            env["CODEX_HOME"] = str(stack.enter_context(demo_home(home)))
        config = AppServerConfig(codex_bin=codex_bin, config_overrides=overrides, env=env)
        yield stack.enter_context(Codex(config))


def _safely(codex: Codex, sandbox: str | None, cwd: str | None) -> dict[str, Any]:
    """Sandbox and approval policy, sent explicitly: what was asked for, else what is configured.

    Nobody is there to be asked, so where nothing is configured, nothing is asked for. Raises ConfigurationError.
    """
    from codex_app_server import JsonRpcError
    from codex_pool.configuration import UNKNOWN, read_configuration

    try:
        configuration = read_configuration(codex, cwd)
    except JsonRpcError:
        # Not for a client with a key to know; its pool sends what the key allows.
        configuration = UNKNOWN
    options = configuration.thread_options if sandbox is None else {"sandbox": sandbox}
    return {**options, "approval_policy": configuration.approval_policy or "never"}


def _run_turn(codex: Codex, prompt: str, thread_options: Any, turn_options: Any, ready: Callable[[], None]) -> None:
    """Stream the turn; Ctrl-C, SIGTERM and SIGHUP interrupt it, a second one ends at once."""
    from codex_app_server.results import TurnCollector, delta_of
    from codex_pool.cli.silence import Silence

    turn = codex.thread_start(ephemeral=True, **thread_options).turn(prompt, **turn_options)
    ready()
    collector = TurnCollector(turn.id)
    at_line_start = True
    interrupt: KeyboardInterrupt | None = None
    stream = turn.stream()
    silence = Silence(time.monotonic())
    while True:
        try:
            while True:
                try:
                    notification = stream.next(silence.wait_s(time.monotonic()))
                except TimeoutError:
                    message = silence.due(time.monotonic())
                    if message is not None:
                        _say(message, at_line_start)
                    continue
                if notification is None:
                    break
                silence.heard(notification, time.monotonic())
                if notification.method == "item/agentMessage/delta":
                    if isinstance(interrupt, start.HungUp):
                        # Nobody is there to read it.
                        continue
                    text = delta_of(notification).delta
                    sys.stdout.write(text)
                    sys.stdout.flush()
                    at_line_start = text.endswith("\n")
                else:
                    collector.add(notification)
            break
        except KeyboardInterrupt as error:
            if interrupt is not None:
                raise
            interrupt = error
            turn.interrupt()
            stream = turn.stream()
    if not at_line_start and not isinstance(interrupt, start.HungUp):
        sys.stdout.write("\n")
        sys.stdout.flush()
    if interrupt is not None:
        raise interrupt
    if collector.result().status == "interrupted":
        fail("the turn was interrupted, and not from here", options.INTERRUPTED)


def _say(message: str, at_line_start: bool) -> None:
    """Say something on stderr, on a line of its own also where the text so far is on the same terminal."""
    if not at_line_start and sys.stdout.isatty() and sys.stderr.isatty():
        click.echo(err=True)
    click.echo(f"codex-pool: {message}", err=True)
