"""Arguments of codex-via-pool: which of them are for a pool, and which for the real codex."""

from __future__ import annotations

import pytest

from codex_pool_cli.via_pool import NotForPoolError, parse


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        ("app-server", {}),
        ("app-server --analytics-default-enabled", {}),
        ("app-server --listen stdio://", {}),
        ("app-server --listen=stdio:// --stdio", {}),
        ("--config model=m app-server --listen stdio://", {"model": "m"}),
        (
            "-c model=a -cmodel=b app-server --config=sandbox_mode=read-only",
            {"model": "b", "sandbox_mode": "read-only"},
        ),
        ("app-server -c model_provider=a=b", {"model_provider": "a=b"}),
    ],
)
def test_an_app_server_on_stdin_and_stdout_is_for_a_pool(arguments: str, overrides: dict[str, str]) -> None:
    assert parse(arguments.split()) == overrides


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--version",
        "-h",
        "exec hello",
        "exec app-server",
        "-c model=m exec app-server",
        "app-server --help",
        "app-server proxy",
        "app-server daemon start",
        "app-server generate-ts --out x",
        "app-server --listen unix://",
        "app-server --listen ws://127.0.0.1:1",
        "app-server --listen",
        "-c",
        "app-server -c model",
        "what is app-server",
        "-m model exec",
    ],
)
def test_everything_else_is_for_the_real_codex(arguments: str) -> None:
    with pytest.raises(NotForPoolError) as caught:
        parse(arguments.split())
    assert str(caught.value) == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("app-server -c hooks={}", "-c hooks"),
        ("-c model=m -c features.apps=true app-server", "-c features.apps"),
        ("--enable apps app-server", "--enable apps"),
        ("app-server --disable=apps", "--disable apps"),
        ("app-server --strict-config", "--strict-config"),
        ("--profile work app-server", "--profile"),
    ],
)
def test_what_a_pool_cannot_do_for_one_client_is_named(arguments: str, named: str) -> None:
    with pytest.raises(NotForPoolError) as caught:
        parse(arguments.split())
    assert named in str(caught.value)
