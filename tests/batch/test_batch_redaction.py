"""Secrets in what is kept of a run: how they are known, found and taken out."""

from __future__ import annotations

import base64
import io
import json
import sqlite3
import zlib
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_batch.redaction import scrub
from codex_batch.redaction.known_secrets import known_secrets
from codex_batch.redaction.redactor import MIN_CHARACTERS, Redactor, is_redacted
from codex_batch.store import EventLog

SECRET = 'p"ss\\wörd/+42&x'


@given(st.text(min_size=MIN_CHARACTERS), st.text(), st.text())
def test_every_form_of_a_secret_is_found(secret: str, before: str, after: str) -> None:
    redactor = Redactor({"NAME": secret})
    forms = [secret, json.dumps(secret)[1:-1], json.dumps(json.dumps(secret, ensure_ascii=False))[3:-3]]
    for form in forms:
        assert form not in redactor.text(f"{before}{form}{after}") or form in "[redacted NAME]"
    for form in map(str.encode, (quote(secret.encode("utf-8", "surrogatepass"), safe=""),)):
        assert form not in redactor.data(b"<" + form + b">") or form in b"[redacted NAME]"


# The alphabet of CURVE keys in text form.
Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


@given(st.text(Z85, min_size=40, max_size=40), st.integers(0, 40))
def test_a_key_file_is_known_whatever_characters_its_key_has(
    tmp_path_factory: pytest.TempPathFactory, key: str, place: int
) -> None:
    key = f"{key[:place]}={key[place:]}"
    path = tmp_path_factory.mktemp("keys") / "client.key"
    value = {"a": 1, "secret_key": key}
    for content in (json.dumps(value, indent=2), json.dumps(value), f"secret = {key}\n", key):
        path.write_text(content)
        assert key in known_secrets({}, (), key=str(path)).values(), content


