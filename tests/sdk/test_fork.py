"""Owners of a process, a thread, a socket or a lock are inert in a forked child; its parent goes on as before."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from forks import run

from codex_app_server import WrongProcessError


@pytest.mark.real
@pytest.mark.parametrize("how", ["exit", "close", "collect", "multiprocessing", "in C"])
def test_a_child_that_ends_leaves_the_app_server_alone(work: Path, how: str) -> None:
    program = """
how = sys.argv[2]
def child():
    if how == "exit":
        sys.exit(0)
    codex.close()
    codex.client.close()
with LoopbackModel() as model, Codex(real(model)) as codex:
    turn = codex.thread_start().turn("[[text deltas=5 pace_ms=100]]")
    if how == "exit":
        pid = os.fork()
        if pid == 0:
            sys.exit(0)  # leaves both with blocks
        assert ended(pid) == 0
    elif how == "collect":
        pid = os.fork()
        if pid == 0:
            turn = codex = model = None
            gc.collect()
            sys.exit(0)
        assert ended(pid) == 0
    elif how == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start(); process.join(20)
        assert process.exitcode == 0
    else:
        assert in_child(child, fork_in_c if how == "in C" else os.fork) == 0
    assert turn.run(timeout=20).status.value == "completed"
    assert codex.thread_start().run("more", timeout=20).status.value == "completed"
"""
    # Not a word, of a process that was not waited for, say.
    assert run(program, work, how) == ""


@pytest.mark.parametrize("fork", ["os.fork", "fork_in_c"])
def test_every_use_in_a_child_is_refused_with_the_remedy(work: Path, fork: str) -> None:
    program = f"""
uses = [
    lambda: codex.thread_start(), lambda: codex.models(), lambda: codex.account(), lambda: codex.logout(),
    lambda: codex.login_chatgpt(), lambda: next(codex.notifications()), lambda: codex.client.start(),
    lambda: codex.client.request("thread/list"), lambda: codex.client.notify("x"), lambda: codex.client.held,
    lambda: codex.client.next_notification(1), lambda: codex.client.turn_notifications(turn.id),
    lambda: codex.client.wait_for_turn_completed(turn.id), lambda: codex.client.wait_for_login_completed("x", 1),
    lambda: codex.client.follow_turn(turn.id), lambda: codex.client.running_turn(thread.id),
    lambda: next(codex.client.stream_text(thread.id, "x")), lambda: thread.run("x"), lambda: thread.turn("x"),
    lambda: thread.read(), lambda: thread.follow(turn.id), lambda: thread.goal(), lambda: thread.review(),
    lambda: turn.run(), lambda: turn.run(timeout=1), lambda: next(turn.stream()), lambda: next(turn.text()),
    lambda: turn.steer("x"), lambda: turn.interrupt(), lambda: list(turn.stream()), lambda: transport.send(b"x"),
    lambda: login.wait(1), lambda: login.cancel(), lambda: turn.sub_agents(), lambda: turn.sub_agent_usage(),
]
def child():
    for use in uses:
        refused(use)
    # What gives up does nothing.
    turn.abandon()
    with turn.stream(), turn.text():
        pass
    with codex:
        pass
    transport.close(); transport.close_soon(); codex.client.close()
    if os.fork is {fork}:
        # A new one works. A fork in C leaves the interpreter's lock as it was, among threads that are gone.
        with Codex(null_app_server()) as own:
            assert own.thread_start().run("x").status.value == "completed"
from codex_app_server.login import ChatgptLoginHandle
transport = StdioTransport(null_app_server(hold="/nowhere"))
with Codex(transport=transport) as codex:
    thread = codex.thread_start()
    turn = thread.turn("x")
    login = ChatgptLoginHandle(codex.client, "x", "y")
    assert in_child(child, {fork}) == 0
    turn.interrupt()
    assert turn.run(timeout=10).status.value == "interrupted"
"""
    run(program, work)


def test_every_use_of_what_is_async_in_a_child_is_refused(work: Path) -> None:
    program = """
async def refuse(make):
    try:
        result = make()
        if hasattr(result, "__anext__"):
            result = result.__anext__()
        await result
    except WrongProcessError:
        return
    raise AssertionError(f"{make} was not refused")
