"""Users of a pool on the real binary: limits of keys, usage that outlives its processes, rotation, the audit log."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from test_metrics_real import TOKEN, get
from waiting import until

from codex_app_server import AppServerConfig, Codex, KeyLimitError
from codex_app_server.errors import AppServerError
from codex_pool import connect
from codex_pool.auth import usage_store
from codex_pool.auth.keys import KeyStore, read_client_key, read_token
from codex_pool.auth.principal import Identity
from codex_pool.pool import Pool
from codex_pool.runtime import processes

pytestmark = pytest.mark.real

PROMPT = '[[text "a few words"]]'
PRICES = '[models."*"]\ninput = 1000.0\noutput = 1000.0\n'


class House:
    """A pool with every kind of listener for keys, started as often as is wanted on one home."""

    def __init__(self, config: AppServerConfig, directory: Path, work: Path) -> None:
        self.config, self.directory, self.work = config, directory, work
        self.store = KeyStore(directory / "keys")
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.ws, self.http = f"127.0.0.1:{free_port()}", free_port()
        token = directory / "metrics.token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        self.token = token

    def pool(self, **options: Any) -> Pool:
        return Pool(
            1,
            self.config,
            listen=self.address,
            listen_ws=self.ws,
            listen_http=f"127.0.0.1:{self.http}",
            metrics_token=self.token,
            keys=self.store.directory,
            log_file=self.directory / "log",
            **options,
        )

    def key(self, name: str, **fields: Any) -> Path:
        file = self.directory / f"{name}.key"
        self.store.new(Identity(name=name, cwd_roots=(str(self.work),), **fields), file)
        return file

    def connect(self, key: Path) -> Codex:
        return connect(self.address, key=key, name=key.stem)

    @property
    def home(self) -> Path:
        return Path(self.config.env["CODEX_HOME"])


@pytest.fixture
def house(config: AppServerConfig, tmp_path: Path, work: Path) -> Iterator[House]:
    yield House(config, tmp_path, work)
    print((tmp_path / "log").read_text())


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "codex_pool_cli", *words], capture_output=True, text=True, timeout=30, check=False
    )


def usage(endpoint: str, *words: str) -> dict[str, dict[str, Any]]:
    """The groups that `codex-pool usage` prints, by name."""
    done = cli("usage", "--connect", endpoint, "--json", *words)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    return {row[result["by"]]: row for row in result["data"]}


def kill(pool: Pool, module: bytes) -> None:
    assert pool.supervisor_pid is not None
    for process in processes.descendants(pool.supervisor_pid):
        if module in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            os.kill(process.pid, signal.SIGKILL)
            return
    raise AssertionError(f"no process of {module!r}")


def turns_of(store: Path) -> int:
    """The turns that are written in a store of usage."""
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT coalesce(sum(turns), 0) FROM usage").fetchone()[0])


def test_what_a_key_has_used_outlives_broker_and_pool_and_ends_at_its_limit(house: House) -> None:
    alice_key, bob_key = house.key("alice", max_tokens_per_day=1), house.key("bob")
    prices = house.directory / "prices.toml"
    prices.write_text(PRICES)
    audit = house.directory / "audit.jsonl"
    with house.pool(prices=str(prices), audit_log=audit) as pool:
        assert pool.endpoint is not None
        with house.connect(alice_key) as alice, house.connect(bob_key) as bob:
            thread = alice.thread_start(cwd=str(house.work))
            result = thread.run(PROMPT)
            assert result.usage is not None
            tokens = result.usage.total.input_tokens + result.usage.total.output_tokens
            with pytest.raises(KeyLimitError) as refused:
                thread.run(PROMPT)
            assert refused.value.what == "tokens_per_day" and refused.value.used == tokens
            # The number of turns is that of the store: a broker that is killed before it has written loses it.
            store = house.home / "codex-pool" / "usage.sqlite"
            until(lambda: turns_of(store) == 1)
            kill(pool, b"codex_pool.broker")
            with pytest.raises(KeyLimitError) as refused:
                thread.run(PROMPT)
            assert refused.value.used == tokens
            assert bob.thread_start(cwd=str(house.work)).run(PROMPT).final_response
            found = usage(pool.endpoint)
            assert found["alice"]["turns"] == found["bob"]["turns"] == 1
            assert found["alice"]["inputTokens"] + found["alice"]["outputTokens"] == tokens
            assert found["alice"]["spend"] == pytest.approx(tokens / 1000) and found["alice"]["currency"] == "USD"
            # A limited key sees its own.
            own = cli("usage", "--connect", house.address, "--key", str(bob_key), "--csv", "--since", "7d")
            assert own.returncode == 0 and len(own.stdout.splitlines()) == 2 and "bob,1," in own.stdout, own.stderr
            _, text = get(house.http, "/metrics")
            assert f'codex_pool_tokens_total{{principal="bob",type="input"}} {found["bob"]["inputTokens"]}' in text
            assert 'codex_pool_refused_total{reason="tokens_per_day"}' in text
            # The limit is another one within a second, and its turns go on.
            done = cli("keys", "set", "alice", "--max-tokens-per-day", "none", "--keys", str(house.store.directory))
            assert done.returncode == 0, done.stderr
            until(lambda: _runs(thread))
    records = [json.loads(line) for line in audit.read_text().splitlines()]
    decisions = [
        (each["decision"], each.get("reason"), each["key"])
        for each in records
        if each["event"] == "request" and each["name"] == "alice" and each["method"] == "turn/start"
    ]
    key = read_client_key(alice_key).public_key[:12]
    assert decisions[:3] == [("allowed", None, key), *[("refused", "tokens_per_day", key)] * 2]
    assert decisions[-1] == ("allowed", None, key)
    changes = [(each["name"], each["now"]) for each in records if each["event"] == "key"]
    assert changes == [("alice", {"max_tokens_per_day": None})]
    assert "a few words" not in audit.read_text() and audit.stat().st_mode & 0o777 == 0o600
    with house.pool() as pool:
        assert pool.endpoint is not None
        assert usage(pool.endpoint)["bob"] == found["bob"]
        assert usage(pool.endpoint, "--by", "day").keys() == {*usage(pool.endpoint, "--by", "day", "--since", "1d")}
        # Without its record nobody with such a limit is let in, until that is accepted.
        house.store.change("bob", {"max_tokens": 10**9})
        usage_store.path_in(house.home).unlink()
        with house.connect(bob_key) as bob:
            thread = bob.thread_start(cwd=str(house.work))
            until(lambda: not _runs(thread))
            with pytest.raises(KeyLimitError, match="reset-usage") as refused:
                thread.run(PROMPT)
            assert refused.value.what == "usage"
            done = cli("keys", "reset-usage", str(house.home), "--keys", str(house.store.directory))
            assert done.returncode == 0, done.stderr
            until(lambda: _runs(thread))


def _runs(thread: Any) -> bool:
    try:
        return bool(thread.run(PROMPT).final_response)
    except KeyLimitError:
        return False


def test_a_rotated_key_is_valid_beside_the_new_one_and_then_ends(house: House) -> None:
    old_key, new_key = house.key("alice"), house.directory / "new.key"
    with house.pool():
        old = house.connect(old_key)
        thread = old.thread_start(cwd=str(house.work))
        assert thread.run(PROMPT).final_response
        words = ("keys", "rotate", "alice", "-o", str(new_key), "--keys", str(house.store.directory))
        assert cli(*words).returncode == 0
        with house.connect(new_key) as new, house.connect(old_key) as again:
            for codex in (new, again):
                assert codex.thread_resume(thread.id).run(PROMPT).final_response
            for key in (old_key, new_key):
                assert gateway_opens(house, read_token(key))
            # The time of grace is over.
            entry = house.store.known().allowed[0]
            assert len(entry.former) == 1 and entry.former[0].until > entry.key_since
            house.store.renew("alice", house.directory / "third.key", grace_s=1)
            assert new.thread_list().data

            def has_ended() -> bool:
                try:
                    new.thread_list()
                except AppServerError:
                    return True
                return False

            until(has_ended)
        assert not gateway_opens(house, read_token(new_key))
        assert gateway_opens(house, read_token(house.directory / "third.key"))
        # The first one still has its day.
        assert old.thread_list().data
        old.close()


def gateway_opens(house: House, token: str) -> bool:
    """Return True if the gateway lets a client with this token in."""
    import asyncio

    import aiohttp

    async def ask() -> bool:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as client:
            try:
                async with client.ws_connect(f"http://{house.ws}/rpc"):
                    return True
            except aiohttp.WSServerHandshakeError:
                return False

    return asyncio.run(ask())
