"""Keys on disk and the verbs that make them."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from codex_pool import keys
from codex_pool.broker.identity import Identity
from codex_pool.cli.verbs import verbs
from codex_pool.keys import KeysError, KeyStore


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "config" / "keys")


def new(store: KeyStore, name: str = "alice", **fields: Any) -> keys.ClientKey:
    identity = Identity(name=name, **{"cwd_roots": ("/srv",), **fields})
    return store.new(identity, store.directory.parent.parent / f"{name}.key")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def entry(store: KeyStore, name: str = "alice") -> Path:
    return store.directory / "clients" / f"{name}.json"


def test_a_new_key_is_allowed_with_its_limits_and_handed_over(store: KeyStore, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        key = new(store, methods=("fs/*",), sandbox="workspace-write", max_turns=3)
    finally:
        os.umask(before)
    read = keys.read_client_key(tmp_path / "alice.key")
    assert read == key and key.server_public_key == store.server().public_key
    allowed = store.allowed()
    assert not allowed.problems
    principal = allowed.clients[key.public_key].principal
    expected = Identity(
        name="alice",
        principal=principal,
        methods=("fs/*",),
        sandbox="workspace-write",
        cwd_roots=("/srv",),
        max_turns=3,
    )
    assert allowed.clients == {key.public_key: expected} and re.fullmatch("[0-9a-f]{32}", principal)
    for path in (store.directory, store.directory / "clients"):
        assert mode(path) == 0o700
    for path in (tmp_path / "alice.key", entry(store), store.directory / "server.json"):
        assert mode(path) == 0o600
    # The client's secret is in its own file only.
    assert key.secret_key not in entry(store).read_text()
    assert sorted(os.listdir(store.directory / "clients")) == ["alice.json"]


def test_the_servers_pair_is_made_once(store: KeyStore) -> None:
    assert store.server() == store.server() == KeyStore(store.directory).server()


def test_a_revoked_key_is_off_the_list(store: KeyStore) -> None:
    new(store)
    new(store, "bob")
    before = store.signature()
    assert store.signature() == before
    store.revoke("alice")
    assert store.signature() != before
    assert [identity.name for identity in store.allowed().clients.values()] == ["bob"]
    with pytest.raises(KeysError, match="no key for alice; there are: bob"):
        store.revoke("alice")


def test_a_name_is_given_once(store: KeyStore, tmp_path: Path) -> None:
    key = new(store)
    with pytest.raises(KeysError, match="is there already"):
        new(store)
    (tmp_path / "alice.key").unlink()
    with pytest.raises(KeysError, match="codex-pool keys revoke alice"):
        new(store)
    assert not (tmp_path / "alice.key").exists()
    assert list(store.allowed().clients) == [key.public_key]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a b", "-a", "a" * 65, "ä", "a\n", "a\0"])
def test_names_that_are_none(store: KeyStore, name: str) -> None:
    with pytest.raises(KeysError, match="cannot be the name"):
        store.new(Identity(name=name), store.directory.parent / "x.key")
    with pytest.raises(KeysError, match="cannot be the name"):
        store.revoke(name)
    assert not store.directory.exists()


@pytest.mark.parametrize(
    "limits",
    [
        {"methods": ("fs/read",)},
        {"methods": ("*",)},
        {"cwd_roots": ("relative",)},
        {"cwd_roots": ("/srv/../etc",)},
        {"max_turns": 0},
        {"max_message_bytes": 10**12},
    ],
)
def test_limits_that_cannot_be_meant(store: KeyStore, limits: dict[str, Any]) -> None:
    with pytest.raises(KeysError):
        new(store, **limits)


@pytest.mark.parametrize("which", ["server.json", "clients/alice.json"])
@pytest.mark.parametrize("bits", [0o040, 0o004, 0o020, 0o002, 0o010])
def test_a_file_that_others_may_use_is_refused(store: KeyStore, which: str, bits: int) -> None:
    new(store)
    new(store, "bob")
    path = store.directory / which
    path.chmod(0o600 | bits)
    if which == "server.json":
        with pytest.raises(KeysError, match="chmod 600"):
            store.server()
        return
    allowed = store.allowed()
    # One bad file keeps nobody else out.
    assert [identity.name for identity in allowed.clients.values()] == ["bob"]
    assert len(allowed.problems) == 1 and f"chmod 600 {path}" in allowed.problems[0]


@pytest.mark.parametrize("which", ["", "clients"])
def test_a_directory_that_others_may_enter_lets_nobody_in(store: KeyStore, which: str) -> None:
    new(store)
    before = store.signature()
    path = store.directory / which
    path.chmod(0o755)
    assert store.signature() != before
    allowed = store.allowed()
    assert allowed.clients == {} and f"chmod 700 {path}" in allowed.problems[0]
    with pytest.raises(KeysError, match="chmod 700"):
        store.server()
    with pytest.raises(KeysError, match="chmod 700"):
        store.revoke("alice")


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "\xff", '{"name":"bob"}', '{"name":"alice","public_key":"short"}', "x" * 2_000_000],
)
def test_an_entry_that_cannot_be_read_lets_nobody_in(store: KeyStore, content: str) -> None:
    new(store)
    new(store, "bob")
    entry(store).write_bytes(content.encode("latin-1"))
    allowed = store.allowed()
    assert [identity.name for identity in allowed.clients.values()] == ["bob"]
    assert len(allowed.problems) == 1 and "alice.json" in allowed.problems[0]


def test_entries_are_read_strictly(store: KeyStore) -> None:
    new(store)
    written = json.loads(entry(store).read_text())
    for change in (
        {"sandbox": "everything"},
        {"sandboxes": "read-only"},
        {"name": "bob"},
        {"methods": ["no/such"]},
        {"max_turns": -1},
        {"cwd_roots": ["../x"]},
        {"public_key": 5},
    ):
        entry(store).write_text(json.dumps({**written, **change}))
        assert store.allowed().clients == {} and store.allowed().problems
    entry(store).write_text(json.dumps(written))
    assert len(store.allowed().clients) == 1


def test_a_link_or_a_pipe_is_no_key_file(store: KeyStore, tmp_path: Path) -> None:
    new(store)
    elsewhere = tmp_path / "elsewhere.json"
    entry(store).rename(elsewhere)
    entry(store).symlink_to(elsewhere)
    assert store.allowed().clients == {}
    entry(store).unlink()
    os.mkfifo(entry(store), 0o600)
    assert store.allowed().clients == {} and "not a file" in store.allowed().problems[0]


def test_two_entries_of_one_key(store: KeyStore) -> None:
    key = new(store)
    written = json.loads(entry(store).read_text())
    entry(store, "bob").write_text(json.dumps({**written, "name": "bob", "sandbox": "danger-full-access"}))
    entry(store, "bob").chmod(0o600)
    allowed = store.allowed()
    assert allowed.clients[key.public_key].name == "alice" and len(allowed.clients) == 1
    assert "bob.json" in allowed.problems[0]


def test_a_missing_directory_allows_nobody_and_is_not_made(store: KeyStore) -> None:
    assert store.allowed() == ({}, ())
    store.signature()
    assert not store.directory.exists()


def test_a_clients_key_file_is_checked(store: KeyStore, tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="codex-pool keys new NAME"):
        keys.read_client_key(tmp_path / "none.key")
    new(store)
    file = tmp_path / "alice.key"
    file.chmod(0o640)
    with pytest.raises(KeysError, match="chmod 600"):
        keys.read_client_key(file)
    file.chmod(0o600)
    file.write_text(json.dumps({**json.loads(file.read_text()), "server_public_key": "x"}))
    with pytest.raises(KeysError, match="server_public_key"):
        keys.read_client_key(file)


# The verbs.


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(verbs, ["keys", *arguments], env=env)


def test_verbs_from_a_new_key_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "CODEX_POOL_KEYS": ""}
    directory = tmp_path / "config" / "codex-pool" / "keys"
    made = run("new", "alice", "--allow", "fs/*", "--sandbox", "workspace-write", "--max-turns", "3", env=env)
    assert made.exit_code == 0, made.output
    assert str(tmp_path) in made.stderr and "alice.key" in made.stderr
    key = keys.read_client_key(tmp_path / "alice.key")
    assert run("show-server", env=env).stdout == f"{key.server_public_key}\n"
    listed = json.loads(run("list", "--json", env=env).stdout)
    assert listed["name"] == "alice" and listed["cwd_roots"] == [str(tmp_path)] and listed["max_turns"] == 3
    assert "secret" not in json.dumps(listed)
    assert "alice  workspace-write" in run("list", "--keys", str(directory)).stdout
    assert "fs/*" in run("list", env={"CODEX_POOL_KEYS": str(directory)}).stdout
    assert run("revoke", "alice", env=env).exit_code == 0
    empty = run("list", env=env)
    assert empty.stdout == "" and "codex-pool keys new NAME" in empty.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["new", "../x"], "cannot be the name"),
        (["new", "alice", "--allow", "fs/raed"], "names nothing"),
        (["new", "alice", "-o", "/no/such/dir/x"], "--output"),
        (["revoke", "alice"], "no key for alice"),
        (["new", "alice", "--sandbox", "none"], "--sandbox"),
        (["new"], "NAME"),
    ],
)
def test_wrong_usage_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, env={"CODEX_POOL_KEYS": str(tmp_path / "keys")})
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "alice.key").exists()