async def child():
    from codex_app_server.login import AsyncChatgptLoginHandle
    login = AsyncChatgptLoginHandle(codex.client, "x", "y")
    for make in (
        codex.start, codex.thread_start, codex.models, codex.account, codex.logout, codex.notifications,
        codex.client.start, codex.client.initialize, lambda: codex.client.request("thread/list"),
        codex.client.next_notification, lambda: codex.client.turn_notifications(turn.id),
        lambda: codex.client.stream_text(thread.id, "x"), lambda: codex.client.wait_for_turn_completed(turn.id),
        lambda: thread.run("x"), lambda: thread.turn("x"), thread.read, thread.review, lambda: thread.follow(turn.id),
        turn.run, turn.interrupt, lambda: turn.steer("x"), turn.stream, turn.text, lambda: astream_text(thread, "x"),
        login.wait, login.cancel, lambda: codex.client.notify("x"),
    ):
        await refuse(make)
    turn.abandon()
    await turn.stream().aclose()
    await codex.close()
    await codex.client.close()
    async with AsyncCodex(null_app_server()) as own:
        assert (await (await own.thread_start()).run("x")).status.value == "completed"
async def main():
    global codex, thread, turn
    async with AsyncCodex(null_app_server(hold="/nowhere")) as codex:
        thread = await codex.thread_start()
        turn = await thread.turn("x")
        assert await asyncio.to_thread(in_child, lambda: asyncio.run(child())) == 0
        await turn.interrupt()
        assert (await turn.run(timeout=10)).status.value == "interrupted"
asyncio.run(main())
"""
    run(program, work)


@pytest.mark.real
@pytest.mark.parametrize("over", ["stdio", "pool"])
@pytest.mark.parametrize("how", ["exit", "error", "close"])
def test_a_fork_within_the_event_loop_leaves_that_of_the_parent_alone(work: Path, over: str, how: str) -> None:
    program = """
over, how = sys.argv[2:]
async def main(codex):
    async with codex:
        thread = await codex.thread_start()
        turn = await thread.turn("[[text deltas=5 pace_ms=100]]")
        pid = os.fork()
        if pid == 0:
            if how == "exit":
                sys.exit(0)
            if how == "error":
                raise SystemExit("no matter")
            await codex.close()
            return
        assert await asyncio.to_thread(ended, pid) in (0, 1)
        assert (await turn.run(timeout=20)).status.value == "completed"
        assert (await thread.run("more", timeout=20)).status.value == "completed"
with LoopbackModel() as model, contextlib.ExitStack() as stack:
    if over == "stdio":
        asyncio.run(main(AsyncCodex(real(model))))
    else:
        pool = stack.enter_context(Pool(1, real(model), log_file=work / "log"))
        asyncio.run(main(AsyncCodex(transport=PoolTransport(pool.endpoint))))
"""
    run(program, work, over, how)


@pytest.mark.real
def test_a_pool_and_its_clients_are_inert_in_a_child(work: Path) -> None:
    program = """
def child():
    for use in (
        pool.start, pool.connect, lambda: pool.wait_ended(1), lambda: asyncio.run(pool.aconnect()),
        codex.thread_start, lambda: codex.client.notify("x"), turn.run, lambda: list(turn.stream()),
    ):
        refused(use)
    turn.abandon()
    codex.close()
    with pool:
        pass
async def leave():
    async with pool:
        pass
def leaving():
    try:
        with pool:
            raise SystemExit
    except WrongProcessError:
        # It is used by entering.
        pass
    pool.close()
def leaving_async():
    leaving()
    asyncio.run(pool.__aexit__())
with LoopbackModel() as model, Pool(1, real(model), log_file=work / "log") as pool, pool.connect() as codex:
    # A fork in C first: while no thread works, none waits for the interpreter's lock.
    for fork in (fork_in_c, os.fork):
        if fork is fork_in_c:
            turn = codex.thread_start().turn("[[hang 5]]")
            model.wait_for(lambda request: "hang" in request.prompt)
        else:
            turn.interrupt()
            turn = codex.thread_start().turn("[[text deltas=5 pace_ms=100]]")
        assert in_child(leaving if fork is fork_in_c else leaving_async, fork) == 0
        pid = fork()
        if pid == 0:
            for use in (pool.start, pool.connect, lambda: pool.wait_ended(1), codex.thread_start, turn.run):
                refused(use)
            turn.abandon()
            codex.close()
            codex = turn = None
            gc.collect()
            os._exit(0)
        assert ended(pid) == 0
    pid = os.fork()
    if pid == 0:
        sys.exit(0)  # leaves the with blocks
    assert ended(pid) == 0
    # The remedy.
    def connects():
        from codex_pool import connect
        with connect(pool.endpoint) as own:
            assert own.thread_start().run("x", timeout=20).status.value == "completed"
    assert in_child(connects) == 0
    assert turn.run(timeout=20).status.value == "completed"
    assert codex.thread_start().run("more", timeout=20).status.value == "completed"