def test_passwords_in_urls_of_a_dotenv_file_are_known(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("export DATABASE='postgres://me:pass-word-1@host/x'\nPLAIN=nothing-of-worth\n")
    assert list(known_secrets({}, [tmp_path]).values()) == ["pass-word-1"]


@pytest.mark.parametrize("before", [b"", b"u", b"u:", b"user:"])
def test_base64_of_a_secret_amid_other_data_is_found(before: bytes) -> None:
    secret = "correct-horse-battery"
    redactor = Redactor({"K": secret})
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        redacted = redactor.text(f"Basic {encode(before + secret.encode() + b'?').decode()}")
        assert is_redacted(redacted)
        rest = redacted.replace("[redacted K]", "").replace("Basic ", "")
        assert len(rest) <= len(before) * 2 + 8


def test_what_is_short_is_left_alone_and_a_longer_one_goes_first() -> None:
    redactor = Redactor({"SHORT": "1234567", "LONG": "12345678", "LONGER": "12345678-9"})
    assert redactor.text("1234567 12345678 12345678-9") == "1234567 [redacted LONG] [redacted LONGER]"
    assert not Redactor({"SHORT": "1234567"}) and Redactor().text("x") == "x"
    redactor.add({"odd name\n": "abcdefgh"})
    assert redactor.text("abcdefgh 12345678") == "[redacted odd_name_] [redacted LONG]"
    value = {"a": [1, None, "b"]}
    assert redactor.value(value) is value
    assert redactor.value({"12345678": ["12345678"]}) == {"[redacted LONG]": ["[redacted LONG]"]}


def test_lines_of_a_key_are_secrets_themselves() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nshort\n-----END PRIVATE KEY-----\n"
    diff = "".join(f"+{line}\n" for line in key.splitlines())
    assert Redactor({"K": key}).text(diff) == diff.replace("MIIEvQIBADANBgkqhkiG9w0B", "[redacted K]")
    assert is_redacted(Redactor({"K": key}).text(json.dumps({"key": key})))


@given(st.integers(0, 3), st.integers(1, 60))
def test_a_file_is_redacted_in_parts(at: int, size: int) -> None:
    redactor = Redactor({"K": "0123456789abcdef"})
    text = (b"x" * at + b"0123456789abcdef" + b"y" * 5) * 8

    class Slow(io.BytesIO):
        def read(self, _: int | None = -1, /) -> bytes:
            return super().read(size)

    target = io.BytesIO()
    assert redactor.copy(Slow(text), target)
    assert target.getvalue() == (b"x" * at + b"[redacted K]" + b"y" * 5) * 8
    assert not redactor.copy(io.BytesIO(b"none"), io.BytesIO())


def test_a_secret_that_is_divided_among_deltas_is_not_kept() -> None:
    log = EventLog(Redactor({"K": SECRET}))
    for part in (SECRET[:7], SECRET[7:]):
        log.add(json.dumps({"method": "item/agentMessage/delta", "params": {"delta": part}}).encode())
        log.add(json.dumps({"method": "item/reasoning/textDelta", "params": {"delta": part}}).encode())
    log.add(json.dumps({"method": "item/completed", "params": {"item": {"text": SECRET}}}).encode())
    member = log.member()
    assert member is not None
    (line,) = zlib.decompress(member, 31).splitlines()
    assert json.loads(line)["params"]["item"]["text"] == "[redacted K]"
    plain = EventLog()
    plain.add(b'{"method":"item/agentMessage/delta"}')
    assert plain.member() is not None


def test_a_log_is_masked_while_it_is_appended_to(tmp_path: Path) -> None:
    path, redactor = tmp_path / "log", Redactor({"K": "0123456789abcdef"})
    log = scrub.Log(path)
    log.mask(redactor)
    with path.open("ab", buffering=0) as file:
        file.write(b"a 0123456789abcdef b\n012345")
        log.mask(redactor)
        file.write(b"6789abcdef c\n")
        log.mask(redactor)
        assert path.read_bytes() == b"a **************** b\n**************** c\n"
        path.unlink()
        path.write_bytes(b"0123456789abcdef")
        log.mask(redactor)
        assert path.read_bytes() == b"*" * 16


def test_secrets_are_known_from_environment_homes_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codex_batch.redaction.known_secrets.SYSTEM", tmp_path / "none")
    (tmp_path / "auth.json").write_text(
        '{"auth_mode": "chatgptlike", "OPENAI_API_KEY": null, "last_refresh": "2026-01-01T00:00:00Z",'
        '"tokens": {"access_token": "access-token-1", "account_id": "account-1"}}'
    )
    (tmp_path / "config.toml").write_text(
        """
        model = "some-long-name"
        [model_providers.p]
        base_url = "https://user:url-password@example.org/v1"
        env_key = "PROVIDER"
        experimental_bearer_token = "bearer-token-1"
        http_headers = { "X-Plain" = "header-value-1", Authorization = "Bearer inner-token-1" }
        env_http_headers = { "X-More" = "HEADER" }
        [mcp_servers.s]
        command = "server"
        args = ["--api-key", "argument-1", "--token=argument-2", "--name", "argument-3"]
        env = { LEVEL = "env-value-1", BIN = "/usr" }
        bearer_token_env_var = "MCP"
        [shell_environment_policy.set]
        A = "policy-value-1"
        """
    )
    (tmp_path / ".env").write_text("export SOME_KEY='dotenv-value-1'\nPLAIN=plain-value-1\n")
    (tmp_path / "client.key").write_text('secret = "' + "k" * 40 + '"\n')
    basic = base64.b64encode(b"user:basic-password").decode()
    environ = {
        "SOME_TOKEN": "env-token-1",
        "PLAIN": "plain-value-2",
        "SHORT_KEY": "1234567",
        "SSH_AUTH_SOCK": str(tmp_path / "auth.json"),
        "HTTPS_PROXY": "http://me:proxy-password@proxy:1",
        "PROVIDER": "provider-value-1",
        "HEADER": "header-value-2",
        "MCP": "mcp-value-1",
    }
    overrides = (
        f'mcp_servers.t.http_headers={{Authorization="Basic {basic}"}}',
        "x.api_key=override-1",
        "model=gpt-five-x",
    )
    found = known_secrets(environ, [tmp_path, tmp_path / "none"], overrides, str(tmp_path / "client.key"))
    assert set(found.values()) == {
        "access-token-1", "account-1", "url-password", "provider-value-1", "bearer-token-1", "header-value-1",
        "Bearer inner-token-1", "inner-token-1", "header-value-2", "argument-1", "argument-2", "env-value-1",
        "mcp-value-1", "policy-value-1", "dotenv-value-1", "env-token-1", "proxy-password", f"Basic {basic}", basic,
        "basic-password", "override-1", "k" * 40,
    }  # fmt: skip
    assert found["SOME_TOKEN"] == "env-token-1" and found["auth.json.tokens.access_token"] == "access-token-1"


def test_the_home_of_a_run_is_redacted_and_restored(tmp_path: Path) -> None:
    home, user, redactor = tmp_path / "run", tmp_path / "user", Redactor({"K": "header-value-1"})
    config = '[a]\nheader = "header-value-1"\nlist = ["header-value-1", "x"]\ngone = "header-value-1"\n'
    for place in (home, user):
        (place / "sessions").mkdir(parents=True)
        (place / "config.toml").write_text(config)
    (user / "config.toml").write_text(config.replace('gone = "header-value-1"\n', ""))
    (home / "auth.json").symlink_to(user / "config.toml")
    (home / "sessions" / "a.jsonl").write_text('{"said": "header-value-1"}\n')
    slots = home / "codex-pool" / "sqlite"
    for slot, text in (("0", "header-value-1"), ("1", "nothing")):
        (slots / slot).mkdir(parents=True)
        database = sqlite3.connect(slots / slot / "logs.sqlite")
        with database:
            database.execute("CREATE TABLE t (x)")
            database.execute("INSERT INTO t VALUES (?)", (text,))
        database.close()
    scrub.redact_home(home, redactor)
    kept = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file() and not path.is_symlink())
    assert b"header-value-1" not in kept and "header-value-1" in (user / "config.toml").read_text()
    assert not (slots / "0").exists() and (slots / "1" / "logs.sqlite").exists()
    scrub.restore_home(home, user)
    assert (home / "config.toml").read_text().splitlines()[1] == 'header = "header-value-1"'
    assert '"header-value-1",\n    "x",' in (home / "config.toml").read_text()
    assert 'gone = "[redacted K]"' in (home / "config.toml").read_text()
