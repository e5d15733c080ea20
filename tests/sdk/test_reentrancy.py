"""Signal handlers and finalizers run in the middle of anything: they interrupt and close, and nothing hangs."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import run

from codex_app_server import AppServerClient, AsyncCodex, Codex, StdioTransport, TransportClosedError
from codex_app_server._core import connection
from codex_app_server._runtime import wakeup
from codex_app_server._runtime.wakeup import Answer, Latch, WakePipe
from codex_app_server._sync.mailbox import SyncMailbox
from codex_app_server.errors import ReentrantCallError
from codex_app_server.testing import null_app_server

LIMIT_S = 10.0


class Interrupting:
    """Calls `handler` like a signal handler once, at the first chance within the `with` blocks of a lock."""

    def __init__(self, lock: Any, handler: Callable[[], None]) -> None:
        self._lock, self._handler = lock, handler

    def __enter__(self) -> Any:
        entered = self._lock.__enter__()
        handler, self._handler = self._handler, lambda: None
        if threading.get_ident() == threading.main_thread().ident:
            handler()
        return entered

    def __exit__(self, *error: object) -> None:
        self._lock.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


@contextlib.contextmanager
def in_time(limit_s: float = LIMIT_S) -> Iterator[None]:
    """Fail what hangs: a signal breaks every wait of the main thread off."""

    def late(*_: object) -> None:
        raise AssertionError(f"it hangs for {limit_s} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_interrupt_in_the_middle_of_a_call_is_left_to_another_thread() -> None:
    with Codex(null_app_server(hold="/nowhere")) as codex, in_time():
        thread = codex.thread_start()
        turn = thread.turn("x")
        seen: list[str] = []

        def handler() -> None:
            turn.interrupt()
            turn.abandon()
            # Whatever needs an answer is refused instead of waited for.
            for use in (codex.thread_start, lambda: turn.steer("y"), lambda: thread.follow(turn.id)):
                with pytest.raises(ReentrantCallError, match="set a flag"):
                    use()
                seen.append("refused")

        connection = codex.client._connection
        connection._lock = Interrupting(connection._lock, handler)  # type: ignore[assignment]
        codex.logout()
        assert seen == ["refused"] * 3
        assert turn.run(timeout=LIMIT_S).status.value == "interrupted"


def test_close_in_the_middle_of_a_call_ends_the_call() -> None:
    codex = Codex(null_app_server())
    with in_time():
        connection = codex.client._connection
        connection._lock = Interrupting(connection._lock, codex.close)  # type: ignore[assignment]
        with pytest.raises(TransportClosedError):
            codex.logout()
            codex.logout()
        codex.close()


@pytest.mark.parametrize("what", ["interrupt", "close", "request"])
def test_real_signals_at_any_moment(work: Path, what: str) -> None:
    program = """
import faulthandler, signal
faulthandler.dump_traceback_later(35, exit=True)
what = sys.argv[2]
rounds = 4 if what == "close" else 1
for _ in range(rounds):
    codex = Codex(null_app_server(hold="/nowhere"))
    turn = codex.thread_start().turn("x")
    if what == "request":
        # Its types are loaded: an import that is interrupted cannot be gone on with from a handler.
        codex.logout()
    calls, turns, inside = 0, 0, False
    def handler(number, frame):
        global calls, inside
        calls += 1
        if inside:
            return
        inside = True
        try:
            if what == "interrupt":
                turn.interrupt()
            elif what == "close":
                if calls > 20:
                    codex.close()
            else:
                codex.client.request("account/logout")
        except (TransportClosedError, JsonRpcError):
            pass
        except RuntimeError as error:
            assert "signal handler" in str(error), error
        finally:
            inside = False
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.003)
    deadline = time.monotonic() + 3
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(JsonRpcError):
                codex.client.request("account/logout")
            with contextlib.suppress(TimeoutError):
                turn._mailbox.get(0.001)
            if what == "interrupt" and turn._mailbox.ended:
                turns += 1
                turn = codex.thread_start().turn("x")
    except TransportClosedError:
        assert what == "close"
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert calls > 10
    assert what != "interrupt" or turns > 5
    codex.close()
"""
    run(program, work, what)


def test_a_signal_handler_closes_a_client_that_starts_and_one_that_closes(work: Path) -> None:
    program = """
import faulthandler, signal
faulthandler.dump_traceback_later(35, exit=True)
for delay_s in (0.001, 0.003, 0.01, 0.03, 0.06, 0.1, 0.15):
    client = AppServerClient(null_app_server())
    signal.signal(signal.SIGALRM, lambda *_: client.close())
    signal.setitimer(signal.ITIMER_REAL, delay_s)
    with contextlib.suppress(TransportClosedError):
        with client:
            client.initialize()
            signal.setitimer(signal.ITIMER_REAL, delay_s / 3)
            while True:
                client.request("account/logout")
    client.close()
    signal.setitimer(signal.ITIMER_REAL, 0)
"""
    run(program, work)


class Cycle:
    """Garbage that only a collection finds, with a client in it."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing
        self.own = self