"""
    assert run(program, work) == ""


@pytest.mark.real
def test_a_child_holds_no_pipe_and_no_socket_of_what_was_made_before(work: Path) -> None:
    program = """
from codex_app_server.testing.issuer import LoopbackIssuer
before = pipes()
def child():
    left = pipes() - before
    assert not left, left
with LoopbackIssuer() as issuer, LoopbackModel() as model, Codex(real(model)) as codex:
    assert codex.thread_start().run("x", timeout=20).status.value == "completed"
    with Pool(1, real(model), log_file=work / "log"):
        code = in_child(child)
    assert code == 0
    async def main():
        async with AsyncCodex(real(model)) as codex:
            await codex.thread_start()
            assert await asyncio.to_thread(in_child, asyncio_child) == 0
    def asyncio_child():
        # The loop's own pair of sockets is a new one.
        assert len(pipes() - before) <= 2, pipes() - before
    asyncio.run(main())
"""
    run(program, work)


@pytest.mark.real
def test_a_pool_whose_owner_is_killed_ends_though_a_child_of_the_owner_lives(work: Path) -> None:
    program = """
import signal
with LoopbackModel() as model:
    config = real(model)
    r, w = os.pipe()
    owner = os.fork()
    if owner == 0:
        pool = Pool(1, config, log_file=work / "log")
        pool.start()
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        os.write(w, f"{child} {pool.supervisor_pid}".encode())
        time.sleep(60)
        os._exit(0)
    child, supervisor = map(int, os.read(r, 100).split())
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    deadline = time.monotonic() + 20
    def runs():
        # One that has ended may not have been reaped yet, by whoever inherited it.
        with contextlib.suppress(OSError):
            return ") Z " not in Path(f"/proc/{supervisor}/stat").read_text()
    while runs() and time.monotonic() < deadline:
        time.sleep(0.05)
    outlives = runs()
    os.kill(child, signal.SIGKILL)
    assert not outlives, "the pool outlives its owner"
"""
    run(program, work)


@pytest.mark.parametrize("what", ["client", "mailbox", "transport"])
def test_a_lock_that_another_thread_holds_does_not_block_a_child(work: Path, what: str) -> None:
    program = """
what = sys.argv[2]
with Codex(null_app_server(hold="/nowhere")) as codex:
    thread = codex.thread_start()
    turn = thread.turn("x")
    connection = codex.client._connection
    lock = {
        "client": connection._lock, "mailbox": turn._mailbox._readers, "transport": connection._transport._stop_lock
    }[what]
    held, done = threading.Event(), threading.Event()
    def hold():
        with lock:
            held.set()
            done.wait()
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    def child():
        for use in (codex.thread_start, turn.run, turn.interrupt, lambda: thread.follow(turn.id)):
            refused(use)
        codex.close()
    assert in_child(child) == 0 and in_child(child, fork_in_c) == 0
    pid = os.fork()
    if pid == 0:
        codex = turn = connection = None
        sys.exit(0)
    assert ended(pid) == 0
    done.set()
    holder.join()
"""
    run(program, work, what)


def test_forks_while_other_threads_start_clients_copy_no_pipe(work: Path) -> None:
    program = """
import gc
before = pipes()
stop = threading.Event()
def start():
    while not stop.is_set():
        with Codex(null_app_server()):
            pass
threads = [threading.Thread(target=start) for _ in range(3)]
for thread in threads:
    thread.start()
held = []
for _ in range(40):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(w, repr(sorted(pipes() - before)).encode())
        os._exit(0)
    assert ended(pid) == 0
    # Its own pipe, and that by which Popen hears whether the program was started.
    held.append(len(eval(os.read(r, 10000))))
    os.close(r), os.close(w)
stop.set()
for thread in threads:
    thread.join()
assert max(held) <= 1, held
"""
    run(program, work)


def test_servers_for_tests_are_inert_in_a_child_and_give_their_ports_back(work: Path) -> None:
    program = """
