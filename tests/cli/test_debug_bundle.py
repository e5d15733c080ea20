"""`codex-pool debug-bundle`: secrets and texts of people that are planted everywhere are not in it."""

from __future__ import annotations

import base64
import json
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest
from programs import codex_pool as command

from codex_pool.auth.keys import KeyStore, read_client_key
from codex_pool.auth.principal import Identity
from codex_pool_cli.bundle import scrub

# Each in one place, so that a failure names the place.
PLANTED = {
    "environment": "env-Zq8vN3rT5yW1",
    "environment url": "urlpass-K2mX9cB4",
    "auth.json key": "sk-proj-Aa0Bb1Cc2Dd3Ee4Ff5",
    "auth.json token": "refresh-7Hh8Jj9Kk0Ll",
    "http header": "hdr-Pp1Oo2Ii3Uu4",
    "mcp environment": "mcpenv-Yy5Tt6Rr7",
    "mcp argument": "arg-Ee8Ww9Qq0Aa1",
    "bearer": "brr-Ss2Dd3Ff4Gg5",
    "config url": "cfgurl-Hh6Jj7Kk8",
    "query": "qry-Ll9Zz0Xx1Cc2",
    "odd setting": "odd-Vv3Bb4Nn5Mm6",
    "instructions": "Always-praise-the-customer-called-Meier",
    "log header": "logged-Qw1Er2Ty3",
    "log value": "logval-Ui4Op5As6",
    "log url": "logurl-Df7Gh8Jk9",
    "thread": "the-prompt-of-somebody",
    "dotenv": "dotenv-Lk1Jh2Gf3",
}

CONFIG = """
model = "gpt-x"
odd_setting = "{odd setting}"
developer_instructions = "{instructions}"
[model_providers.corp]
name = "corp"
base_url = "https://user:{config url}@corp.example:8443/v1?key={query}"
experimental_bearer_token = "{bearer}"
[model_providers.corp.http_headers]
Authorization = "Bearer {http header}"
[mcp_servers.one]
command = "server"
args = ["--api-key", "{mcp argument}"]
[mcp_servers.one.env]
VALUE = "{mcp environment}"
"""

LOG = """\
2026-11-29 10:00:00.123 INFO supervisor[1] w0 is ready
2026-11-29 10:00:00.124 WARNING worker[2] Authorization: Bearer {log header}
2026-11-29 10:00:00.125 WARNING worker[2] api_key="{log value}" failed at https://u:{log url}@host/
2026-11-29 10:00:00.126 WARNING worker[2] {environment} {bearer} {auth.json token} {mcp argument} {http header}
"""


def planted(text: str) -> str:
    for name, value in PLANTED.items():
        text = text.replace("{" + name + "}", value)
    return text


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / "sessions").mkdir(parents=True, mode=0o700)
    (home / "config.toml").write_text(planted(CONFIG))
    login = {"OPENAI_API_KEY": PLANTED["auth.json key"], "tokens": {"refresh_token": PLANTED["auth.json token"]}}
    (home / "auth.json").write_text(json.dumps(login))
    (home / ".env").write_text(f"SOME_TOKEN={PLANTED['dotenv']}\n")
    (home / "sessions" / "rollout-1.jsonl").write_text(PLANTED["thread"])
    (home / f"copy-{PLANTED['auth.json token']}").write_text("")
    monkeypatch.setenv("CORP_API_KEY", PLANTED["environment"])
    monkeypatch.setenv("SOMETHING", f"https://me:{PLANTED['environment url']}@host/")
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{PLANTED['environment url']}@127.0.0.1:1")
    return home


def written(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2]: _read(archive, member) for member in archive.getmembers()}


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    assert file is not None
    return file.read().decode()


