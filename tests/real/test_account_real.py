"""One account for all workers of a pool, on the real binary: which key each model request carries."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import login_issuer
import pytest
from accounts import Issuer, Relay, token_of, write_home
from login_issuer import login_port

from codex_app_server import AppServerConfig, Codex, JsonRpcError, ThreadLostError
from codex_app_server.testing.loopback import LoopbackModel
from codex_pool import Pool, connect
from codex_pool.runtime import processes

pytestmark = pytest.mark.real

LIMIT_S = 25.0


@dataclass
class Bench:
    """A home with an account, the relay before its model, and the issuer."""

    home: Path
    config: AppServerConfig
    relay: Relay
    issuer: Issuer

    @property
    def auth(self) -> str:
        path = self.home / "auth.json"
        return path.read_text() if path.exists() else ""

    def keys_of(self, codex: Codex, turns: int = 6) -> set[str]:
        """The keys that so many turns at once use, each on a new thread."""
        self.relay.keys.clear()
        threads = [codex.thread_start(ephemeral=True) for _ in range(turns)]
        with ThreadPoolExecutor(turns) as runners:
            list(runners.map(lambda thread: thread.run("hi"), threads))
        return set(self.relay.keys)


@pytest.fixture
def bench(tmp_path: Path, model: LoopbackModel) -> Iterator[Bench]:
    relay, issuer = Relay(), Issuer()
    with relay.before(model) as relay_url, issuer.running() as issuer_url:
        home = tmp_path / "home"
        write_home(home, model, relay_url, issuer_url=issuer_url)
        names = ("CODEX_REFRESH_TOKEN_URL_OVERRIDE", "CODEX_REVOKE_TOKEN_URL_OVERRIDE")
        env = {"CODEX_HOME": str(home), "RUST_LOG": "off", "CODEX_APP_SERVER_LOGIN_ISSUER": issuer_url}
        env |= dict.fromkeys(names, f"{issuer_url}/oauth/token")
        yield Bench(home, AppServerConfig(cwd=tmp_path, env=env), relay, issuer)


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.02)
    return value


def rows(codex: Codex) -> list[dict[str, Any]]:
    workers: list[dict[str, Any]] = codex.client.request("pool/status")["workers"]
    return workers


def replaced(codex: Codex) -> int:
    """Return how many workers have been replaced, once all are ready; else 0."""
    found = rows(codex)
    return sum(row["restarts"] for row in found) if all(row["state"] == "ready" for row in found) else 0


def broker_of(pool: Pool) -> int:
    assert pool.supervisor_pid is not None
    (broker,) = [
        process.pid
        for process in processes.descendants(pool.supervisor_pid)
        if b"codex_pool.broker" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    ]
    return broker


def log_in_again(codex: Codex) -> str:
    codex.logout()
    codex.login_api_key("sk-third")
    return "sk-third"


def log_in(codex: Codex) -> str:
    codex.login_api_key("sk-second")
    return "sk-second"


def log_out(codex: Codex) -> str:
    codex.logout()
    return "(none)"


@pytest.mark.parametrize("workers", [1, 3])
def test_no_turn_uses_the_key_of_before(bench: Bench, workers: int) -> None:
    with Pool(workers, bench.config) as pool, pool.connect() as codex:
        kept = codex.thread_start(ephemeral=True)
        kept.run("hi")
        assert bench.keys_of(codex) == {"sk-first"}
        for change in (log_in, log_in_again, log_out):
            key = change(codex)
            assert bench.keys_of(codex) == {key}, change
            bench.relay.keys.clear()
            kept.run("again")
            assert bench.relay.keys == [key], f"{change}: a thread that cannot move goes on"
            assert (codex.account().account is None) == (key == "(none)")
        assert all(row["restarts"] == row["recycles"] == 0 for row in rows(codex)), "nobody was renewed for it"


@pytest.mark.parametrize("what", ["worker", "broker", "worker and broker"])
def test_what_is_killed_in_the_middle_leaves_no_key_of_before(bench: Bench, what: str) -> None:
    with Pool(3, bench.config) as pool, pool.connect() as codex:
        for change in (log_in, log_out):
            victims = [broker_of(pool)] if "broker" in what else []
            victims += [rows(codex)[1]["pid"]] if "worker" in what else []
            with ThreadPoolExecutor(1) as runner:
                changing = runner.submit(change, codex)
                for pid in victims:
                    os.kill(pid, signal.SIGKILL)
                key = changing.result(timeout=LIMIT_S)
            assert bench.keys_of(codex) == {key}, change
            wait_until(lambda: all(row["state"] == "ready" for row in rows(codex)), "all are ready again")
            assert bench.keys_of(codex) == {key}, change


def test_a_client_that_goes_away_in_the_middle_does_not_stop_a_change(bench: Bench) -> None:
    with Pool(3, bench.config) as pool, pool.connect() as codex:
        other = connect(pool.endpoint)
        request = {"type": "apiKey", "apiKey": "sk-second"}
        with ThreadPoolExecutor(1) as runner:
            asked = runner.submit(other.client.request, "account/login/start", request)
            wait_until(lambda: "sk-second" in bench.auth or asked.done(), "the change has begun")
            other.close()
            asked.exception(timeout=LIMIT_S)
        codex.account()
        assert bench.keys_of(codex) == {"sk-second"}


def test_workers_that_are_recycled_meanwhile_have_the_new_key(bench: Bench) -> None:
    """Workers that start are given the change or are renewed; those that drain take part."""
    with Pool(2, bench.config, recycle_turns=2) as pool, pool.connect() as codex:
        for number in range(4):
            bench.keys_of(codex, turns=4)
            codex.login_api_key(f"sk-{number}")
            assert bench.keys_of(codex, turns=4) == {f"sk-{number}"}


def test_forty_log_ins_in_a_row_leave_nobody_logged_out(bench: Bench) -> None:
    with Pool(4, bench.config) as pool, pool.connect() as codex, pool.connect() as other:
        for number in range(40):
            (codex if number % 2 else other).login_api_key(f"sk-{number}")
        assert bench.keys_of(codex, turns=8) == {"sk-39"}
        assert '"sk-39"' in bench.auth


def test_sessions_hear_of_a_change_once(bench: Bench) -> None:
    with Pool(3, bench.config) as pool, pool.connect() as codex, pool.connect() as other:
        codex.login_api_key("sk-second")
        codex.logout()
        codex.account()
        other.account()
        for client in (codex, other):
            found = []
            while len(found) < 3:
                notification = client.client.next_notification(timeout_s=5)
                if notification.method.startswith("account/") and "rateLimits" not in notification.method:
                    found.append(notification.method)
            assert found == ["account/login/completed", "account/updated", "account/updated"]


def test_a_log_in_by_device_code_renews_the_other_workers(bench: Bench) -> None:
    with Pool(3, bench.config) as pool, pool.connect() as codex:
        stored = [codex.thread_start() for _ in range(3)]
        for thread in stored:
            thread.run("hi")
        pinned = [codex.thread_start(ephemeral=True) for _ in range(3)]
        login = codex.login_chatgpt_device_code()
        bench.issuer.approved = True
        assert login.wait(timeout_s=LIMIT_S).success
        (token,) = bench.issuer.tokens
        bench.relay.keys.clear()
        with ThreadPoolExecutor(3) as runners:
            list(runners.map(lambda thread: thread.run("again"), stored))
        assert set(bench.relay.keys) == {token}
        assert bench.keys_of(codex) == {token}
        refused = 0
        bench.relay.keys.clear()
        for thread in pinned:
            try:
                thread.run("hi")
            except ThreadLostError:
                refused += 1
        assert refused == 2 and set(bench.relay.keys) == {token}
        wait_until(lambda: sum(row["recycles"] for row in rows(codex)) == 2, "two workers are renewed")


@pytest.mark.parametrize("change", [log_in, log_out])
def test_running_turns_finish_where_a_worker_is_free_for_the_change(
    bench: Bench, change: Callable[[Codex], str]
) -> None:
    """codex fails those that run in an app-server whose account is changed."""
    with Pool(3, bench.config) as pool, pool.connect() as codex, ThreadPoolExecutor(2) as runners:
        begun = [codex.thread_start().turn("[[text deltas=40 pace_ms=50]]") for _ in range(2)]
        wait_until(lambda: len(bench.relay.keys) == 2, "both run")
        key = change(codex)
        assert bench.keys_of(codex, turns=3) == {key}
        assert [result.status for result in runners.map(lambda turn: turn.run(), begun)] == ["completed"] * 2
        wait_until(lambda: sum(row["recycles"] for row in rows(codex)) == 2, "two workers are renewed")
        assert bench.keys_of(codex) == {key}


def test_a_goal_begins_no_more_turns_with_the_account_before(bench: Bench) -> None:
    with Pool(2, bench.config) as pool, pool.connect() as codex:
        login = codex.login_chatgpt_device_code()
        threads = [codex.thread_start(sandbox="read-only") for _ in range(2)]
        for thread in threads:
            thread.run("hi")
            thread.set_goal("never get done")
        wait_until(lambda: len(bench.relay.keys) > 8, "the goals begin turns")
        bench.issuer.approved = True
        assert login.wait(timeout_s=LIMIT_S).success
        wait_until(lambda: sum(row["recycles"] for row in rows(codex)) == 1, "the other worker is renewed")
        (token,) = bench.issuer.tokens
        bench.relay.keys.clear()
        for thread in threads:
            # It goes on with the next request.
            assert thread.run("again").status == "completed"
        wait_until(lambda: len(bench.relay.keys) > 4, "the goals go on")
        assert set(bench.relay.keys) == {token}
        for thread in threads:
            thread.clear_goal()


def test_a_log_in_by_browser_renews_the_other_workers(model: LoopbackModel, tmp_path: Path) -> None:
    relay = Relay()
    with login_port(), login_issuer.Issuer() as issuer, relay.before(model) as relay_url:
        home = tmp_path / "home"
        write_home(home, model, relay_url, issuer_url=issuer.url)
        config = AppServerConfig(cwd=tmp_path, env={"CODEX_HOME": str(home), "RUST_LOG": "off", **issuer.env})
        bench = Bench(home, config, relay, Issuer())
        with Pool(3, config) as pool, pool.connect() as codex, ThreadPoolExecutor(6) as runners:
            begun = [codex.thread_start().turn("[[text deltas=40 pace_ms=50]]") for _ in range(2)]
            login = codex.login_chatgpt()
            with urlopen(login.auth_url, timeout=LIMIT_S) as page:
                page.read()
            assert login.wait(timeout_s=LIMIT_S).success
            assert all(result.status == "completed" for result in runners.map(lambda turn: turn.run(), begun))
            (key,) = bench.keys_of(codex)
            assert key != "sk-first" and key in bench.auth
            wait_until(lambda: sum(row["recycles"] for row in rows(codex)) == 2, "two workers are renewed")
            assert bench.keys_of(codex) == {key}


def test_a_log_in_is_cancelled_where_it_is_and_fails_with_its_worker(bench: Bench) -> None:
    with Pool(2, bench.config) as pool, pool.connect() as codex:
        first = codex.login_chatgpt_device_code()
        assert first.cancel().status.value == "canceled"
        assert not first.wait(timeout_s=LIMIT_S).success
        second = codex.login_chatgpt_device_code()
        os.kill(rows(codex)[0]["pid"], signal.SIGKILL)
        ended = second.wait(timeout_s=LIMIT_S)
        assert not ended.success and ended.error is not None and "died" in ended.error
        assert bench.keys_of(codex) == {"sk-first"}


class Tokens:
    """A client's handler: new tokens for every question, which are counted."""

    def __init__(self) -> None:
        self.asked = 0
        self.lock = threading.Lock()

    def __call__(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        assert method == "account/chatgptAuthTokens/refresh"
        with self.lock:
            self.asked += 1
            return self.result

    @property
    def result(self) -> dict[str, Any]:
        return {
            "accessToken": token_of("external", self.asked),
            "chatgptAccountId": "external",
            "chatgptPlanType": "pro",
        }


def test_external_tokens_are_asked_for_once_and_their_log_out_leaves_auth_json_alone(bench: Bench) -> None:
    tokens = Tokens()
    with Pool(3, bench.config) as pool, connect(pool.endpoint, approval_handler=tokens) as codex:
        codex.client.request("account/login/start", {"type": "chatgptAuthTokens", **tokens.result})
        first = token_of("external", 0)
        assert bench.keys_of(codex) == {first}
        os.kill(rows(codex)[0]["pid"], signal.SIGKILL)
        wait_until(lambda: replaced(codex) == 1, "it is replaced")
        assert bench.keys_of(codex) == {first}, "who starts later has them as well"
        bench.relay.expired.add(first)
        assert bench.keys_of(codex) == {token_of("external", 1)}
        assert tokens.asked == 1
        refused = bench.relay.refused
        assert bench.keys_of(codex) == {token_of("external", 1)} and bench.relay.refused == refused
        os.kill(broker_of(pool), signal.SIGKILL)
        os.kill(rows(codex)[1]["pid"], signal.SIGKILL)
        wait_until(lambda: replaced(codex) == 2, "it is replaced")
        assert bench.keys_of(codex) == {token_of("external", 1)}, "workers have kept them for the next broker"
        codex.logout()
        assert "sk-first" in bench.auth
        assert bench.keys_of(codex) == {"sk-first"}
    everything = b"".join(path.read_bytes() for path in bench.home.rglob("*") if path.is_file())
    assert token_of("external", 1).encode() not in everything


def test_settings_that_no_file_keeps_are_given_to_workers_that_start_later(bench: Bench) -> None:
    with Pool(2, bench.config) as pool, pool.connect() as codex:
        added = {"environmentId": "far", "execServerUrl": "ws://127.0.0.1:9"}
        codex.client.request("environment/add", added)
        for number, row in enumerate(rows(codex), 1):
            os.kill(row["pid"], signal.SIGKILL)
            wait_until(lambda: replaced(codex) == number, "it is replaced")  # noqa: B023
        for _ in range(4):
            status = codex.client.request("environment/status", {"environmentId": "far"})
            assert status.status.value == "disconnected", "unknown where it was not given"


def test_a_versioned_write_succeeds_over_all_workers(bench: Bench) -> None:
    with Pool(3, bench.config) as pool, pool.connect() as codex:
        write = {"keyPath": "model_verbosity", "value": "low", "mergeStrategy": "replace"}
        version = codex.client.request("config/value/write", write).version
        codex.client.request("config/value/write", {**write, "value": "high", "expectedVersion": version})
        with pytest.raises(JsonRpcError, match="modified since"):
            codex.client.request("config/value/write", {**write, "expectedVersion": version})