import socket, urllib.request
from codex_app_server.testing.issuer import LoopbackIssuer
for make in (LoopbackModel, LoopbackIssuer):
    server = make().start()
    port = getattr(server, "port", None) or int(server.url.rpartition(":")[2])
    talk = socket.create_connection(("127.0.0.1", port))
    talk.sendall(b"GET /v1/models HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    assert talk.recv(100)
    pid = os.fork()
    if pid == 0:
        uses = [server.start]
        uses += [lambda: server.requests, lambda: server.active] if make is LoopbackModel else [server.tokens]
        for use in uses:
            refused(use)
        server.close()
        with contextlib.suppress(WrongProcessError), server:
            pass
        time.sleep(60)
    time.sleep(0.5)
    talk.sendall(b"GET /v1/models HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    again = socket.create_connection(("127.0.0.1", port))
    again.sendall(b"GET /v1/models HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    assert again.recv(100), "the server of the parent goes on"
    again.settimeout(10); talk.settimeout(10)
    if make is LoopbackIssuer:
        again.close(); talk.close()
    server.close()
    if make is LoopbackModel:
        # Nobody but the server had it open: its client sees the end.
        while talk.recv(65536):
            pass
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        pass
    else:
        raise AssertionError("somebody still listens")
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    again.close(); talk.close()
"""
    run(program, work, warnings="default")


def test_a_run_directory_is_neither_held_nor_closed_by_a_child(work: Path) -> None:
    program = """
from codex_batch.store import RunDirectory, open_run
run = work / "run"
directory = RunDirectory(run)
directory.note("a", 1).result(10)
pid = os.fork()
if pid == 0:
    refused(lambda: directory.note("b", 2))
    refused(lambda: directory.store.counts())
    directory.close()
    directory.store.close()
    gc.collect()
    time.sleep(60)
directory.note("c", 3).result(10)
directory.close()
with contextlib.closing(RunDirectory(run)) as again:
    assert again.store.info()["a"] == 1 and again.store.info()["c"] == 3
os.kill(pid, 9)
os.waitpid(pid, 0)
"""
    run(program, work)


def test_a_trace_is_of_the_process_that_writes_it(work: Path) -> None:
    program = """
with Codex(transport=TracingTransport(StdioTransport(null_app_server()), work / "trace")) as codex:
    codex.thread_start()
    size = (work / "trace").stat().st_size
    def child():
        refused(codex.thread_start)
        codex.close()
    assert in_child(child) == 0
    assert (work / "trace").stat().st_size == size
    codex.thread_start()
    assert (work / "trace").stat().st_size > size
"""
    run(program, work)


def test_a_child_of_a_child_is_refused_too_and_a_signal_reaches_only_whom_it_is_sent_to(work: Path) -> None:
    program = """
import signal
seen = []
async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, seen.append, 1)
    async with AsyncCodex(null_app_server()) as codex:
        await codex.thread_start()
        pid = os.fork()
        if pid == 0:
            def grandchild():
                try:
                    codex.client.held
                except WrongProcessError:
                    return
                raise AssertionError
            assert in_child(grandchild) == 0
            os.kill(os.getpid(), signal.SIGUSR1)
            os._exit(0)
        assert await asyncio.to_thread(ended, pid) == 0
        await asyncio.sleep(0.2)
        assert seen == [], "a signal to the child came to the loop of the parent"
        assert (await (await codex.thread_start()).run("x")).status.value == "completed"
asyncio.run(main())
"""
    run(program, work)


def test_a_lock_of_keys_is_not_kept_by_a_child(work: Path) -> None:
    program = """
from codex_pool.auth.keys import KeyStore
(work / "clients").mkdir(mode=0o700)
work.chmod(0o700)
store = KeyStore(work)
with store._locked():
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
with store._locked():
    pass
os.kill(pid, 9)
os.waitpid(pid, 0)
"""
    run(program, work)


def test_forks_of_many_threads_at_once_let_go_of_the_lock(work: Path) -> None:
    program = """
from codex_app_server._runtime import fork as forking
forking.OPENING_LIMIT_S = 0.05
def fork():
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            with forking.opening():
                os._exit(0)
        assert ended(pid) == 0
threads = [threading.Thread(target=fork) for _ in range(4)]
for thread in threads:
    thread.start()
# A fork waits for it, and not without end.
with forking.opening():
    time.sleep(0.3)
for thread in threads:
    thread.join()
with forking.opening():
    pass
assert not forking._forking
"""
    run(program, work)


def test_the_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(WrongProcessError("pool", 1, 2)))
    assert (error.called, error.made_in, error.used_in) == ("pool", 1, 2)
    assert "connect to its endpoint" in str(error)
