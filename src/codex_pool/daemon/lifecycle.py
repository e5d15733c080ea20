"""The life of a daemon: start, report it, wait for a signal, a client or the pool's own end, drain, stop.

SIGTERM            drain, then stop; `codex-pool stop` does the same
SIGINT             stop now, at any moment of the start too, as SIGTERM does then; and so does any of them once the
                   daemon drains. While it stops, one more ends the process at once
SIGHUP             reads the configuration again, also when it only means that the terminal is gone: a daemon outlives
                   the terminal that it was started from. Under nohup nothing
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType

from codex_app_server._runtime.wakeup import Latch

from ..configuration import ConfigurationError
from ..pool import Pool
from .config import DaemonConfig
from .status_text import waiting_text

POLL_S = 0.5
# While it drains.
DRAIN_POLL_S = 0.1


class PoolEndedError(RuntimeError):
    """The pool gave up while the daemon ran; the message gives the reason."""


class _StoppedError(BaseException):
    """A signal asks for the end while the pool is starting, or is reported as ready, whatever that waits for."""


class _Signals:
    """Requests of SIGTERM and SIGINT so far."""

    def __init__(self) -> None:
        # No Events: the handler would wait for the lock that the code it has interrupted may hold.
        self.draining, self.stopping = Latch(), Latch()
        # Clients may have turns; the loop that looks at the latches has begun.
        self.is_up, self.are_looked_at = False, False
        self.hung_up = False

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.stopping.is_open:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        ends = number != signal.SIGTERM or not self.is_up or self.draining.is_open
        self.draining.open()
        if ends:
            self.stopping.open()
        if not self.are_looked_at:
            raise _StoppedError

    def hang_up(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGHUP."""
        self.hung_up = True


def run_daemon(
    config: DaemonConfig,
    on_ready: Callable[[Pool], None],
    on_drain: Callable[[str], None] = lambda text: None,
) -> None:
    """Run a pool until a signal or a client ends it; call it in the main thread. `on_ready` is called once clients can
    connect, `on_drain` with a line of text when it begins to drain, and when what it waits for changes.

    It drains for `drain_timeout_s` of its options at most, and ends within 10 s after that, or at once while it starts.
    Raises what Pool raises when it cannot start, and PoolEndedError.
    """
    signals = _Signals()
    hang_up = signal.getsignal(signal.SIGHUP)
    if hang_up is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signals.hang_up)
    before = {number: signal.signal(number, signals.take) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGHUP] = hang_up
    try:
        with config.pool() as pool:
            pool.is_daemon = True
            with pool:
                signals.is_up = True
                try:
                    on_ready(pool)
                    signals.are_looked_at = True
                except _StoppedError:
                    signals.are_looked_at = True
                _serve(pool, signals, config.options.drain_timeout_s, on_drain)
                # What comes from here on ends the process at once.
                signals.stopping.open()
    except _StoppedError:
        pass
    except ConfigurationError as error:
        raise ConfigurationError(config.named(str(error))) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(pool: Pool, signals: _Signals, limit_s: float | None, on_drain: Callable[[str], None]) -> None:
    """Wait until the daemon is to end, and then for what runs. Raises PoolEndedError."""
    while not (signals.draining.is_open or pool.stop_asked):
        if signals.hung_up:
            signals.hung_up = False
            pool.reload()
        _wait(pool, POLL_S)
    if _is_over(pool, signals):
        return
    pool.begin_drain()
    begun, shown = time.monotonic(), ""
    while not _is_over(pool, signals):
        report = pool.draining
        if report is not None and not report["stopping"]:
            # Of a drain before, that did not end the daemon.
            report = None
        if report is not None and not report["turns"]:
            return
        text = waiting_text(report)
        if limit_s is not None and time.monotonic() - begun >= limit_s:
            on_drain(f"ending after {limit_s:g} s (--drain-timeout); {text or 'what runs is not known'}")
            return
        if text != shown:
            limit = "" if limit_s is None else f" for up to {limit_s:g} s"
            on_drain(text if shown else f"draining{limit}, {text}; SIGTERM or Ctrl-C ends it now")
            shown = text
        _wait(pool, DRAIN_POLL_S)


def _is_over(pool: Pool, signals: _Signals) -> bool:
    return signals.stopping.is_open or pool.stop_asked == "now"


def _wait(pool: Pool, timeout_s: float) -> None:
    if pool.wait_ended(timeout_s):
        raise PoolEndedError(pool.failure or "the pool ended")
