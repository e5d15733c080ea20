"""`codex-pool run`: one turn, its text on stdout."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from codex_pool.runtime import startup
from codex_pool.sandbox_modes import SANDBOX_MODES

from . import options
from .errors import fail, reported

if TYPE_CHECKING:
    from codex_app_server.transport import Transport

    from .line_client import LineClient
    from .run_output import TextOutput
    from .turn_reader import TurnReader


# Until the turn has begun. The user's own home may hold thousands of threads, and a first start reads them all.
START_LIMIT_S = 60.0
DEMO_START_LIMIT_S = 30.0
# How often a turn is interrupted again that the app-server does not know yet, and for how long.
INTERRUPT_RETRY_S = 0.05
INTERRUPT_LIMIT_S = 10.0


@click.command(short_help="Run one turn; its text goes to stdout.")
@click.argument("prompt")
@options.connect_option
@options.demo_option
@options.app_server_options
@click.option("--thread", metavar="ID", help="Go on with this thread.  [default: a new one]")
@click.option("--ephemeral", is_flag=True, help="Store nothing of the thread, which then cannot be gone on with.")
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on stdout, as they come.")
@click.option("--model", help="Model of the turn.  [default: the configured one]")
@click.option("--effort", help="Reasoning effort of the turn.  [default: the configured one]")
@click.option("--sandbox", type=click.Choice(SANDBOX_MODES))
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
    thread: str | None,
    ephemeral: bool,
    as_json: bool,
    model: str | None,
    effort: str | None,
    sandbox: str | None,
    cwd: str | None,
) -> None:
    """Run one turn and stream its text to stdout. PROMPT `-` reads it from stdin.

    Uses the daemon at the default endpoint if one is running there, else an app-server of its own; --connect names a
    daemon, and -c, --codex-bin or --demo ask for an own app-server. Nothing is asked: what wants approval is declined.

    Ctrl-C, SIGTERM and the end of the terminal interrupt the turn; the exit code is then 130, or
    129 for the end of the terminal.
    """
    endpoint, key = options.endpoint_of(context, connect, key)
    if thread is not None and (ephemeral or demo):
        given = "--ephemeral" if ephemeral else "--demo"
        raise click.UsageError(f"{given} is for a new thread and cannot go with --thread", context)
    prompt = _decoded(sys.stdin.buffer.read() if prompt == "-" else os.fsencode(prompt))
    if not prompt.strip():
        raise click.UsageError("the prompt is empty; give a text as PROMPT, or `-` and the text on stdin", context)
    startup.interrupt_on_signals()
    limit_s = DEMO_START_LIMIT_S if demo else START_LIMIT_S
    with reported(), contextlib.ExitStack() as stack:
        from codex_app_server._protocol import runtime_version
        from codex_pool import account_notice

        from .daemon_client import to_daemon
        from .line_client import LineClient
        from .run_thread import Asked, open_thread

        output = _output(as_json)
        stack.callback(output.clear)
        ready = stack.enter_context(_ready_within(limit_s))
        # `codex-pool login` finds the default daemon by itself, too.
        login = None if demo else account_notice.remedy(endpoint)
        if endpoint is None and not (overrides or codex_bin or demo):
            endpoint = _running_daemon()
        if endpoint is not None:
            # A turn may wait there for others, for as long as they take.
            ready()
            transport = to_daemon(endpoint, key, "codex-pool run")
        else:
            transport = _own(stack, overrides, codex_bin, demo)
        client = LineClient(transport, on_queue=output.queue, on_problem=output.say)
        stack.callback(client.close)
        client.start()
        is_daemon, is_remote = endpoint is not None, key is not None
        asked = Asked(thread, ephemeral, model, sandbox, cwd, is_daemon=is_daemon, is_remote=is_remote, login=login)
        thread_id, login_notice = open_thread(client, asked)
        output.thread_started(thread_id, client.runtime_version)
        differs = runtime_version.warning(client.runtime_version)
        if differs is not None:
            output.say(differs)
        efforts = {} if effort is None else {"effort": effort}
        text = {"type": "text", "text": prompt, "text_elements": []}
        _run_turn(client, output, {"threadId": thread_id, "input": [text], **efforts}, ready, login_notice)
        if not (ephemeral or demo or as_json) and sys.stderr.isatty():
            output.say(f"go on with: codex-pool run --thread {thread_id} PROMPT")


def _output(as_json: bool) -> TextOutput:
    if as_json:
        from .run_json_output import JsonOutput

        return JsonOutput()
    from .run_output import TextOutput

    return TextOutput()


@contextlib.contextmanager
def _ready_within(limit_s: float) -> Iterator[Callable[[], None]]:
    """Raises StartError in the main thread unless the function that it gives is called in time.

    An app-server that may not start its threads can wait without end. By a signal: a thread might not start either.
    """
    from codex_app_server.errors import StartError

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
    """The prompt as text: UTF-8, whatever the locale, or else in the locale's encoding. Raises UsageError."""
    for encoding in ("utf-8", sys.stdin.encoding):
        with contextlib.suppress(UnicodeDecodeError, LookupError):
            return prompt.decode(encoding)
    raise click.UsageError(f"the prompt is not UTF-8, nor of the locale: {prompt[:80]!a}; convert it, as with iconv")


