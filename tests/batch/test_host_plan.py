"""The plan of hosts: which log-in travels to them, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codex_app_server import InvalidInputError
from codex_app_server.testing.issuer import LoopbackIssuer
from codex_batch.configuration.settings import HostOptions, Settings
from codex_batch.dataset.request import Request
from codex_batch.hosts.bundle import Bundle
from codex_batch.hosts.plan import HostPlan, make_lender, make_plan
from codex_batch.redaction.redactor import Redactor
from codex_batch.scoring import Scorers
from codex_pool.options import PoolOptions


def plan_of(tmp_path: Path, **options: object) -> HostPlan:
    """The plan as a host unpickles it."""
    hosts = HostOptions(address="auto", **options)  # type: ignore[arg-type]
    settings = Settings(request=Request(source="d.jsonl"), output=tmp_path / "out", pool=PoolOptions(), hosts=hosts)
    made = make_plan(
        settings,
        bundle=Bundle(),
        scorers=Scorers(()),
        prices=None,
        effective={},
        guarded=True,
        redactor=Redactor({}),
        lender=make_lender(hosts.login),
    )
    return HostPlan.from_bytes(made.to_bytes())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "home"))


def test_nothing_of_a_login_travels_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "auth.json").write_text('{"OPENAI_API_KEY": "sk-secret"}')
    monkeypatch.setenv("KEY", "sk-secret")
    plan = plan_of(tmp_path)
    assert (plan.login, plan.is_lent, plan.environment) == (None, False, {})
    assert b"sk-secret" not in plan.to_bytes()
    assert plan_of(tmp_path, environment=("KEY",)).environment == {"KEY": "sk-secret"}


def test_a_key_is_sent_and_of_a_chatgpt_login_all_but_its_refresh_token(tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    key.write_text('{"OPENAI_API_KEY": "sk-key"}')
    plan = plan_of(tmp_path, login=key)
    assert plan.login is not None and json.loads(plan.login) == {"OPENAI_API_KEY": "sk-key"} and not plan.is_lent
    with LoopbackIssuer() as issuer:
        file = issuer.write_auth_json(tmp_path)
        tokens = json.loads(file.read_bytes())["tokens"]
        plan = plan_of(tmp_path, login=file)
    data = plan.to_bytes()
    assert plan.is_lent and tokens["access_token"].encode() in data and tokens["refresh_token"].encode() not in data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "expected an auth.json of codex"),
        ('{"tokens": {"access_token": "x"}}', "no ChatGPT login with a refresh token"),
    ],
)
def test_a_login_that_cannot_be_used_is_refused_by_the_name_of_its_file(
    tmp_path: Path, content: str, words: str
) -> None:
    file = tmp_path / "auth.json"
    file.write_text(content)
    with pytest.raises(InvalidInputError, match=r"--ray-login .*auth\.json: ") as raised:
        plan_of(tmp_path, login=file)
    assert words in str(raised.value)


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="--ray-env NOT_SET_HERE: this variable is not set"):
        plan_of(tmp_path, environment=("NOT_SET_HERE",))
