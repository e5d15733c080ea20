"""The issuer on loopback: rotation, refusals, and a real turn that goes through a refresh."""

from __future__ import annotations

import json
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codex_app_server import AppServerConfig, Codex
from codex_app_server.testing import LoopbackIssuer, LoopbackModel, write_loopback_home


@pytest.fixture
def issuer() -> Iterator[LoopbackIssuer]:
    with LoopbackIssuer() as issuer:
        yield issuer


def post(issuer: LoopbackIssuer, body: Any) -> tuple[int, Any]:
    url = issuer.environ["CODEX_REFRESH_TOKEN_URL_OVERRIDE"]
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def refresh(issuer: LoopbackIssuer, token: str) -> tuple[int, Any]:
    return post(issuer, {"client_id": "app", "grant_type": "refresh_token", "refresh_token": token})


def test_a_refresh_token_is_good_for_one_refresh(issuer: LoopbackIssuer) -> None:
    first = issuer.tokens()
    status, second = refresh(issuer, first["refresh_token"])
    assert status == 200 and set(second) == {"id_token", "access_token", "refresh_token"}
    status, answer = refresh(issuer, first["refresh_token"])
    assert (status, answer["error"]["code"]) == (401, "refresh_token_reused")
    assert refresh(issuer, second["refresh_token"])[0] == 200
    assert refresh(issuer, "anything")[1]["error"]["code"] == "refresh_token_invalidated"
    assert post(issuer, ["no", "object"])[0] == 400
    assert issuer.counts == {"refreshed": 2, "reused": 1, "unknown": 1} and issuer.asked == 5


def test_access_tokens_expire_and_are_revoked(issuer: LoopbackIssuer) -> None:
    token = issuer.tokens()["access_token"]
    assert issuer.accepts(token) and not issuer.accepts("") and not issuer.accepts(token + "x")
    issuer.revoke_access_tokens()
    assert not issuer.accepts(token)
    issuer.accepted_for_s = 0.05
    token = issuer.tokens()["access_token"]
    deadline = time.monotonic() + 10
    while issuer.accepts(token):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_answers_are_scripted(issuer: LoopbackIssuer) -> None:
    token = issuer.tokens()["refresh_token"]
    issuer.answer_next(503, {"error": {"code": "busy"}}, count=2)
    assert [refresh(issuer, token)[0] for _ in range(3)] == [503, 503, 200]


def test_it_says_so_when_it_does_not_serve() -> None:
    with pytest.raises(RuntimeError, match="does not serve"):
        _ = LoopbackIssuer().environ


@pytest.mark.real
def test_a_real_turn_goes_through_a_refresh(tmp_path: Path, work: Path, issuer: LoopbackIssuer) -> None:
    with LoopbackModel(authorize=issuer.accepts) as model:
        home = write_loopback_home(tmp_path / "home", model.base_url, requires_openai_auth=True)
        path = issuer.write_auth_json(home)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with Codex(AppServerConfig(cwd=work, env={"CODEX_HOME": str(home), **issuer.environ})) as codex:
            thread = codex.thread_start(ephemeral=True)
            thread.run("Hello.")
            refused = model.unauthorized
            issuer.revoke_access_tokens()
            assert thread.run("Hello again.").final_response is not None
        assert issuer.counts == {"refreshed": 1}
        assert model.unauthorized > refused
        assert issuer.accepts(json.loads(path.read_bytes())["tokens"]["access_token"])
