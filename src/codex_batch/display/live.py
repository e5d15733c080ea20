"""The display of a run, on stderr: live on a terminal, else lines."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from codex_app_server._runtime.text import duration, plural
from codex_pool.runtime.terminal import plain

from ..rules.progress import Progress, figures, kinds, rate_limit
from ..store import shown_name

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

REFRESH_S = 0.2
LINE_EVERY_S = 2.0
SLOWEST = 3

_log = logging.getLogger(__name__)


class Display(Protocol):
    """Interface of a display of the run."""

    def start(self, title: str) -> None: ...

    def say(self, message: str) -> None:
        """Show a message at once."""

    def refresh(self) -> None:
        """Show the progress, which may have changed. Called every REFRESH_S."""

    def finish(self, summary: list[tuple[str, str]], failures: list[tuple[str, str, str]]) -> None:
        """Show the end of the run: figures by name, and (id, status, reason) of what was not completed."""

    def stop(self) -> None:
        """Leave the terminal as it was. May be called twice."""


def make(progress: Progress, redact: Callable[[str], str] = str) -> RunDisplay:
    """The display that fits stderr. `redact` takes out of a message what is not to be shown."""
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return RunDisplay(progress, LiveDisplay(progress, redact), redact)
    return RunDisplay(progress, PlainDisplay(progress, redact=redact), redact)


class RunDisplay:
    """A display that no work can fail of, and that gets nothing which would control a terminal.

    After an error of it, or after `leave`, its messages go to the log.
    """

    def __init__(self, progress: Progress, display: Display, redact: Callable[[str], str] = str) -> None:
        self._progress = progress
        self._display = display
        self._redact = redact

    @property
    def is_live(self) -> bool:
        """True if it shows each slot."""
        return isinstance(self._display, LiveDisplay)

    def start(self, title: str) -> None:
        self._do(lambda display: display.start(plain(title)))

    def say(self, message: str) -> None:
        self._do(lambda display: display.say(plain(message)))

    def refresh(self) -> None:
        self._do(lambda display: display.refresh())

    def finish(self, summary: list[tuple[str, str]], failures: list[tuple[str, str, str]]) -> None:
        figures = [(plain(name), plain(value)) for name, value in summary]
        reasons = [(plain(one), plain(status), plain(reason)) for one, status, reason in failures]
        self._do(lambda display: display.finish(figures, reasons))

    def stop(self) -> None:
        self._do(lambda display: display.stop())

    def leave(self) -> None:
        """Note that the terminal is gone: messages go to the log from now on."""
        before, self._display = self._display, PlainDisplay(self._progress, write=_log.info, redact=self._redact)
        with contextlib.suppress(Exception):
            before.stop()

    def _do(self, what: Callable[[Display], None]) -> None:
        try:
            what(self._display)
        except Exception:
            _log.exception("the display of the run failed; the run goes on, and says here what it has to say")
            self.leave()


class PlainDisplay:
    """Lines: at the start, when something happened for a while, and at the end."""

    def __init__(
        self,
        progress: Progress,
        *,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], None] | None = None,
        redact: Callable[[str], str] = str,
    ) -> None:
        self._redact = redact
        self._progress = progress
        self._clock = clock
        self._write = write or _write_line
        self._shown: tuple[Any, ...] = ()
        self._shown_at = clock()
        self._shown_tenth = progress.done * 10 // max(1, progress.total)

    def start(self, title: str) -> None:
        self.say(title)

    def say(self, message: str) -> None:
        self._write(self._redact(message))

    def refresh(self) -> None:
        progress, now = self._progress, self._clock()
        state = (progress.done, progress.bad, progress.running, progress.queued)
        tenth = progress.done * 10 // max(1, progress.total)
        if state == self._shown or not (progress.running or progress.done > progress.skipped):
            return
        if now - self._shown_at < LINE_EVERY_S and tenth == self._shown_tenth:
            return
        self._shown, self._shown_at, self._shown_tenth = state, now, tenth
        parts = [f"{progress.done}/{progress.total} done", f"{progress.bad} not completed" if progress.bad else ""]
        parts += [f"{progress.running} running", f"{progress.scoring} scoring" if progress.scoring else ""]
        parts += [f"{progress.queued} queued", figures(progress, now, ", "), rate_limit(progress) or ""]
        self._write(", ".join(part for part in parts if part))

    def finish(self, summary: list[tuple[str, str]], failures: list[tuple[str, str, str]]) -> None:
        width = max(len(name) for name, _ in summary)
        for name, value in summary:
            self._write(f"  {name:<{width}}  {value}")
        if failures:
            self._write("not completed:")
        for sample_id, status, reason in failures:
            self._write(f"  {sample_id}  {status}  {reason}")

    def stop(self) -> None:
        pass


class LiveDisplay:
    """A region at the bottom of the terminal that is drawn again and again; messages scroll by above it."""

    def __init__(self, progress: Progress, redact: Callable[[str], str] = str) -> None:
        from rich.console import Console

        self._progress = progress
        self._redact = redact
        # What it is given is plain already; its own sequences are to get through.
        self._console: Console = Console(file=getattr(sys.stderr, "raw_text", sys.stderr), highlight=False)
        self._live: Live | None = None

    def start(self, title: str) -> None:
        from rich.live import Live

        self._console.print(title, markup=False, style="bold")
        # Only what would be printed amid the display is printed above it; records for a file or a pipe are not.
        amid = sys.stdout.isatty()
        self._live = Live(
            self._render(), console=self._console, auto_refresh=False, transient=True, redirect_stdout=amid
        )
        self._live.start(refresh=True)

    def say(self, message: str) -> None:
        self._console.print(self._redact(message), markup=False)

    def refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._render(), refresh=True)

    def finish(self, summary: list[tuple[str, str]], failures: list[tuple[str, str, str]]) -> None:
        from rich.table import Table
        from rich.text import Text

        self.stop()
        self._console.print()
        figures = Table.grid(padding=(0, 2))
        for name, value in summary:
            style = _STYLES.get(name, "") if value != "0" else "dim"
            figures.add_row(Text(f"  {name}", "dim"), Text(value, style, overflow="fold"))
        self._console.print(figures)
        if not failures:
            return
        self._console.print("not completed", style="bold")
        table = Table.grid(padding=(0, 2))
        for sample_id, status, reason in failures:
            table.add_row(
                Text(f"  {sample_id}", overflow="ellipsis", no_wrap=True),
                Text(status, _STYLES.get(status, "")),
                Text(reason, "dim"),
            )
        self._console.print(table)

    def stop(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        progress, now = self._progress, time.monotonic()
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(progress.total, progress.done, width=min(48, max(10, self._console.width - 46))),
            Text(f"{progress.done}/{progress.total}", "bold"),
            Text(duration(progress.elapsed_s(now)), "dim"),
            Text(figures(progress, now, "  "), "dim"),
        )
        counts = Text()
        for number, name in (
            (progress.ended["completed"], "completed"),
            (progress.skipped, "done before"),
            (progress.bad, "not completed"),
            (progress.retries, "retried"),
            (progress.ended["limit"], "at a limit"),
            (progress.running, "running"),
            (progress.scoring, "scoring"),
            (progress.queued, "queued"),
            (progress.waiting, "waiting"),
        ):
            if number or name in ("completed", "running", "waiting"):
                counts.append(f"{number:,}", _STYLES.get(name, "") if number else "dim")
                counts.append(f" {name}   ", "dim")
        return Group(Text(), bar, counts, *self._troubles(), *self._slots(), *self._slowest(now))

    def _troubles(self) -> list[RenderableType]:
        """Return lines of what was not completed, by kind, and the reason of a pause."""
        from rich.text import Text

        lines = []
        found = kinds(self._progress)
        if found:
            line = Text()
            for name, number in found:
                line.append(f"{number:,}", "yellow").append(f" {plain(name)}   ", "dim")
            lines.append(line)
        for said in (self._progress.paused, rate_limit(self._progress)):
            if said is not None:
                lines.append(Text(plain(said), "bold yellow"))
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return [*lines]

    def _slowest(self, now: float) -> list[RenderableType]:
        """The samples that have run for longest, where there is room for them."""
        from rich.text import Text

        room = self._console.height - 9 - len(self._progress.hosts or self._progress.slots)
        lines: list[RenderableType] = []
        for key, since in self._progress.slowest(min(SLOWEST, room)) if room > 0 else ():
            line = Text("longest " if not lines else "        ", "dim")
            line.append(f"{duration(now - since):>10}", "dim").append(f"  {plain(shown_name(*key))}")
            line.no_wrap, line.overflow = True, "ellipsis"
            lines.append(line)
        return lines

    def _hosts(self) -> list[RenderableType]:
        """Return one line for each host, as many as the terminal has room for."""
        from rich.text import Text

        hosts = self._progress.hosts
        room = max(1, self._console.height - 9)
        width = max(len(str(host["name"])) for host in hosts)
        lines: list[RenderableType] = []
        for host in hosts[:room]:
            state = str(host["state"])
            line = Text(f"{plain(str(host['name'])):<{width}}  ", "dim")
            line.append(f"{state:<9}", _STYLES.get(state, "yellow"))
            line.append(f"  {host['held']}/{host['places']}", "cyan" if host["held"] else "dim")
            line.append(f"  {host['done']:,} done", "dim")
            if host["lost"]:
                line.append(f"  {host['lost']:,} lost", "yellow")
            if host["free_bytes"]:
                line.append(f"  {host['free_bytes'] / 2**30:,.0f} GiB free", "dim")
            if host["codex_version"]:
                line.append(f"  codex {host['codex_version']}", "dim")
            if host["problem"]:
                line.append(f"  {plain(str(host['problem']))}", "yellow")
            line.no_wrap, line.overflow = True, "ellipsis"
            lines.append(line)
        if len(hosts) > room:
            lines.append(Text(f"and {plural(len(hosts) - room, 'host')} more", "dim"))
        return lines

    def _slots(self) -> list[RenderableType]:
        """Return one line for each slot, or each host of several, as many as the terminal has room for."""
        from rich.text import Text

        if self._progress.hosts:
            return self._hosts()
        slots = self._progress.slots
        room = max(1, self._console.height - 9)
        lines: list[RenderableType] = []
        for slot in slots[:room]:
            state, turns = str(slot["state"]), int(slot.get("turns", 0))
            places = max(self._progress.turns_per_worker, turns)
            line = Text(f"slot {slot['slot']:<3}", "dim")
            if "binary" in slot:
                line.append(f"{plain(str(slot['binary']))}  ", "dim")
            line.append(f"{state:<9}", _STYLES.get(state, "yellow"))
            # With more places than fit, their number is shown instead.
            if places <= 32:
                line.append("●" * turns, "cyan").append("·" * (places - turns), "dim")
            line.append(f"  {plural(turns, 'turn')}", "dim")
            if slot["restarts"]:
                line.append(f"  {plural(slot['restarts'], 'restart')}", "yellow")
                line.append(f": {plain(str(slot.get('lastReason', '')))}", "dim")
            line.no_wrap, line.overflow = True, "ellipsis"
            lines.append(line)
        if len(slots) > room:
            lines.append(Text(f"and {plural(len(slots) - room, 'slot')} more", "dim"))
        return lines


_STYLES = {
    "completed": "green",
    "not completed": "red",
    "failed": "red",
    "interrupted": "yellow",
    "lost": "red",
    "stalled": "red",
    "not run": "yellow",
    "retried": "yellow",
    "running": "cyan",
    "ready": "green",
    "at a limit": "yellow",
    "limit": "yellow",
    "scoring": "cyan",
}


def _write_line(text: str) -> None:
    # A reader of stderr that is gone does not end the run.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
