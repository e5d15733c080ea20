"""What the hosts of a run share, on the real binary: a log-in, limits, and a machine that is silent for a while."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest
from host_process import ProcessEngine
from host_runs import Launch, asked, texts, until
from programs import environment

from codex_app_server.testing.issuer import LoopbackIssuer
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_batch.hosts.leases import LEASE_S
from codex_batch.rules.limits import RunLimits
from codex_pool.account.auth_content import parse_login

pytestmark = [pytest.mark.fleet, pytest.mark.real, pytest.mark.timeout(240)]

PLACES = 4


def engine_of(tmp_path: Path, model: LoopbackModel, monkeypatch: pytest.MonkeyPatch, **home: bool) -> ProcessEngine:
    """Hosts that get the configuration of a user whose model is the loopback model."""
    user = write_loopback_home(tmp_path / "user", model.base_url, **home)
    monkeypatch.setenv("CODEX_HOME", str(user))
    return ProcessEngine(tmp_path / "spools", environment(user))


def test_hosts_use_a_chatgpt_login_that_the_run_alone_renews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refresh_token() -> bytes:
        login = parse_login(file.read_bytes())
        assert login is not None
        return login.refresh_token.encode()

    with LoopbackIssuer() as issuer, LoopbackModel(authorize=issuer.accepts) as model:
        # Hosts do not know where the issuer is: only the run can ask it.
        engine = engine_of(tmp_path, model, monkeypatch, requires_openai_auth=True)
        for name, value in issuer.environ.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "login").mkdir()
        file = issuer.write_auth_json(tmp_path / "login")
        first = refresh_token()
        launch = Launch(tmp_path, texts(16, "[[text deltas=4 pace_ms=100]] sample"), login=file)
        found: list[Path] = []

        def on_record(count: int) -> None:
            if count == 6:
                issuer.revoke_access_tokens()
            if count == 14:
                spools = [path for path in engine.root.rglob("*") if path.is_file()]
                assert any(path.name == "auth.json" for path in spools)
                secrets = (first, refresh_token())
                found.extend(path for path in spools if any(each in path.read_bytes() for each in secrets))

        launch.on_record = on_record

        async def main() -> None:
            await engine.add("a")
            await engine.add("b")
            await launch.run(engine)

        asyncio.run(main())
        assert launch.statuses == {"completed": 16}, launch.said
        assert {each.host for each in launch.attempts} == {"a", "b"} and len(launch.attempts) == 16
        # Both hosts were refused, and no token was used twice. An app-server with several turns may ask once more.
        assert model.unauthorized >= 2
        assert set(issuer.counts) == {"refreshed"} and issuer.counts["refreshed"] <= 4
        assert found == [] and refresh_token() != first


def test_a_host_that_was_silent_for_longer_than_its_leases_brings_its_results_late(
    tmp_path: Path, model: LoopbackModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tmp_path, model, monkeypatch)
    launch = Launch(tmp_path, texts(8, "[[text deltas=4 pace_ms=250]] sample"))
    lost_after_s: list[float] = []

    async def main() -> None:
        await engine.add("a")

        async def stop() -> None:
            await until(lambda: len(model.requests) == PLACES)
            engine.signal("a", signal.SIGSTOP)
            stopped_at = time.monotonic()
            try:
                await engine.add("b")
                await until(lambda: any("host a was lost" in words for words in launch.said))
                lost_after_s.append(time.monotonic() - stopped_at)
                # Host b has all that a had.
                await until(lambda: len(launch.records) >= 6)
            finally:
                engine.signal("a", signal.SIGCONT)

        stopping = asyncio.ensure_future(stop())
        await launch.run(engine)
        await stopping

    asyncio.run(main())
    assert launch.statuses == {"completed": 8}, launch.said
    assert sorted(launch.lines()) == sorted(str(n) for n in range(8))
    # Seen in time: the last answer of the host was up to a second before it fell silent.
    assert LEASE_S - 2 <= lost_after_s[0] <= LEASE_S + 4
    ends = {(each.host, each.status) for each in launch.attempts}
    assert ("b", "completed") in ends and ("a", None) not in ends
    # What a was at had its end, and none of it counts a second time.
    of_a = [each for each in launch.attempts if each.host == "a"]
    assert len(of_a) >= PLACES and {each.status for each in of_a} <= {"completed", "lost", "superseded"}
    for row in launch.rows:
        assert asked(model)[row.spec["prompts"][0]] <= 2


def test_a_limit_of_tokens_holds_for_all_hosts_within_what_is_leased(
    tmp_path: Path, model: LoopbackModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tmp_path, model, monkeypatch)
    launch = Launch(tmp_path, texts(40, "[[text deltas=2 pace_ms=100]] sample"), limits=RunLimits(tokens=1))

    async def main() -> None:
        await engine.add("a")
        await engine.add("b")
        async with launch.open(engine) as (scheduler, executor):
            # None is leased before both hosts are there, and the first result is over the limit.
            await until(lambda: sum(host["state"] == "ready" for host in launch.hosts.shown()) == 2)
            await scheduler.run(executor, launch.scorers)
            assert "token" in scheduler.ended_early

    asyncio.run(main())
    done = [row for row in launch.rows if row.record is not None]
    assert all(row.record.usage["total_tokens"] >= 1 for row in done if row.record and row.record.usage)
    assert 1 <= len(done) == len(launch.attempts) <= 2 * PLACES
    assert {row.record.worker.partition("/")[0] for row in done if row.record and row.record.worker} == {"a", "b"}