def gone(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


@pytest.mark.parametrize("where", ["connection", "mailbox", "log"])
def test_a_client_collected_under_any_lock_waits_for_nothing_and_ends_its_process(where: str) -> None:
    """Finalizers run at any allocation: here under a lock that the I/O thread of the client waits for."""
    import logging

    transport = StdioTransport(null_app_server())
    codex = Codex(transport=transport)
    handler = logging.StreamHandler()
    lock: Any = {
        "connection": codex.client._connection._lock,
        "mailbox": codex.client._connection.notifications._readers,  # type: ignore[attr-defined]
        "log": handler.lock,
    }[where]
    connection = weakref.ref(codex.client._connection)
    pid = transport.pid
    assert pid is not None
    Cycle(codex)
    began_at = time.monotonic()
    with in_time(), warnings.catch_warnings(record=True) as said, lock:
        warnings.simplefilter("always")
        del codex
        gc.collect()
        assert time.monotonic() - began_at < 2
    assert any(issubclass(each.category, ResourceWarning) for each in said)
    deadline = time.monotonic() + LIMIT_S
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gone(pid) and connection is not None


def test_a_collected_client_ends_its_process_though_warnings_are_errors() -> None:
    transport = StdioTransport(null_app_server())
    codex = Codex(transport=transport)
    pid = transport.pid
    assert pid is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What a finalizer raises is only printed.
        with contextlib.redirect_stderr(None):
            del codex
            gc.collect()
    deadline = time.monotonic() + LIMIT_S
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gone(pid)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_async_client_that_is_dropped_ends_its_process_after_its_loop() -> None:
    import asyncio

    pids: list[int] = []

    async def main() -> None:
        transport = StdioTransport(null_app_server())
        codex = AsyncCodex(transport=transport)
        await codex.start()
        assert transport.pid is not None
        pids.append(transport.pid)
        Cycle(codex)

    asyncio.run(main())
    gc.collect()
    deadline = time.monotonic() + LIMIT_S
    while not gone(pids[0]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gone(pids[0])


def test_a_finalizer_of_the_user_may_interrupt_a_turn_under_the_lock_of_its_client() -> None:
    with Codex(null_app_server(hold="/nowhere")) as codex, in_time():
        turn = codex.thread_start().turn("x")

        class Guard:
            def __del__(self) -> None:
                turn.interrupt()

        guard = Cycle(Guard())
        del guard
        with codex.client._connection._lock:
            gc.collect()
        assert turn.run(timeout=LIMIT_S).status.value == "interrupted"


# The parts.


def test_what_is_put_while_a_reader_is_interrupted_is_not_waited_for() -> None:
    mailbox = SyncMailbox()
    done = threading.Event()

    def put() -> None:
        mailbox.put([b'{"method":"a"}'])
        mailbox.close()
        done.set()

    with mailbox._readers:
        threading.Thread(target=put).start()
        assert done.wait(LIMIT_S)
    assert mailbox.get(1) is not None and mailbox.get(1) is None


def test_a_mailbox_that_times_out_forgets_who_waited() -> None:
    mailbox = SyncMailbox()
    for _ in range(50):
        with pytest.raises(TimeoutError):
            mailbox.get(0.001)
    assert not mailbox._waiters._waiting


def test_a_latch_opens_for_all_and_for_whoever_comes_later() -> None:
    latch, passed = Latch(), []
    threads = [threading.Thread(target=lambda: passed.append(latch.wait(LIMIT_S))) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert not latch.wait(0.01) and not latch.is_open
    latch.open()
    latch.open()
    for thread in threads:
        thread.join(LIMIT_S)
    assert passed == [True] * 20 and latch.wait() and latch.wait(0)
    assert not latch._waiters._waiting


def test_an_answer_is_a_result_or_an_error() -> None:
    answer = Answer()
    assert not answer.done() and not answer.wait(0)
    answer.set_result(1)
    assert answer.done() and answer.wait() and answer.result() == 1
    failed = Answer()
    failed.set_exception(KeyError("x"))
    with pytest.raises(KeyError):
        failed.result()


def test_a_wake_pipe_never_blocks_and_is_closed_with_its_last_reference() -> None:
    pipe = WakePipe()
    for _ in range(100_000):
        pipe.wake()
    pipe.clear()
    descriptors = pipe.descriptors
    wake = pipe.wake
    del pipe
    wake()
    for descriptor in descriptors:
        os.fstat(descriptor)
    del wake
    for descriptor in descriptors:
        with pytest.raises(OSError):
            os.fstat(descriptor)


def test_no_condition_or_event_stands_between_a_caller_and_the_io_thread() -> None:
    """Conditions and events hold a lock while they look: whoever a signal interrupts there waits for itself."""
    import inspect

    from codex_app_server import transport
    from codex_app_server._core import mailbox
    from codex_app_server._runtime import pumps
    from codex_app_server._sync import client, driver
    from codex_app_server._sync import mailbox as sync_mailbox
    from codex_pool.client import transport as pool_transport
    from codex_pool.daemon import lifecycle

    for module in (
        connection,
        mailbox,
        sync_mailbox,
        pumps,
        wakeup,
        client,
        driver,
        transport,
        pool_transport,
        lifecycle,
    ):
        source = inspect.getsource(module)
        for name in ("threading.Event(", "threading.Condition(", "Semaphore(", "queue.Queue(", "futures.Future("):
            assert name not in source, (module.__name__, name)
    assert AppServerClient is client.AppServerClient