def _running_daemon() -> str | None:
    """The default endpoint if a daemon holds it."""
    from codex_pool.protocol import endpoints

    found = endpoints.running_daemon(endpoints.default_endpoint())
    if found is not None:
        click.echo(f"codex-pool: using the daemon at {found}", err=True)
    return found


def _own(stack: contextlib.ExitStack, overrides: tuple[str, ...], codex_bin: str | None, demo: bool) -> Transport:
    """An app-server of its own, which ends with this command."""
    from codex_app_server.config import AppServerConfig
    from codex_app_server.transport import StdioTransport

    env = {}
    if demo:
        import tempfile
        from pathlib import Path

        from codex_pool.demo import demo_home

        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codex-pool-demo-")))
        env["CODEX_HOME"] = str(stack.enter_context(demo_home(home)))
    return StdioTransport(AppServerConfig(codex_bin=codex_bin, config_overrides=overrides, env=env))


def _run_turn(
    client: LineClient,
    output: TextOutput,
    params: dict[str, object],
    ready: Callable[[], None],
    login_notice: Callable[[], str | None],
) -> None:
    """Run a turn to its end; Ctrl-C, SIGTERM and SIGHUP interrupt it, a second one ends at once."""
    import msgspec

    from .silence import Silence
    from .turn_reader import TurnReader

    started = msgspec.json.decode(client.call("turn/start", params))
    ready()
    # It may go on for long from here on.
    gc.enable()
    turn = TurnReader(str(params["threadId"]), started["turn"]["id"])
    silence = Silence(time.monotonic())
    interrupt: KeyboardInterrupt | None = None
    interrupts: Iterator[float] | None = None
    while not turn.has_ended:
        try:
            missing = login_notice()
            if missing is not None:
                output.say(missing)
            wait_s = silence.wait_s(time.monotonic())
            if interrupts is not None:
                wait_s = min(wait_s, next(interrupts))
            notice = client.next(wait_s)
            if notice is None:
                message = silence.due(time.monotonic())
                if message is not None:
                    output.say(message)
            elif not turn.read(*notice):
                output.of_thread(notice)
            else:
                silence.observe(notice, time.monotonic())
                if not isinstance(interrupt, startup.HungUp):
                    # Else there is no reader for it.
                    output.of_turn(notice)
        except KeyboardInterrupt as error:
            if interrupt is not None:
                raise
            interrupt, interrupts = error, _interrupting(client, turn)
    failure = turn.failure()
    problem = None if failure is None else {"message": str(failure), "kind": failure.kind}
    if turn.status == "interrupted":
        problem = {"message": "the turn was interrupted", "kind": "interrupted"}
    if not isinstance(interrupt, startup.HungUp):
        output.end(turn, problem)
    if interrupt is not None:
        raise interrupt
    if failure is not None:
        raise failure
    if turn.status == "interrupted":
        fail("the turn was interrupted, and not from here", options.INTERRUPTED)


def _interrupting(client: LineClient, turn: TurnReader) -> Iterator[float]:
    """Interrupt a turn and its sub-agents; what it yields is how many seconds to read on before its next step.

    Right after its start the app-server does not know the turn: the interrupt is repeated until it does. Raises the
    error that is answered otherwise.
    """
    from codex_app_server.errors import JsonRpcError

    for agent, thread in turn.agents.items():
        client.request("turn/interrupt", {"threadId": thread, "turnId": agent})
    deadline = time.monotonic() + INTERRUPT_LIMIT_S
    while True:
        answer = client.request("turn/interrupt", {"threadId": turn.thread_id, "turnId": turn.turn_id})
        while not answer.is_there and time.monotonic() < deadline:
            yield INTERRUPT_RETRY_S
        try:
            answer.value()
        except JsonRpcError as error:
            if not ("no active turn" in str(error) or "expected active turn" in str(error)):
                raise
        else:
            break
        if time.monotonic() > deadline:
            break
        yield INTERRUPT_RETRY_S
    while True:
        yield INTERRUPT_LIMIT_S
