"""The life of a daemon: start, say so, wait for a signal or the pool's own end, stop.

SIGINT, SIGTERM    stop, at any moment of the start too; a second one ends the process at once
SIGHUP             nothing: a daemon outlives the terminal that it was started from
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

from codex_app_server._waking import Latch
from codex_pool import start
from codex_pool.configuration import ConfigurationError
from codex_pool.daemon.config import DaemonConfig
from codex_pool.pool import Pool

POLL_S = 0.5


class PoolEndedError(RuntimeError):
    """The pool gave up while the daemon ran; the message says why."""


class _StoppedError(BaseException):
    """A signal asks for the end while the pool is starting, whatever that waits for."""


def run_daemon(config: DaemonConfig, on_ready: Callable[[Pool], None]) -> None:
    """Run a pool until SIGINT or SIGTERM; call it in the main thread. `on_ready` is called once clients can connect.

    It ends within 10 s, also while it starts. A second signal while it stops ends the process at once; the pool's
    processes then end by themselves. Raises what Pool raises when it cannot start, and PoolEndedError.
    """
    # No Event: the handler would wait for the lock that the code it has interrupted may hold.
    stopping = Latch()
    starting = True

    def stop(number: int, frame: FrameType | None) -> None:
        if stopping.is_open:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stopping.open()
        if starting:
            raise _StoppedError

    hang_up = signal.getsignal(signal.SIGHUP)
    start.survive_hang_up()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGHUP] = hang_up
    try:
        with config.pool() as pool, pool:
            on_ready(pool)
            starting = False
            while not stopping.is_open:
                if pool.wait_ended(POLL_S):
                    raise PoolEndedError(pool.failure or "the pool ended")
    except _StoppedError:
        pass
    except ConfigurationError as error:
        raise ConfigurationError(config.named(str(error))) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
