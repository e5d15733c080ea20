"""`codex-pool top`: the workers, turns and sessions of a daemon, drawn again and again."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING

import click

from . import options
from .errors import fail, reported

if TYPE_CHECKING:
    from rich.console import Console

    from .keyboard import Keyboard
    from .top_feed import Feed
    from .top_screen import Line, Screen

# Ages on the screen, and how long no answer has come, are drawn again so often.
REDRAW_S = 1.0


@click.command(short_help="Watch the workers, turns and sessions of a daemon.")
@options.connect_option
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.2, 60.0),
    default=1.0,
    metavar="SECONDS",
    help="How often the daemon is asked, from 0.2 to 60 s.  [default: 1]",
)
@click.option("--once", is_flag=True, help="Print what there is once, and end; no terminal is needed.")
@click.pass_context
def top(context: click.Context, connect: str | None, key: str | None, interval_s: float, once: bool) -> None:
    """Watch the workers, turns and sessions of a daemon.

    Keys: q ends; a shows all, w workers, t turns, s sessions; < and > (or left and right) choose the column that rows
    are sorted by, r the other way round; up and down, page up and page down scroll.
    """
    endpoint, key = options.endpoint_of(context, connect, key)
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if not on_terminal and not once:
        raise click.UsageError(
            "top needs a terminal for its keys and its screen; print once with --once, or use codex-pool turns --json"
        )
    with reported():
        from codex_pool.protocol import endpoints

        from .daemon_client import to_daemon
        from .keyboard import Keyboard
        from .line_client import LineClient
        from .top_feed import Feed
        from .top_screen import Screen

        where = endpoint or endpoints.default_endpoint()

        def connected() -> LineClient:
            transport = to_daemon(where, key, "codex-pool top")
            return LineClient(transport, on_queue=lambda ahead: None, on_problem=lambda text: None)

        screen = Screen(where, interval_s)
        if once:
            screen.take(Feed(connected, interval_s, lambda: None).once())
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            click.echo("\n".join(screen.plain_lines(width)))
            return
        keyboard = Keyboard()
        feed = Feed(connected, interval_s, keyboard.wake)
        # A daemon that is not there is an error, not a screen.
        screen.take(feed.once())
        feed.start()
        try:
            _watch(screen, feed, keyboard)
        finally:
            feed.close()
            keyboard.close()


def _watch(screen: Screen, feed: Feed, keyboard: Keyboard) -> None:
    """Draw until the user ends it. Exits with HUNG_UP where the terminal is gone."""
    from rich.console import Console

    from .keyboard import Ended, TerminalGone

    console = Console(file=getattr(sys.stdout, "raw_text", sys.stdout), highlight=False)
    try:
        while True:
            with console.screen(), keyboard.raw():
                if not _draw_until_suspended(console, screen, feed, keyboard):
                    return
            keyboard.suspend()
    except TerminalGone:
        fail("the terminal is gone", options.HUNG_UP)
    except Ended as ended:
        if ended.number == signal.SIGHUP:
            fail("the terminal is gone", options.HUNG_UP)
        # The terminal is as it was: end as the signal would have.
        os.kill(os.getpid(), ended.number)


def _draw_until_suspended(console: Console, screen: Screen, feed: Feed, keyboard: Keyboard) -> bool:
    """Draw until the program is to be stopped (True), or to end (False)."""
    while True:
        if feed.error is not None:
            raise feed.error
        snapshot = feed.snapshot
        if snapshot is not None and snapshot is not screen.snapshot:
            screen.take(snapshot)
        screen.problem, screen.asked_at = feed.problem, feed.asked_at
        width, height = console.size
        _draw(console, screen.lines(width, height, time.monotonic(), time.strftime("%H:%M:%S")))
        for key in keyboard.wait(REDRAW_S):
            if not screen.press(key):
                return False
        if keyboard.suspends:
            return True


def _draw(console: Console, lines: list[Line]) -> None:
    """Write the lines from the top left, in one write. The last one has no end of line, which would scroll."""
    from rich.control import Control
    from rich.text import Text

    text = Text("\n", no_wrap=True, overflow="crop", end="").join(
        Text(line.text.ljust(console.width), line.style) for line in lines
    )
    text.no_wrap, text.overflow, text.end = True, "crop", ""
    with console:
        console.control(Control.home())
        console.print(text, end="", markup=False, crop=True)
    console.file.flush()