def test_no_secret_that_is_planted_is_in_it(
    home: Path, tmp_path: Path, runtime_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeyStore(tmp_path / "keys")
    store.new(Identity(name="ana", cwd_roots=("/",)), tmp_path / "ana.key")
    monkeypatch.setenv("CODEX_POOL_KEYS", str(store.directory))
    monkeypatch.setenv("CODEX_POOL_WORKERS", PLANTED["environment"])
    key = read_client_key(tmp_path / "ana.key")
    log = tmp_path / "daemon.log"
    log.write_text(planted(LOG) + f"server {store.server().secret_key}\n")
    bundle = tmp_path / "bundle.tar.gz"
    done = command("debug-bundle", "-o", str(bundle), "--log", str(log), home=home)
    assert done.returncode == 0 and done.stdout == f"{bundle}\n"
    assert bundle.stat().st_mode & 0o777 == 0o600
    members = written(bundle)
    assert set(members) == {
        "README.txt",
        "versions.json",
        "doctor.json",
        "status.json",
        "environment.json",
        "options.json",
        "config-0.json",
        "home-0.txt",
        "log.txt",
    }
    secrets = {**PLANTED, "server": store.server().secret_key, "key": key.secret_key, "token": key.token}
    for where, secret in secrets.items():
        for form in (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode()):
            found = [name for name, text in members.items() if form in text]
            assert found == [], where
    assert not any(content.startswith("not made") for content in members.values())


@pytest.mark.real
def test_what_helps_is_in_it(
    home: Path, tmp_path: Path, runtime_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEX_POOL_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("CODEX_POOL_TURNS_PER_WORKER", "many")
    log = tmp_path / "daemon.log"
    log.write_text(planted(LOG))
    bundle = tmp_path / "bundle.tar.gz"
    assert command("debug-bundle", "-o", str(bundle), "--log", str(log), home=home).returncode == 0
    members = written(bundle)
    config = json.loads(members["config-0.json"])["config"]
    assert config["model"] == "gpt-x" and config["model_providers"]["corp"]["base_url"] == "https://corp.example:8443"
    assert "sessions/rollout-1.jsonl" in members["home-0.txt"]
    assert json.loads(members["doctor.json"])["findings"] and json.loads(members["versions.json"])["codex"]
    assert json.loads(members["environment.json"])["CORP_API_KEY"] is None
    options = json.loads(members["options.json"])
    assert options["options"]["keys"]["where"] == "CODEX_POOL_KEYS" and options["options"]["workers"]["value"] == 2
    assert options["errors"] == ["CODEX_POOL_TURNS_PER_WORKER"]
    assert "w0 is ready" in members["log.txt"]
    again = command("debug-bundle", "-o", str(bundle), home=home)
    assert again.returncode == 2 and "exists; name another file" in again.stderr


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Authorization: Bearer abc.def", "abc.def"),
        ("https://me:pa%40ss@host/x", "pa%40ss"),
        ("refresh_token='x1y2'", "x1y2"),
        ('{"client_secret": "x1y2"}', "x1y2"),
        ("sk-proj-0123456789abcdef", "0123456789"),
        ("eyJhbGciOi.eyJzdWIi.c2ln", "eyJzdWIi"),
        ("GET /x?sig=x1y2&a=1", "x1y2"),
        ("-----BEGIN PRIVATE KEY-----\nx1y2\n-----END PRIVATE KEY-----", "x1y2"),
    ],
)
def test_a_secret_nobody_has_named_is_known_by_its_shape(text: str, left: str) -> None:
    assert left not in scrub.shapeless(text) and scrub.REMOVED in scrub.shapeless(text)


@pytest.mark.parametrize(
    "text", ["skills/.system/skill-installer/SKILL.md", "ipc:///run/x.sock", "12 turns, 3 sessions"]
)
def test_other_text_stays(text: str) -> None:
    assert scrub.shapeless(text) == text


def test_json_stays_json() -> None:
    value = {"tokens": 5, "access_token": 7, "list": [True, None, "password=abc"]}
    assert json.loads(scrub.as_json(value, scrub.shapeless)) == {**value, "list": [True, None, "password=[removed]"]}
