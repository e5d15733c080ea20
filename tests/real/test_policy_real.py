"""Clients with a key on the real pool: what they may do, what they may not, and who notices."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from ports import free_port
from waiting import until

from codex_app_server import AppServerConfig, Codex
from codex_app_server.errors import AppServerError, JsonRpcError, TransportClosedError
from codex_pool import connect
from codex_pool.auth.keys import KeyStore, read_client_key
from codex_pool.auth.policy import NOT_ALLOWED
from codex_pool.auth.principal import Identity
from codex_pool.client.transport import PoolTransport
from codex_pool.pool import Pool
from codex_pool.protocol import sockets, wire
from codex_pool.protocol.endpoints import EndpointError
from codex_pool.runtime import processes

pytestmark = pytest.mark.real

LIMIT_S = 30.0


class House:
    """A pool that listens on TCP, and the keys to it."""

    def __init__(self, config: AppServerConfig, directory: Path, work: Path) -> None:
        self.directory = directory
        self.work = work
        self.store = KeyStore(directory / "keys")
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.pool = Pool(2, config, listen=self.address, keys=self.store.directory)

    def key(self, name: str, **fields: Any) -> Path:
        file = self.directory / f"{name}.key"
        self.store.new(Identity(name=name, **{"cwd_roots": (str(self.work),), **fields}), file)
        return file

    def connect(self, key: Path) -> Codex:
        return connect(self.address, key=key, name=key.stem)

    def refused(self) -> dict[str, int]:
        with self.pool.connect() as codex:
            return dict(codex.client.request("pool/status")["refused"])


@pytest.fixture
def house(config: AppServerConfig, tmp_path: Path, work: Path) -> Iterator[House]:
    house = House(config, tmp_path, work)
    with house.pool:
        yield house


def denied(what: str, call: Callable[[], Any]) -> str:
    with pytest.raises(JsonRpcError) as caught:
        call()
    assert caught.value.code == NOT_ALLOWED and caught.value.data == {"kind": "refused", "what": what}, caught.value
    return str(caught.value)


def test_a_client_with_a_key_works_within_its_limits(house: House) -> None:
    with house.connect(house.key("alice")) as alice:
        thread = alice.thread_start(cwd=str(house.work))
        assert thread.run("hello").final_response
        # Said by nobody: the ceiling, and that nobody is asked.
        record = alice.client.request("thread/resume", {"thread_id": thread.id})
        assert record.sandbox.type == "readOnly" and record.approval_policy.value == "never"
        for sandbox in ("workspace-write", "danger-full-access"):
            denied("sandbox", lambda sandbox=sandbox: alice.thread_start(sandbox=sandbox))
            denied("sandboxPolicy", lambda sandbox=sandbox: thread.run("x", sandbox=sandbox))
        denied("approvalPolicy", lambda: alice.thread_start(approval_mode="ask"))
        denied("cwd", lambda: alice.thread_start(cwd="/"))
        denied("config", lambda: alice.thread_start(config={"sandbox_mode": "danger-full-access"}))
        assert "--allow fs/readFile" in denied(
            "method", lambda: alice.client.request("fs/readFile", {"path": "/etc/passwd"})
        )
        with house.pool.connect(name="somebody else"):
            seen = alice.client.request("pool/status")
            assert seen["clients"] == ["alice"] and seen["threads"] == 1 and "refused" not in seen
            assert "somebody else" not in str(seen) and "pid" not in str(seen).lower()
        assert thread.run("still here").final_response
    assert house.refused()["sandbox"] == 2


def test_anothers_thread_is_not_listed_read_resumed_steered_or_interrupted(house: House) -> None:
    with (
        house.connect(house.key("alice")) as alice,
        house.connect(house.key("mallory")) as mallory,
        house.pool.connect() as own,
    ):
        mine = alice.thread_start(cwd=str(house.work))
        assert mine.run("hello").final_response
        theirs = own.thread_start()
        assert theirs.run("hello").final_response
        running = mine.turn("[[hang]]")
        for thread_id in (mine.id, theirs.id):
            calls: dict[str, dict[str, Any]] = {
                "thread/read": {"include_turns": True},
                "thread/resume": {},
                "thread/fork": {},
                "thread/archive": {},
                "thread/name/set": {"name": "mallory's"},
                "thread/turns/list": {},
                "thread/unsubscribe": {},
                "turn/start": {"input": [{"type": "text", "text": "hi", "text_elements": []}]},
                "turn/steer": {"expected_turn_id": running.id, "input": []},
                "turn/interrupt": {"turn_id": running.id},
            }
            for method, fields in calls.items():
                denied(
                    "thread", lambda m=method, f=fields, t=thread_id: mallory.client.request(m, {"thread_id": t, **f})
                )
        assert [each.id for each in mallory.thread_list().data] == []
        assert mallory.client.request("thread/loaded/list", {}).data == []
        assert [each.id for each in alice.thread_list().data] == [mine.id]
        assert {each.id for each in own.thread_list().data} == {mine.id, theirs.id}
        # A turn of another's thread, named beside one's own.
        hers = mallory.thread_start(cwd=str(house.work))
        with pytest.raises(AppServerError):
            mallory.client.request("turn/interrupt", {"thread_id": hers.id, "turn_id": running.id})
        with pytest.raises(AppServerError):
            mallory.client.request("pool/turn/follow", {"threadId": hers.id, "turnId": running.id})
        running.interrupt()
        for _ in running.stream():
            pass
        assert mine.run("still mine").final_response


def test_a_revoked_key_ends_the_live_session_and_nobody_elses(house: House) -> None:
    with house.connect(house.key("bob")) as bob:
        key = house.key("alice")
        alice = house.connect(key)
        try:
            thread = alice.thread_start(cwd=str(house.work))
            running = thread.turn("[[hang]]")
            kept = bob.thread_start(cwd=str(house.work))
            house.store.revoke("alice")
            with pytest.raises(TransportClosedError, match="revoked"):
                for _ in running.stream():
                    pass
            with pytest.raises(TransportClosedError):
                alice.thread_start()
        finally:
            alice.close()
        with pytest.raises(TransportClosedError, match="codex-pool keys list"):
            house.connect(key)
        assert kept.run("hello").final_response
    until(lambda: house.refused().get("unknown key"))
    with house.pool.connect() as own:
        # Her turn does not go on without her.
        until(lambda: own.client.request("pool/status")["turns"]["running"] == 0)


def test_a_message_too_large_is_answered(house: House) -> None:
    with house.connect(house.key("alice", max_message_bytes=10_000)) as alice:
        thread = alice.thread_start(cwd=str(house.work))
        assert "10000 bytes" in denied("message", lambda: thread.run("x" * 20_000))
        assert thread.run("short").final_response


def test_bounds_on_sessions_and_threads(house: House) -> None:
    key = house.key("alice", max_sessions=1, max_threads=1)
    with house.connect(key) as alice:
        with pytest.raises(TransportClosedError, match="--max-sessions"):
            house.connect(key)
        alice.thread_start(cwd=str(house.work))
        assert "--max-threads" in denied("threads", lambda: alice.thread_start(cwd=str(house.work)))


def test_who_has_no_key_is_told_what_to_do(house: House, tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="codex-pool keys new NAME"):
        connect(house.address)
    with pytest.raises(EndpointError, match="takes no key"):
        connect(house.pool.endpoint, key=house.key("alice"))
    with pytest.raises(EndpointError, match="no key file"):
        connect(house.address, key=tmp_path / "none.key")


RAW = [
    b"",
    bytes(5000),
    b"\xff" * 5000,
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48),
]


def test_raw_bytes_at_both_sockets_change_nothing_for_others(house: House) -> None:
    with house.connect(house.key("alice")) as alice, house.pool.connect() as own, contextlib.ExitStack() as stack:
        path = house.pool.endpoint.removeprefix("ipc://")
        assert os.stat(path).st_mode & 0o777 == 0o600 and os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
        for content in RAW:
            over_tcp = stack.enter_context(socket.create_connection(("127.0.0.1", house.port)))
            over_tcp.sendall(content)
            over_ipc = stack.enter_context(socket.socket(socket.AF_UNIX))
            over_ipc.connect(path)
            over_ipc.sendall(content)
            for codex in (alice, own):
                assert codex.thread_start(cwd=str(house.work), ephemeral=True).run("hello").final_response


class Everything:
    """A receiver that keeps whatever comes."""

    def __init__(self) -> None:
        self.dispatched_to: list[str] = []
        self.closed = False

    def on_batch(self, batch: Any) -> None:
        self.dispatched_to.append(repr(batch))

    def on_closed(self, error: BaseException) -> None:
        self.closed = True


def test_nothing_of_anothers_threads_comes_to_a_client(house: House) -> None:
    key = house.key("mallory")
    everything = Everything()
    transport = PoolTransport(house.address, key=key)
    transport.start(everything)
    try:
        with house.connect(house.key("alice")) as alice, house.pool.connect() as own:
            ids = []
            for codex in (alice, own):
                thread = codex.thread_start(cwd=str(house.work))
                thread.run("hello")
                thread.set_name("a name of hers")
                ids.append(thread.id)
                codex.client.request("thread/archive", {"thread_id": thread.id})
        # What was sent before this answer has come before it.
        transport.send(b'{"id":1,"method":"model/list","params":{}}')
        until(lambda: [text for text in everything.dispatched_to if '"id":1' in text])
    finally:
        transport.close()
    assert not [
        text for text in everything.dispatched_to if any(thread_id in text for thread_id in ids) or "of hers" in text
    ]
    assert not [text for text in everything.dispatched_to if "account/" in text]


def test_a_renewed_key_has_the_threads_and_a_new_one_of_the_same_name_has_none(house: House) -> None:
    with house.connect(house.key("bob")) as bob:
        old_key = house.key("alice")
        old = house.connect(old_key)
        try:
            thread = old.thread_start(cwd=str(house.work))
            assert thread.run("hello").final_response
            first = next(each.principal for each in house.store.known().allowed if each.name == "alice")
            new_key = house.directory / "renewed.key"
            house.store.renew("alice", new_key)
            with pytest.raises(TransportClosedError):
                until(lambda: not old.thread_list())
        finally:
            old.close()
        with house.connect(new_key) as alice:
            assert [each.id for each in alice.thread_list().data] == [thread.id]
            assert alice.thread_resume(thread.id).run("and again").final_response
        house.store.revoke("alice")
        old_key.unlink()
        with house.connect(house.key("alice")) as other:
            assert other.thread_list().data == []
            said = denied("thread", lambda: other.client.request("thread/read", {"thread_id": thread.id}))
            assert "none of alice's" in said, "people read names"
        house.store.revoke("alice")
        house.store.renew("alice", house.directory / "again.key", principal=first)
        with house.connect(house.directory / "again.key") as alice:
            assert [each.id for each in alice.thread_list().data] == [thread.id]
        assert bob.thread_list().data == []


def test_who_owns_what_is_known_to_the_next_broker(house: House) -> None:
    with house.connect(house.key("alice")) as alice, house.connect(house.key("mallory")) as mallory:
        thread = alice.thread_start(cwd=str(house.work))
        assert thread.run("hello").final_response
        assert house.pool.supervisor_pid is not None
        broker = next(
            process
            for process in processes.descendants(house.pool.supervisor_pid)
            if b"codex_pool.broker" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        )
        os.kill(broker.pid, signal.SIGKILL)
        assert thread.run("and again").final_response
        denied("thread", lambda: mallory.client.request("thread/read", {"thread_id": thread.id}))
        assert [each.id for each in alice.thread_list().data] == [thread.id]


def test_two_identities_with_one_session_id_do_not_meet(house: House) -> None:
    """The id of a session is the client's to choose: another's must not open his session."""
    context: zmq.Context[Any] = zmq.Context()
    opened = []
    try:
        for name in ("alice", "mallory"):
            key = read_client_key(house.key(name))
            dealer, monitor = sockets.dealer_once(context, house.address, f"connection of {name}", key)
            opened += [dealer, monitor]
            dealer.send(wire.encode(wire.Hello("the-same", name)))
            assert dealer.poll(int(LIMIT_S * 1000))
            assert wire.decode_to_client(dealer.recv_multipart()[0]) == wire.Welcome(2, resumed=False)
        with house.pool.connect() as own:
            rows = own.client.request("pool/status")["sessions"]
        assert {row["identity"] for row in rows if row["identity"]} == {"alice", "mallory"}
    finally:
        opened[0].disable_monitor()
        for each in opened:
            each.close(linger=0)
        context.term()


def test_the_command_line_over_tcp(house: House) -> None:
    key = house.key("alice")
    environ = {**os.environ, "CODEX_POOL_KEY": str(key)}
    command = [sys.executable, "-m", "codex_pool_cli"]

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=LIMIT_S, env=env)

    done = run("run", "hello", "--connect", house.address, "--key", str(key), "--cwd", str(house.work))
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    done = run("run", "hello", "--connect", house.address, "--cwd", str(house.work), env=environ)
    assert done.returncode == 0, done.stderr
    done = run("run", "hello", "--connect", house.address, "--cwd", "/", env=environ)
    assert done.returncode == 1 and "give one in or below" in done.stderr
    done = run("run", "hello", "--connect", house.address)
    assert done.returncode == 2 and "--key FILE" in done.stderr
    done = run("run", "hello", "--key", str(key))
    assert done.returncode == 2 and "--connect tcp://HOST:PORT" in done.stderr
    done = run("status", "--connect", house.address, "--key", str(key))
    assert done.returncode == 0 and "2 of 2 workers ready" in done.stdout, done.stderr
    status = run("status", "--connect", house.pool.endpoint, "--json", env=environ)
    assert status.returncode == 0, status.stderr


def test_a_port_that_is_taken_is_said_at_the_start(config: AppServerConfig, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TransportClosedError, match=f"cannot listen on {address}"):
            Pool(1, config, listen=address, keys=tmp_path / "keys").start()


def test_keys_that_others_can_read_are_said_at_the_start(config: AppServerConfig, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o755)
    keys.chmod(0o755)
    with pytest.raises(EndpointError, match=f"chmod 700 {keys}"):
        Pool(1, config, listen="tcp://127.0.0.1:7601", keys=keys).start()


@pytest.mark.parametrize(
    "address", ["tcp://", "tcp://host", "tcp://host:0", "tcp://host:99999", "tcp://a b:1", "udp://h:1"]
)
def test_addresses_that_are_none(config: AppServerConfig, address: str) -> None:
    with pytest.raises(EndpointError, match="tcp://HOST:PORT"):
        Pool(1, config, listen=address).start()
