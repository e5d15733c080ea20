"""Ownership of threads on the real pool: it outlives all processes, and no answer tells a key of threads of others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from click.testing import CliRunner
from ports import free_port
from waiting import until

from codex_app_server import AppServerConfig, Codex
from codex_app_server.errors import JsonRpcError, TransportClosedError
from codex_app_server.generated.routing import REQUESTS
from codex_app_server.testing.loopback import LoopbackModel
from codex_app_server.testing.loopback.script import Hang, Rule, Script, Text, ToolCall
from codex_pool import connect
from codex_pool.auth.access import ACCESS
from codex_pool.auth.keys import KeyStore, read_client_key
from codex_pool.auth.ownership import Mark, Store, path_in
from codex_pool.auth.policy import NOT_ALLOWED
from codex_pool.auth.principal import Identity
from codex_pool.pool import Pool
from codex_pool.protocol import sockets, wire
from codex_pool.runtime import processes
from codex_pool_cli.keys import keys

pytestmark = [pytest.mark.real, pytest.mark.security]

LIMIT_S = 30.0


class House:
    """Pools on one home, and the keys to them."""

    def __init__(self, config: AppServerConfig, home: Path, directory: Path, work: Path) -> None:
        self._config, self.home, self._directory, self._work = config, home, directory, work
        self.store = KeyStore(directory / "keys")

    @contextlib.contextmanager
    def pool(self, workers: int = 1, **options: Any) -> Iterator[str]:
        address = f"tcp://127.0.0.1:{free_port()}"
        with Pool(workers, self._config, listen=address, keys=self.store.directory, **options) as self.running:
            yield address

    def key(self, name: str, **fields: Any) -> Path:
        file = self._directory / f"{name}.key"
        if not file.exists():
            self.store.new(Identity(name=name, **{"cwd_roots": (str(self._work),), **fields}), file)
        return file

    @contextlib.contextmanager
    def client(self, address: str, name: str, **fields: Any) -> Iterator[Codex]:
        with connect(address, key=self.key(name, **fields), name=name) as codex:
            yield codex

    def kept(self) -> dict[str, str]:
        """Threads in the store, and the names of their owners."""
        known = self.store.known()
        names = {entry.principal: entry.name for entry in (*known.allowed, *known.revoked)}
        with contextlib.closing(Store(self.home, Mark(self.store.directory, self.home))) as store:
            return {row.thread_id: names[row.owner] for row in store.news() if not row.gone}


@pytest.fixture
def house(config: AppServerConfig, home: Path, tmp_path: Path, work: Path) -> House:
    return House(config, home, tmp_path, work)


def ids(codex: Codex, **params: Any) -> list[str]:
    return [thread.id for thread in codex.client.request("thread/list", params).data]


def ran(codex: Codex, text: str = "hello") -> str:
    thread = codex.thread_start()
    assert thread.run(text).final_response
    return thread.id


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(JsonRpcError) as caught:
        call()
    assert caught.value.code == NOT_ALLOWED
    return str(caught.value)


def test_what_a_key_owns_outlives_every_process_and_the_archive(house: House) -> None:
    with house.pool() as address:
        with house.client(address, "alice") as alice:
            first, second = ran(alice), ran(alice)
            alice.client.request("thread/name/set", {"thread_id": first, "name": "The first"})
            alice.client.request("thread/archive", {"thread_id": second})
        with house.running.connect() as own:
            others = ran(own)
    with house.pool() as address, house.client(address, "alice") as alice, house.client(address, "bob") as bob:
        assert ids(alice) == [first] and ids(alice, archived=True) == [second]
        assert ids(alice, search_term="FIRST") == [first] and ids(alice, search_term="hello") == []
        assert ids(bob) == [] == ids(bob, archived=True)
        for thread_id in (first, second, others):
            assert "is none of bob's" in refusal(lambda each=thread_id: bob.thread_resume(each))
        assert "is none of alice's" in refusal(lambda: alice.thread_resume(others))
        alice.client.request("thread/unarchive", {"thread_id": second})
        assert set(ids(alice)) == {first, second}
        assert alice.thread_resume(first).run("again").final_response
        alice.client.request("thread/delete", {"thread_id": second})
        assert ids(alice) == [first]
        with house.running.connect() as own:
            assert set(ids(own)) == {first, others}


def test_two_pools_on_one_home_know_what_the_other_one_keeps(house: House, tmp_path: Path) -> None:
    with (
        house.pool(endpoint=f"ipc://{tmp_path}/a/one.sock") as one,
        house.pool(endpoint=f"ipc://{tmp_path}/b/two.sock") as two,
        house.client(one, "alice") as here,
        house.client(two, "alice") as there,
        house.client(two, "bob") as bob,
    ):
        thread_id = ran(here)
        assert ids(there) == [thread_id] and ids(bob) == []
        assert there.client.request("thread/read", {"thread_id": thread_id}).thread.id == thread_id
        refusal(lambda: bob.client.request("thread/read", {"thread_id": thread_id}))


def test_a_thread_is_kept_before_its_start_is_answered(house: House) -> None:
    with house.pool() as address, house.client(address, "alice") as alice:
        started = alice.thread_start()
        # A store that is opened now sees it, whatever dies next.
        assert house.kept()[started.id] == "alice"
        assert started.run("hello").final_response
        forked = alice.client.request("thread/fork", {"thread_id": started.id}).thread.id
        assert house.kept()[forked] == "alice"
        os.kill(_broker_of(house.running), signal.SIGKILL)
        assert until(lambda: ids(alice)) and started.id in ids(alice)


def test_threads_of_sub_agents_are_their_parents_clients(house: House, model: LoopbackModel) -> None:
    child = ToolCall(json.dumps({"message": "a child that works"}), tool="multi_agent_v1.spawn_agent")
    model.script = Script((Rule(child, contains="delegate"),))
    with house.pool() as address, house.client(address, "alice") as alice:
        parent = ran(alice, "delegate")
        children = until(lambda: set(house.kept()) - {parent})
        assert len(children) == 1 and set(house.kept().values()) == {"alice"}
    with house.pool() as address, house.client(address, "alice") as alice, house.client(address, "bob") as bob:
        assert ids(alice) == [parent]
        assert ids(alice, parent_thread_id=parent) == [*children] == ids(alice, ancestor_thread_id=parent)
        assert ids(bob, parent_thread_id=parent) == []


@pytest.mark.parametrize("completes", [True, False])
def test_a_revoked_key_leaves_no_sub_agent(house: House, model: LoopbackModel, completes: bool) -> None:
    work, hang = "a child that works", Hang(2)
    child = ToolCall(
        json.dumps({"message": work}), tool="multi_agent_v1.spawn_agent", then=Text() if completes else hang
    )
    model.script = Script((Rule(hang, contains=work), Rule(child, contains="delegate")))
    with house.pool() as address, house.running.connect() as own, house.client(address, "alice") as alice:
        turn = alice.thread_start().turn("delegate")
        until(lambda: len(model.active) == (1 if completes else 2) and (not completes or turn.run()))
        turns = alice.client.request("pool/status")["turns"]
        assert (turns["running"], turns["subAgents"]) == (1 if completes else 2, 1)
        without = alice.thread_start(sub_agents=False)
        assert without.run("hello").final_response and "multi_agent_v1" not in model.requests[-1].tools
        house.store.revoke("alice")
        until(lambda: not model.active)
        until(lambda: own.client.request("pool/status")["turns"]["running"] == 0)


def test_a_lost_store_refuses_keys_until_its_loss_is_accepted(house: House) -> None:
    with house.pool() as address:
        with house.client(address, "alice") as alice:
            thread_id = ran(alice)
            path_in(house.home).unlink()
            message = until(lambda: _error(lambda: alice.client.request("thread/read", {"thread_id": thread_id})))
            assert "codex-pool keys reset-ownership" in message
        with pytest.raises(TransportClosedError, match="reset-ownership"), house.client(address, "root", admin=True):
            pass
        with house.running.connect() as own:
            assert ids(own) == [thread_id] and own.thread_resume(thread_id).run("mine").final_response
    with house.pool() as address:
        with pytest.raises(TransportClosedError, match="reset-ownership"), house.client(address, "alice"):
            pass
        done = CliRunner().invoke(
            keys, ["reset-ownership", str(house.home), "--keys", str(house.store.directory)], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        alice = until(lambda: _enter(address, house.key("alice")))
        with alice:
            assert ids(alice) == [] and ran(alice)
            refusal(lambda: alice.client.request("thread/read", {"thread_id": thread_id}))
        with house.running.connect() as own:
            assert thread_id in ids(own)


def test_ephemeral_threads_that_were_let_go_do_not_count(house: House) -> None:
    with house.pool() as address, house.client(address, "alice", max_threads=2) as alice:
        for _ in range(4):
            thread = alice.thread_start(ephemeral=True)
            assert thread.run("hello").final_response
            alice.client.request("thread/unsubscribe", {"thread_id": thread.id})
        kept = [alice.thread_start(ephemeral=True) for _ in range(2)]
        assert "2 threads" in refusal(lambda: alice.thread_start(ephemeral=True))
        assert kept[0].run("hello").final_response


def test_an_admin_may_do_what_the_pools_user_may_and_has_threads_of_its_own(house: House) -> None:
    with (
        house.pool() as address,
        house.client(address, "alice") as alice,
        house.client(address, "root", admin=True) as root,
    ):
        hers, its = ran(alice), ran(root)
        assert set(ids(root)) == {hers, its} and ids(alice) == [hers]
        assert root.thread_resume(hers).run("by root").final_response
        assert root.client.request("config/read") and "refused" in root.client.request("pool/status")
        assert house.kept() == {hers: "alice", its: "root"}
        refusal(lambda: alice.client.request("thread/read", {"thread_id": its}))


class Raw:
    """A client that sees answers as they come."""

    def __init__(self, address: str, key: Path) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        sockets.use_key(self._socket, read_client_key(key))
        self._socket.setsockopt(zmq.IDENTITY, f"{key.stem}-{time.monotonic_ns()}/1".encode())
        self._socket.connect(address)
        self._send(wire.Hello(f"{key.stem}-{time.monotonic_ns()}", "raw"))
        self._number = 0

    def _send(self, head: wire.FromClient, *bodies: bytes) -> None:
        self._socket.send_multipart([wire.encode(head), *bodies])

    def ask(self, method: str, params: dict[str, Any]) -> str:
        """The answer, without its id."""
        self._number += 1
        self._send(wire.Call(), json.dumps({"id": self._number, "method": method, "params": params}).encode())
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if not self._socket.poll(500):
                self._send(wire.Beat())
                continue
            head, *bodies = self._socket.recv_multipart()
            if isinstance(wire.decode_to_client(head), wire.Refused | wire.Closed):
                raise ConnectionError(head)
            for line in b"\n".join(bodies).split(b"\n") if isinstance(wire.decode_to_client(head), wire.Lines) else ():
                answer = json.loads(line)
                if answer.get("id") == self._number and "method" not in answer:
                    return json.dumps({name: answer[name] for name in answer if name != "id"}, sort_keys=True)
        raise AssertionError(f"{method} was not answered")

    def close(self) -> None:
        self._send(wire.Bye())
        self._socket.close(linger=200)


# They start work, or end what the next ones need.
_ACTS = frozenset(
    {"initialize", "review/start", "thread/archive", "thread/compact/start", "thread/delete", "thread/unarchive"}
    | {"thread/fork", "thread/queue/start", "thread/revert", "thread/start", "thread/unsubscribe", "turn/start"}
)
_QUERIES: dict[str, list[dict[str, Any]]] = {
    "thread/list": [
        {},
        {"limit": 1},
        {"searchTerm": "zebra", "limit": 1},
        {"archived": True},
        {"sourceKinds": ["subAgent", "vscode", "exec", "cli", "appServer", "unknown"]},
        {"sortKey": "updated_at", "sortDirection": "asc"},
        {"cursor": "2020-01-01T00:00:00Z"},
        {"cwd": "/"},
        {"modelProviders": []},
        {"useStateDbOnly": True},
        {"originators": ["victim"]},
    ],
    "thread/loaded/list": [{}, {"limit": 1}],
    "thread/searchOccurrences": [{"searchTerm": "zebra"}],
    "thread/search": [{"searchTerm": "zebra"}],
    "pool/status": [{}],
}


def test_no_method_answers_otherwise_because_others_have_threads(house: House, work: Path) -> None:
    """Each method of the schema, as a key that was granted them all, before a victim has threads and after."""
    grants = tuple(sorted(method for method, rule in ACCESS.items() if rule == "granted" and "list" in method))
    with house.pool() as address:
        with house.client(address, "mallory", methods=(*grants, "thread/search", "thread/attachmentOwner/list")) as own:
            mine = ran(own)
        raw = Raw(address, house.key("mallory"))

        def everything(victims: list[str]) -> dict[str, str]:
            answers: dict[str, str] = {}
            for method in sorted({*REQUESTS, "pool/status"} - _ACTS):
                if ACCESS.get(method, "own").startswith("granted") and method not in grants:
                    continue
                threads = [mine] if method in REQUESTS and REQUESTS[method].thread else []
                for number, query in enumerate(_QUERIES.get(method, [{}])):
                    answer = raw.ask(method, {**query, **({"threadId": mine} if threads else {})})
                    assert not any(victim in answer for victim in victims), (method, answer)
                    answers[f"{method} {number}"] = answer
            for method in ("thread/list", "thread/read", "thread/items/list", "thread/archive", "thread/resume"):
                for name in ("threadId", "parentThreadId", "ancestorThreadId"):
                    for victim in (victims or ["01a00000-0000-7000-8000-000000000000"])[:1]:
                        answer = raw.ask(method, {name: victim})
                        answers[f"{method} {name}"] = answer.replace(victim, "VICTIM")
            status = json.loads(answers["pool/status 0"])
            del status["result"]["uptimeMs"]
            return {**answers, "pool/status 0": json.dumps(status)}

        try:
            everything([])
            before = everything([])
            with house.client(address, "victim") as victim, house.running.connect() as own:
                victims = [ran(victim, "a secret zebra"), ran(own, "another zebra")]
                victim.client.request("thread/name/set", {"thread_id": victims[0], "name": "zebra"})
                archived = ran(victim, "zebra")
                victim.client.request("thread/archive", {"thread_id": archived})
                after = everything([*victims, archived])
        finally:
            raw.close()
    assert set(before) == set(after) and len(before) > 60
    differing = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not differing, differing


def _broker_of(pool: Pool) -> int:
    for process in processes.descendants(pool.supervisor_pid):
        with contextlib.suppress(OSError):
            if b"codex_pool.broker" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                return process.pid
    raise AssertionError("the pool has no broker")


def _error(call: Callable[[], Any]) -> str:
    try:
        call()
    except JsonRpcError as error:
        return str(error)
    return ""


def _enter(address: str, key: Path) -> Codex | None:
    try:
        return connect(address, key=key)
    except TransportClosedError:
        return None
