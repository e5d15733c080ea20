"""`codex-pool login`, `logout` and `account`, and the warning where nobody is logged in, on the real binary."""

from __future__ import annotations

import json
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from login_issuer import CODE, EMAIL, Issuer, Terminal, login_port
from programs import codex_pool, environment, running

from codex_app_server.testing.loopback import LoopbackModel
from codex_app_server.testing.loopback.home import loopback_config_toml

pytestmark = pytest.mark.real

KEY = "sk-test-0123456789-wxyz"
WARNING = "codex-pool: nobody is logged in, but the provider needs it: turns will fail; run codex-pool login"


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    with Issuer() as issuer:
        for name, value in issuer.env.items():
            monkeypatch.setenv(name, value)
        yield issuer


@pytest.fixture
def bare(tmp_path: Path, model: LoopbackModel) -> Path:
    """A home on the loopback model, whose provider needs a login; nobody is logged in."""
    return provider_home(tmp_path / "bare", model, "requires_openai_auth = true")


def provider_home(path: Path, model: LoopbackModel, extra: str) -> Path:
    path.mkdir(mode=0o700)
    text = loopback_config_toml(model.base_url)
    header = "[model_providers.loopback]\n"
    (path / "config.toml").write_text(text.replace(header, f"{header}{extra}\n"))
    return path


def stored_key(home: Path) -> str | None:
    path = home / "auth.json"
    return json.loads(path.read_text())["OPENAI_API_KEY"] if path.exists() else None


