"""A missing login as it is found, and an account as people read it. Pure."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from codex_app_server.generated import models
from codex_pool import account_notice
from codex_pool_cli.account import window_text
from codex_pool_cli.account_client import described

NOBODY = models.GetAccountResponse(requires_openai_auth=True)


def config(provider: dict[str, Any] | None = None) -> models.Config:
    if provider is None:
        return models.Config.model_validate({})
    return models.Config.model_validate({"model_provider": "p", "model_providers": {"p": provider}})


@pytest.mark.parametrize(
    ("provider", "is_missing"),
    [
        (None, True),
        ({"env_key": None, "http_headers": None}, True),
        ({"http_headers": {"X-Version": "1"}}, True),
        ({"env_key": "KEY"}, False),
        ({"experimental_bearer_token": "t"}, False),
        ({"auth": {"command": "c"}}, False),
        ({"http_headers": {"authorization": "Bearer t"}}, False),
        ({"env_http_headers": {"Api-Key": "KEY"}}, False),
    ],
)
def test_a_login_is_missing_unless_the_provider_has_credentials(
    provider: dict[str, Any] | None, is_missing: bool
) -> None:
    assert account_notice.is_login_missing(NOBODY, config(provider)) is is_missing
    assert account_notice.provider_of(config(provider)) == ("openai" if provider is None else "p")


def test_a_login_is_not_missing_where_somebody_is_logged_in_or_nobody_is_needed() -> None:
    logged_in = models.GetAccountResponse(requires_openai_auth=True, account=models.ApiKeyAccount())
    not_needed = models.GetAccountResponse(requires_openai_auth=False)
    assert not account_notice.is_login_missing(logged_in, config())
    assert not account_notice.is_login_missing(not_needed, config())


@pytest.mark.parametrize(
    ("endpoint", "home", "command"),
    [
        (None, "user", "codex-pool login"),
        (None, "run", "codex-pool login"),
        (None, "/a b", "CODEX_HOME='/a b' codex-pool login"),
        ("ipc:///s.sock", "run", "codex-pool login --connect ipc:///s.sock"),
    ],
)
def test_the_remedy_is_a_command_that_logs_in_there(endpoint: str | None, home: str, command: str) -> None:
    assert account_notice.remedy(endpoint, home) == command


@pytest.mark.parametrize(
    ("account", "text"),
    [
        ({"type": "apiKey"}, "an API key"),
        ({"type": "chatgpt", "email": "a@b.c", "planType": "plus"}, "a@b.c (Plus)"),
        ({"type": "chatgpt", "email": "a@b.c", "planType": "edu_plus"}, "a@b.c (Edu plus)"),
        ({"type": "chatgpt", "email": None, "planType": "unknown"}, "a ChatGPT account"),
        ({"type": "amazonBedrock"}, "Amazon Bedrock (credentials of the environment)"),
        ({"type": "amazonBedrock", "usesCodexManagedCredentials": True}, "Amazon Bedrock"),
        ({"type": "new"}, "new"),
    ],
)
def test_an_account_as_people_read_it(account: dict[str, Any], text: str) -> None:
    found = models.GetAccountResponse.model_validate({"account": account, "requiresOpenaiAuth": True}).account
    assert found is not None and described(found) == text


def test_a_rate_limit_says_its_day_only_when_that_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.environ.get("TZ")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        window = models.RateLimitWindow(used_percent=23, window_duration_mins=300, resets_at=3600)
        assert window_text(window, 0.0) == "23 % used of 5 h, resets at 01:00"
        window = models.RateLimitWindow(used_percent=4, window_duration_mins=10080, resets_at=172800)
        assert window_text(window, 0.0) == "4 % used of 7 days, resets at 1970-01-03 00:00"
        assert window_text(models.RateLimitWindow(used_percent=0), 0.0) == "0 % used"
    finally:
        monkeypatch.setenv("TZ", before) if before is not None else monkeypatch.delenv("TZ")
        time.tzset()
