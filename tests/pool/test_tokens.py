"""Bearer tokens and users of the machine on the allow-list."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest
from click.testing import CliRunner

from codex_pool.auth import keys, tokens
from codex_pool.auth.allow_list import AllowedKeys
from codex_pool.auth.keys import KeysError, KeyStore
from codex_pool.auth.principal import Identity
from codex_pool_cli.keys import keys as command


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys")


def new(store: KeyStore, name: str = "alice", uid: int = -1) -> keys.ClientKey:
    return store.new(Identity(name=name, cwd_roots=("/srv",)), store.directory.parent / f"{name}.key", unix_uid=uid)


def entry(store: KeyStore, name: str = "alice") -> Path:
    return store.directory / "clients" / f"{name}.json"


def read(store: KeyStore) -> AllowedKeys:
    allowed = AllowedKeys(store, lambda line: None)
    allowed.read()
    return allowed


def test_a_new_key_has_a_token_and_the_list_its_digest(store: KeyStore, tmp_path: Path) -> None:
    key = new(store)
    assert len(key.token) == 43 and key.token != new(store, "bob").token
    assert keys.read_token(tmp_path / "alice.key") == key.token
    written = entry(store).read_text()
    assert key.token not in written and tokens.digest_of(key.token) in written
    allowed = read(store)
    assert allowed.key_of_token(key.token) == key.public_key
    for wrong in ("", "x", key.token[:-1], key.token + "x", "x" * 100_000, "\udcff", tokens.digest_of(key.token)):
        assert allowed.key_of_token(wrong) is None


def test_renewing_and_revoking_end_a_token(store: KeyStore, tmp_path: Path) -> None:
    key = new(store)
    renewed = store.renew("alice", tmp_path / "alice.key")
    allowed = read(store)
    assert allowed.key_of_token(key.token) is None
    assert allowed.key_of_token(renewed.token) == renewed.public_key
    store.revoke("alice")
    assert allowed.read() and allowed.key_of_token(renewed.token) is None


def test_a_key_from_before_there_were_tokens(store: KeyStore, tmp_path: Path) -> None:
    key = new(store)
    for path in (entry(store), tmp_path / "alice.key"):
        plain = {
            k: v for k, v in json.loads(path.read_text()).items() if k not in ("token", "token_sha256", "unix_uid")
        }
        path.write_text(json.dumps(plain))
    assert keys.read_client_key(tmp_path / "alice.key").secret_key == key.secret_key
    allowed = read(store)
    assert key.public_key in allowed.clients
    for wrong in (key.token, ""):
        assert allowed.key_of_token(wrong) is None
    with pytest.raises(KeysError, match="codex-pool keys renew alice"):
        keys.read_token(tmp_path / "alice.key")


def test_a_digest_that_is_none_allows_nobody(store: KeyStore) -> None:
    new(store)
    entry(store).write_text(entry(store).read_text().replace('"token_sha256": "', '"token_sha256": "x'))
    allowed = store.allowed()
    assert allowed.clients == {} and "token_sha256" in allowed.problems[0]


def test_a_user_of_the_machine_is_one_identity(store: KeyStore, tmp_path: Path) -> None:
    key = new(store, uid=61234)
    allowed = read(store)
    assert allowed.key_of_user(61234) == key.public_key
    assert allowed.key_of_user(61235) is None and allowed.key_of_user(-1) is None
    with pytest.raises(KeysError, match="connects as alice already"):
        new(store, "bob", uid=61234)
    assert not (tmp_path / "bob.key").exists()
    with pytest.raises(KeysError, match="needs no key"):
        new(store, "bob", uid=os.getuid())
    # Kept when the key is renewed, gone with it.
    renewed = store.renew("alice", tmp_path / "alice.key")
    assert allowed.read() and allowed.key_of_user(61234) == renewed.public_key
    store.revoke("alice")
    assert allowed.read() and allowed.key_of_user(61234) is None
    new(store, "bob", uid=61234)


def test_users_by_name_and_number() -> None:
    user = pwd.getpwuid(os.getuid())
    assert keys.uid_of(user.pw_name) == user.pw_uid and keys.uid_of("61234") == 61234
    with pytest.raises(KeysError, match="has no user 'no-such-user'"):
        keys.uid_of("no-such-user")


def test_the_command(tmp_path: Path) -> None:
    run = CliRunner().invoke
    where = ["--keys", str(tmp_path / "keys")]
    file = str(tmp_path / "a.key")
    made = run(command, ["new", "alice", "--unix-user", "61234", "-o", file, *where])
    token = json.loads(Path(file).read_text())["token"]
    assert made.exit_code == 0 and token not in made.output and "--remote-auth-token-env" in made.output
    assert run(command, ["token", file]).stdout == f"{token}\n"
    (row,) = (json.loads(line) for line in run(command, ["list", "--json", *where]).stdout.splitlines())
    assert row["token"] is True and row["unix_uid"] == 61234 and "token_sha256" not in row
    assert "user 61234" in run(command, ["list", *where]).stdout