def account(home: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = codex_pool("account", "--json", *arguments, home=home)
    return done.returncode, json.loads(done.stdout)


def test_an_api_key_from_stdin_is_stored_in_a_home_that_is_made_and_replaced(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    done = codex_pool("login", "--api-key", home=home, stdin=f"{KEY}\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "codex-pool: logged in with an API key (ending in wxyz)\n"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700 and stored_key(home) == KEY
    code, found = account(home)
    assert (code, found["account"], found["loginMissing"]) == (0, {"type": "apiKey"}, False)
    assert KEY[:-4] not in codex_pool("account", home=home).stdout

    assert codex_pool("login", "--api-key", home=home, stdin="sk-short").stderr == (
        "codex-pool: logged in with an API key\n"
    )
    assert stored_key(home) == "sk-short"


def test_logout_says_who_and_a_second_one_that_nobody_was(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = codex_pool("logout", home=home)
    assert (done.returncode, done.stderr) == (
        0,
        f"codex-pool: nobody was logged in: CODEX_HOME {home} does not exist\n",
    )
    assert not home.exists()
    codex_pool("login", "--api-key", home=home, stdin=KEY)
    done = codex_pool("logout", home=home)
    assert (done.returncode, done.stderr) == (0, "codex-pool: logged out: an API key\n")
    assert stored_key(home) is None
    done = codex_pool("logout", home=home)
    assert (done.returncode, done.stderr) == (0, "codex-pool: nobody was logged in\n")


def test_logout_forgets_a_login_that_codex_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "auth.json").write_text('{"nonsense": 1}')
    done = codex_pool("account", home=tmp_path)
    assert done.returncode == 3 and "codex cannot say who is logged in: plan type is required" in done.stderr
    done = codex_pool("logout", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "codex-pool: logged out: a login that codex could not read\n")
    assert account(tmp_path)[1]["account"] is None


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["--api-key"], "", "no API key: give it on stdin: printenv OPENAI_API_KEY | codex-pool login --api-key"),
        (["--api-key"], "two words", "that is no API key: expected one word of ASCII"),
        (["--api-key"], "x" * 5000, "that is no API key: expected one word of ASCII"),
        (["--api-key", KEY], "", "login takes no argument; an API key there can be seen by all users"),
        (["--api-key=" + KEY], "", "does not take a value"),
        (["--api-key", "--device"], KEY, "--device and --api-key are two ways to log in"),
        (["--connect", "default", "-c", "a=b"], "", "--config makes an own pool and cannot go with --connect"),
    ],
)
def test_what_cannot_be_a_login_is_refused_and_no_key_is_shown(
    arguments: list[str], stdin: str, words: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    done = codex_pool("login", *arguments, home=home, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and KEY not in done.stderr
    assert not home.exists()


def test_a_prompt_hides_the_key_and_ctrl_c_there_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    arguments = ("-m", "codex_pool_cli", "login", "--api-key")
    with Terminal(*arguments, env=environment(home)) as terminal:
        terminal.wait_for("API key: ")
        terminal.type("\x03")
        assert terminal.end() == (130, "API key: \ncodex-pool: interrupted\n")
    assert not home.exists()
    with Terminal(*arguments, env=environment(home)) as terminal:
        terminal.wait_for("API key: ")
        terminal.type(f"{KEY}\n")
        code, shown = terminal.end()
    assert (code, shown) == (0, "API key: \ncodex-pool: logged in with an API key (ending in wxyz)\n")
    assert stored_key(home) == KEY


def test_account_says_what_is_needed_and_whether_it_is_there(home: Path, bare: Path) -> None:
    done = codex_pool("account", home=bare)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "logged in   nobody; run codex-pool login",
        "provider    loopback, which needs an OpenAI login",
        f"CODEX_HOME  {bare}",
    ]
    code, found = account(bare)
    assert (code, found) == (
        1,
        {
            "account": None,
            "requiresOpenaiAuth": True,
            "loginMissing": True,
            "modelProvider": "loopback",
            "rateLimits": None,
            "codexHome": str(bare),
            "endpoint": None,
        },
    )
    done = codex_pool("account", home=home)
    assert (done.returncode, done.stdout.splitlines()[:2]) == (
        0,
        ["logged in   nobody", "provider    loopback, which needs no OpenAI login"],
    )


def test_account_knows_credentials_of_a_provider_and_a_home_that_is_missing(
    tmp_path: Path, model: LoopbackModel
) -> None:
    own = provider_home(tmp_path / "own", model, 'requires_openai_auth = true\nexperimental_bearer_token = "t"')
    done = codex_pool("account", home=own)
    assert (done.returncode, done.stdout.splitlines()[1]) == (
        0,
        "provider    loopback, which has credentials of its own",
    )

    missing = tmp_path / "missing"
    code, found = account(missing)
    assert (code, found["loginMissing"], found["requiresOpenaiAuth"]) == (1, True, None)
    done = codex_pool("account", home=missing)
    assert done.returncode == 1 and f"CODEX_HOME {missing} does not exist; codex-pool login makes it" in done.stderr
    assert not missing.exists()


@pytest.mark.parametrize("verb", [["login", "--api-key"], ["logout"], ["account"]])
def test_a_configuration_that_cannot_be_read_is_one_clear_error(verb: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("model = [\n")
    (tmp_path / "auth.json").write_text(json.dumps({"auth_mode": "apikey", "OPENAI_API_KEY": "sk-before"}))
    done = codex_pool(*verb, home=tmp_path, stdin=KEY)
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("codex-pool: the configuration cannot be read: ") and f"{tmp_path}/config.toml:1" in line
    assert stored_key(tmp_path) == "sk-before"


def test_a_login_that_would_be_lost_at_once_is_refused(tmp_path: Path) -> None:
    done = codex_pool("login", "--api-key", "-c", "cli_auth_credentials_store=ephemeral", home=tmp_path, stdin=KEY)
    assert done.returncode == 2 and "cli_auth_credentials_store is ephemeral" in done.stderr


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = codex_pool("login", "--api-key", home=tmp_path / "file", stdin=KEY)
    assert done.returncode == 3 and f"CODEX_HOME {tmp_path}/file is not a directory" in done.stderr


def test_a_login_by_device_code_with_the_limits_of_its_account(issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(issuer.config_toml)
    with running("login", "--device", home=tmp_path) as program:
        program.wait_for_line(CODE)
        program.wait_for_line("Ctrl-C gives up")
        issuer.approved.set()
        assert program.wait() == 0, program.lines
    assert program.lines["stderr"] == [
        "codex-pool: open this page in any browser, log in, and enter the code:",
        "",
        f"  {issuer.url}/codex/device",
        f"  {CODE}",
        "",
        "Waiting, for 15 minutes at most; Ctrl-C gives up. Never share the code.",
        f"codex-pool: logged in as {EMAIL} (Plus)",
    ]
    lines = codex_pool("account", home=tmp_path).stdout.splitlines()
    assert lines[0] == f"logged in   {EMAIL} (Plus)"
    assert lines[1].startswith("rate limit  23 % used of 5 h, resets at ")
    assert lines[2].startswith("            4 % used of 7 days, resets at ")
    code, found = account(tmp_path)
    assert (code, found["account"]) == (0, {"email": EMAIL, "planType": "plus", "type": "chatgpt"})
    assert found["rateLimits"]["rateLimits"]["primary"]["usedPercent"] == 23
    done = codex_pool("logout", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, f"codex-pool: logged out: {EMAIL} (Plus)\n")
    assert "/oauth/revoke" in issuer.requests


def test_an_issuer_that_says_no_is_a_failed_login(issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(issuer.config_toml)
    issuer.deny = True
    issuer.approved.set()
    done = codex_pool("login", "--device", home=tmp_path)
    assert done.returncode == 1
    assert "codex-pool: the login failed: " in done.stderr and "the issuer says no" in done.stderr
    assert not (tmp_path / "auth.json").exists()


def test_a_login_by_browser_opens_it_where_there_is_a_display(issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(issuer.config_toml)
    browser = tmp_path / "browser"
    browser.write_text(
        f"#!{sys.executable}\nimport sys, urllib.request\nurllib.request.urlopen(sys.argv[1], timeout=20).read()\n"
    )
    browser.chmod(0o700)
    env = {**environment(tmp_path), "DISPLAY": ":0", "BROWSER": f"{browser} %s"}
    with login_port(), Terminal("-m", "codex_pool_cli", "login", env=env) as terminal:
        code, shown = terminal.end()
    assert code == 0, shown
    lines = shown.splitlines()
    assert lines[0] == "codex-pool: log in with the browser of this machine:"
    assert lines[2].startswith(f"  {issuer.url}/oauth/authorize?")
    assert lines[-1] == f"codex-pool: logged in as {EMAIL} (Plus)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_gives_a_login_by_browser_up_and_leaves_nothing(issuer: Issuer, tmp_path: Path, number: int) -> None:
    (tmp_path / "config.toml").write_text(issuer.config_toml)
    with login_port(), running("login", home=tmp_path) as program:
        program.wait_for_line("Ctrl-C gives up")
        assert program.end(number) == 130
    assert program.lines["stderr"][-1] == "codex-pool: interrupted"
    assert issuer.requests == [] and not (tmp_path / "auth.json").exists()


def test_a_daemon_is_logged_in_with_all_its_clients(bare: Path) -> None:
    with running("serve", "--workers", "1", "--json", home=bare) as daemon:
        daemon.wait_for_line(WARNING)
        warning = json.loads(daemon.wait_for_line("warning", "stdout"))
        assert (warning["record"], warning["kind"]) == ("warning", "login_missing")
        assert f"codex-pool: {warning['message']}" == WARNING

        done = codex_pool("run", "Say vernier-1.", home=bare)
        assert done.returncode == 0 and f"{WARNING}\n" in done.stderr
        done = codex_pool("login", "--api-key", home=bare, stdin=KEY)
        using, logged_in = done.stderr.splitlines()
        assert using.startswith("codex-pool: using the daemon at ipc://") and "CODEX_HOME" not in using
        assert (done.returncode, logged_in) == (0, "codex-pool: logged in with an API key (ending in wxyz)")
        assert stored_key(bare) == KEY
        done = codex_pool("run", "Say vernier-2.", home=bare)
        assert done.returncode == 0 and "logged in" not in done.stderr
        assert daemon.end() == 0


def test_a_daemon_is_asked_who_is_logged_in_and_logged_out(bare: Path, tmp_path: Path) -> None:
    (bare / "auth.json").write_text(json.dumps({"auth_mode": "apikey", "OPENAI_API_KEY": KEY}))
    with running("serve", "--workers", "1", home=bare) as daemon:
        daemon.wait_for_line("stop  Ctrl-C")
        code, found = account(bare)
        assert (code, found["account"], found["endpoint"][:6]) == (0, {"type": "apiKey"}, "ipc://")
        done = codex_pool("logout", home=tmp_path)
        assert f", whose CODEX_HOME is {bare}\ncodex-pool: logged out: an API key\n" in done.stderr
        assert account(bare)[0] == 1 and stored_key(bare) is None
        assert daemon.end() == 0
    assert "logged in" not in "".join(daemon.lines["stderr"])


def test_a_daemon_is_told_that_a_login_was_given_up(issuer: Issuer, bare: Path) -> None:
    with login_port(), running("serve", "--workers", "1", home=bare) as daemon:
        daemon.wait_for_line("stop  Ctrl-C")
        for _ in range(2):
            with running("login", home=bare) as program:
                # Where the port were not free again, codex would take another.
                assert "127.0.0.1%3A1455" in program.wait_for_line("/oauth/authorize?")
                program.wait_for_line("Ctrl-C gives up")
                assert program.end() == 130
        assert daemon.end() == 0
    assert issuer.requests == []


def test_a_demo_daemon_gets_no_login(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running("serve", "--demo", "--workers", "1", home=tmp_path) as daemon:
        daemon.wait_for_line("stop  Ctrl-C")
        done = codex_pool("login", "--api-key", home=home, stdin=KEY)
        assert done.returncode == 0 and "is a demo, which has no account; using your own home" in done.stderr
        assert stored_key(home) == KEY
        assert daemon.end() == 0
    assert "logged in" not in "".join(daemon.lines["stderr"])


def test_a_batch_and_a_judge_warn(bare: Path, tmp_path: Path) -> None:
    dataset, out = tmp_path / "d.jsonl", tmp_path / "out"
    dataset.write_text('{"prompt": "Say gnomon-1."}\n')
    done = codex_pool("batch", str(dataset), "--workers", "1", "--json", "-o", str(out), home=bare)
    assert done.returncode == 0 and done.stderr.splitlines().count(WARNING) == 1
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["launch", "warning", "sample", "done"]
    assert (events[1]["kind"], f"codex-pool: {events[1]['message']}") == ("login_missing", WARNING)

    scored = ("score", str(out), "--workers", "1")
    done = codex_pool(*scored, "--scorer", "judge:Is it polite?", "--home", str(bare), home=tmp_path)
    assert WARNING.replace("run codex-pool", f"run CODEX_HOME={bare} codex-pool") in done.stderr
    done = codex_pool(*scored, "--scorer", "exact:a", home=bare)
    assert "logged in" not in done.stderr


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        ("", None),
        ("requires_openai_auth = true", KEY),
        ('requires_openai_auth = true\nhttp_headers = { Authorization = "Bearer t" }', None),
    ],
)
def test_no_warning_where_somebody_is_logged_in_or_nobody_is_needed(
    extra: str, key: str | None, tmp_path: Path, model: LoopbackModel
) -> None:
    home = provider_home(tmp_path / "home", model, extra)
    if key is not None:
        (home / "auth.json").write_text(json.dumps({"auth_mode": "apikey", "OPENAI_API_KEY": key}))
    done = codex_pool("run", "Say sextant-1.", home=home)
    assert (done.returncode, "sextant-1" in done.stdout, done.stderr) == (0, True, "")
    with running("serve", "--workers", "1", home=home) as daemon:
        daemon.wait_for_line("stop  Ctrl-C")
        assert daemon.end() == 0
    assert "logged in" not in "".join(daemon.lines["stderr"])


def test_keys_in_the_environment_are_no_login_for_codex(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "CODEX_API_KEY"):
        monkeypatch.setenv(name, KEY)
    assert account(bare)[0] == 1
