"""Tokens expire, rotate and are revoked under a real pool: they are refreshed in one place, and no turn fails."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_supervisor_real import wait_until

from codex_app_server import AppServerConfig, AppServerError, Codex, InternalRpcError
from codex_app_server.testing.issuer import LoopbackIssuer
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool
from codex_pool.account.auth_content import Login, parse_login
from codex_pool.runtime import processes

pytestmark = pytest.mark.real

TURN_LIMIT_S = 40.0
# The reason that codex 0.163 gives when another process has used the refresh token before.
ALREADY_USED = "refresh token was already used"


@pytest.fixture
def issuer() -> Iterator[LoopbackIssuer]:
    with LoopbackIssuer() as issuer:
        yield issuer


@pytest.fixture
def model(issuer: LoopbackIssuer) -> Iterator[LoopbackModel]:
    """A model that wants a valid access token."""
    with LoopbackModel(authorize=issuer.accepts) as model:
        yield model


@pytest.fixture
def config(tmp_path: Path, model: LoopbackModel, issuer: LoopbackIssuer, work: Path) -> AppServerConfig:
    home = write_loopback_home(tmp_path / "home", model.base_url, requires_openai_auth=True)
    issuer.write_auth_json(home)
    return AppServerConfig(cwd=work, env={"CODEX_HOME": str(home), "RUST_LOG": "error", **issuer.environ})


def side_by_side(
    clients: list[Codex], turns: int = 1, *, prompt: str = "hi", before: Callable[[], object] = lambda: None
) -> list[str]:
    """Run `turns` turns on a thread of each client, all threads at once, after calling `before`; the errors."""
    threads = [client.thread_start(ephemeral=True) for client in clients]
    before()
    errors: list[str] = []

    def run(number: int) -> None:
        for _ in range(turns):
            try:
                threads[number].run(prompt, timeout=TURN_LIMIT_S)
            except AppServerError as error:
                errors.append(str(error))

    runs = [threading.Thread(target=run, args=(number,)) for number in range(len(threads))]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    return errors


def holder_of(pool: Pool) -> int:
    assert pool.supervisor_pid is not None
    for process in processes.descendants(pool.supervisor_pid):
        if b"codex_pool.account" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            return process.pid
    return 0


def login_of(config: AppServerConfig) -> Login:
    found = parse_login(Path(config.env["CODEX_HOME"], "auth.json").read_bytes())
    assert found is not None
    return found


def test_app_servers_by_themselves_use_a_refresh_token_twice(config: AppServerConfig, issuer: LoopbackIssuer) -> None:
    """The reason for all this: without a holder, app-servers that get 401 together fail turns."""
    issuer.answer_after_s = 0.5
    clients: list[Codex] = []
    try:
        for _ in range(4):
            clients.append(Codex(config))
        assert side_by_side(clients) == []
        errors = side_by_side(clients, before=issuer.revoke_access_tokens)
    finally:
        for client in clients:
            client.close()
    assert issuer.counts["reused"] > 0
    assert any(ALREADY_USED in error for error in errors), errors


def test_a_pool_refreshes_in_one_place(
    config: AppServerConfig, issuer: LoopbackIssuer, model: LoopbackModel, tmp_path: Path
) -> None:
    # From the fifth second on app-servers take them for expired, and the model does not accept them.
    issuer.access_lifetime_s, issuer.accepted_for_s, issuer.answer_after_s = 305, 5.0, 0.1
    issuer.write_auth_json(config.env["CODEX_HOME"])
    with Pool(4, config, log_file=tmp_path / "log") as pool, pool.connect() as codex:
        assert side_by_side([codex] * 4, 4, prompt="[[text deltas=5 pace_ms=50]]") == []
        wait_until(lambda: issuer.counts["refreshed"] >= 1, "they are refreshed for as short a time again")
        issuer.access_lifetime_s, issuer.accepted_for_s = 3600, None
        wait_until(lambda: login_of(config).refreshable_until > time.time() + 1000, "they are refreshed ahead of time")
        assert issuer.counts["refreshed"] >= 2
        issuer.answer_after_s = 0.5
        refused = model.unauthorized
        assert side_by_side([codex] * 8, before=issuer.revoke_access_tokens) == []
    assert model.unauthorized >= refused + 4
    assert issuer.counts["reused"] == issuer.counts["unknown"] == 0
    log = (tmp_path / "log").read_text()
    assert login_of(config).refresh_token not in log


def test_two_pools_and_a_codex_of_the_users_on_one_login(
    config: AppServerConfig, issuer: LoopbackIssuer, model: LoopbackModel, tmp_path: Path
) -> None:
    issuer.answer_after_s = 0.2
    run = write_loopback_home(tmp_path / "run", model.base_url, requires_openai_auth=True)
    (run / "auth.json").symlink_to(Path(config.env["CODEX_HOME"], "auth.json"))
    linked = AppServerConfig(cwd=config.cwd, env={**config.env, "CODEX_HOME": str(run)})
    with (
        Pool(2, config, log_file=tmp_path / "log") as pool,
        Pool(2, linked, log_file=tmp_path / "log") as other,
        pool.connect() as codex,
        other.connect() as another,
    ):
        assert side_by_side([codex, another] * 2, before=issuer.revoke_access_tokens) == []
        assert issuer.counts["reused"] == 0
        before = login_of(config)
        # It refreshes by itself, and writes the file in its own way; what else it wants of the backend is missing.
        with Codex(config) as users_own, contextlib.suppress(InternalRpcError):
            users_own.account(refresh_token=True)
        assert login_of(config).refresh_token != before.refresh_token
        assert side_by_side([codex, another] * 2, before=issuer.revoke_access_tokens) == []
    assert (run / "auth.json").is_symlink()
    assert issuer.counts["reused"] == 0


def test_the_holder_may_be_killed(config: AppServerConfig, issuer: LoopbackIssuer, tmp_path: Path) -> None:
    with Pool(2, config, log_file=tmp_path / "log") as pool, pool.connect() as codex:
        url = Path(f"/proc/{app_server_of(pool)}/environ").read_bytes()
        for _ in range(2):
            first = wait_until(lambda: holder_of(pool), "there is a holder")

            def kill(holder: int = first) -> None:
                issuer.revoke_access_tokens()
                os.kill(holder, signal.SIGKILL)

            # What they ask while there is none waits for the next one.
            assert side_by_side([codex] * 4, before=kill) == []
            assert wait_until(lambda: holder_of(pool), "there is another holder") != first
        assert Path(f"/proc/{app_server_of(pool)}/environ").read_bytes() == url
    assert issuer.counts["reused"] == 0
    assert "the holder of the account has ended: killed by SIGKILL" in (tmp_path / "log").read_text()


def app_server_of(pool: Pool) -> int:
    assert pool.supervisor_pid is not None
    for process in sorted(processes.descendants(pool.supervisor_pid)):
        if b"app-server\0--listen" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            return process.pid
    raise AssertionError("there is no app-server")


def test_a_holder_that_is_stopped_is_replaced(config: AppServerConfig, issuer: LoopbackIssuer, tmp_path: Path) -> None:
    with Pool(2, config, log_file=tmp_path / "log") as pool, pool.connect() as codex:
        first = wait_until(lambda: holder_of(pool), "there is a holder")

        def stop() -> None:
            issuer.revoke_access_tokens()
            os.kill(first, signal.SIGSTOP)

        # What they ask meanwhile is asked of the next one.
        assert side_by_side([codex] * 4, before=stop) == []
        assert holder_of(pool) not in (0, first)
    assert issuer.counts["reused"] == 0
    assert "killing the holder of the account: it does not answer" in (tmp_path / "log").read_text()
