"""Keys on disk and the verbs that make them."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from codex_pool.auth import key_files, keys
from codex_pool.auth.allow_list import AllowedKeys
from codex_pool.auth.key_entries import expiry_of
from codex_pool.auth.keys import KeysError, KeyStore
from codex_pool.auth.principal import Identity
from codex_pool_cli.verbs import verbs


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
    assert store.allowed() == ({}, (), {}, {}, math.inf)
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


# Principals.


def principal(store: KeyStore, name: str = "alice") -> str:
    return next(identity.principal for identity in store.allowed().clients.values() if identity.name == name)


def old_format(store: KeyStore, name: str = "alice") -> None:
    """The entry as it was written when principals had no ids."""
    written = json.loads(entry(store, name).read_text())
    for field in ("principal", "since", "key_since", "revoked_at"):
        del written[field]
    entry(store, name).write_text(json.dumps(written))


def test_a_new_key_is_a_new_principal_and_a_renewed_one_is_the_same(store: KeyStore, tmp_path: Path) -> None:
    first = new(store, sandbox="workspace-write", max_turns=3)
    alice = principal(store)
    before = store.signature()
    renewed = store.renew("alice", tmp_path / "alice.key")
    assert store.signature() != before
    assert keys.read_client_key(tmp_path / "alice.key") == renewed and renewed.public_key != first.public_key
    ((public_key, identity),) = store.allowed().clients.items()
    assert (public_key, identity.principal, identity.max_turns) == (renewed.public_key, alice, 3)
    store.revoke("alice")
    assert store.allowed().clients == {}
    (tmp_path / "alice.key").unlink()
    new(store)
    other = principal(store)
    assert other != alice and store.allowed().clients.popitem()[1].max_turns != 3
    # Who is on the list is meant; the one before is renewed by its id, once the name is free.
    with pytest.raises(KeysError, match=f"alice is principal {other}, not {alice}; revoke it first"):
        store.renew("alice", tmp_path / "x.key", principal=alice)
    store.renew("alice", tmp_path / "alice.key")
    assert principal(store) == other
    store.revoke("alice")
    with pytest.raises(KeysError, match="2 principals had the name alice"):
        store.renew("alice", tmp_path / "x.key")
    store.renew("alice", tmp_path / "x.key", principal=alice)
    assert principal(store) == alice and [each.principal for each in store.known().revoked] == [other]
    assert not [each for each in os.listdir(tmp_path) if each.startswith(".")]


def test_only_the_file_of_the_key_that_ends_is_written_over(store: KeyStore, tmp_path: Path) -> None:
    new(store)
    bob = new(store, "bob")
    with pytest.raises(KeysError, match=r"bob\.key is there already"):
        store.renew("alice", tmp_path / "bob.key")
    assert keys.read_client_key(tmp_path / "bob.key") == bob
    before = keys.read_client_key(tmp_path / "alice.key")
    assert before.public_key in store.allowed().clients, "it has not ended"
    with pytest.raises(KeysError, match="--output"):
        store.renew("alice", tmp_path / "no" / "alice.key")
    assert before.public_key in store.allowed().clients


def test_an_entry_without_an_id_gets_one_that_stays(store: KeyStore, tmp_path: Path) -> None:
    key = new(store)
    given = principal(store)
    old_format(store)
    found = principal(store)
    assert re.fullmatch("[0-9a-f]{32}", found) and found != given
    assert principal(KeyStore(store.directory)) == found == json.loads(entry(store).read_text())["principal"]
    assert store.known().allowed[0].since > 0 and mode(entry(store)) == 0o600
    assert list(store.allowed().clients) == [key.public_key]
    old_format(store)
    store.revoke("alice")
    (gone,) = store.known().revoked
    store.renew("alice", tmp_path / "alice.key")
    assert principal(store) == gone.principal


READ = """
import json, sys
from codex_pool.auth.keys import KeyStore
store = KeyStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([[each.name, each.principal] for each in store.allowed().clients.values()]))
"""


def test_processes_that_read_at_once_agree_on_ids(store: KeyStore) -> None:
    names = [f"n{number}" for number in range(8)]
    for name in names:
        new(store, name)
        old_format(store, name)
    with contextlib.ExitStack() as stack:
        readers = []
        for _ in range(4):
            command = [sys.executable, "-c", READ, str(store.directory)]
            reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(reader.communicate, timeout=30)
            readers.append(reader)
        for reader in readers:
            assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
        for reader in readers:
            assert reader.stdin is not None
            reader.stdin.write("\n")
            reader.stdin.flush()
        answers = [json.loads(reader.communicate(timeout=30)[0]) for reader in readers]
        stack.pop_all()
    assert [name for name, _ in answers[0]] == names and len({id for _, id in answers[0]}) == len(names)
    assert all(answer == answers[0] for answer in answers)
    assert sorted(os.listdir(store.directory / "clients")) == [f"{name}.json" for name in names]


def test_an_id_cannot_be_given_where_nothing_can_be_written(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    new(store)
    new(store, "bob")
    old_format(store)

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(key_files, "replace", fail)
        allowed = store.allowed()
    assert [identity.name for identity in allowed.clients.values()] == ["bob"]
    assert "codex-pool keys list" in allowed.problems[0]
    assert len(store.allowed().clients) == 2


def test_a_list_that_another_process_holds_is_not_changed(store: KeyStore, tmp_path: Path) -> None:
    new(store)
    with store._locked(), pytest.raises(OSError, match="held the lock"):
        KeyStore(store.directory).revoke("alice")
    assert len(store.allowed().clients) == 1


def test_two_entries_of_one_principal(store: KeyStore) -> None:
    new(store)
    new(store, "bob", sandbox="danger-full-access")
    written = json.loads(entry(store, "bob").read_text())
    entry(store, "bob").write_text(json.dumps({**written, "principal": principal(store)}))
    allowed = store.allowed()
    assert [identity.name for identity in allowed.clients.values()] == ["alice"]
    assert "bob.json has the principal of alice too" in allowed.problems[0]


@pytest.mark.parametrize("id", ["x", "A" * 32, "0" * 31, "../clients/alice", "0" * 32 + "\n"])
def test_an_id_that_is_none(store: KeyStore, id: str) -> None:
    new(store)
    written = json.loads(entry(store).read_text())
    entry(store).write_text(json.dumps({**written, "principal": id}))
    assert store.allowed().clients == {} and "principal" in store.allowed().problems[0]


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
    assert "codex-pool keys new NAME" in empty.stderr
    assert empty.stdout.startswith("alice  ") and "  revoked on 20" in empty.stdout
    gone = json.loads(run("list", "--json", env=env).stdout)
    assert gone["revoked"] and gone["revoked_at"] >= gone["since"] and gone["principal"] == listed["principal"]
    # Another alice, who inherits nothing; and the first one again.
    again = run("new", "alice", "-o", "other.key", env=env)
    assert again.exit_code == 0 and f"--principal {listed['principal']}" in again.stderr
    assert run("revoke", "alice", env=env).exit_code == 0
    which = run("renew", "alice", env=env)
    assert which.exit_code == 2 and listed["principal"] in which.stderr and "--principal" in which.stderr
    renewed = run("renew", "alice", "--principal", listed["principal"], env=env)
    assert renewed.exit_code == 0, renewed.output
    assert keys.read_client_key(tmp_path / "alice.key").public_key != key.public_key
    back, other = map(json.loads, run("list", "--json", env=env).stdout.splitlines())
    assert (back["principal"], back["max_turns"], back["revoked"]) == (listed["principal"], 3, False)
    assert other["name"] == "alice" and other["revoked"] and other["principal"] != listed["principal"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new", "../x"], "cannot be the name"),
        (["new", "alice", "--allow", "fs/raed"], "names nothing"),
        (["new", "alice", "-o", "/no/such/dir/x"], "--output"),
        (["revoke", "alice"], "no key for alice"),
        (["renew", "alice"], "no key for alice to renew"),
        (["renew", "../x"], "cannot be the name"),
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


# Keys that expire.

DAY = 86400


@pytest.mark.parametrize(
    ("text", "after_s"), [("30d", 30 * DAY), ("12h", 12 * 3600), ("45m", 45 * 60), (" 1d ", DAY), ("never", None)]
)
def test_an_expiry_is_a_duration_or_never(text: str, after_s: int | None) -> None:
    assert expiry_of(text, 1000.5) == (0 if after_s is None else 1000 + after_s)


def test_an_expiry_is_the_beginning_of_a_day() -> None:
    at = expiry_of("2031-02-03", 1000.0)
    assert time.localtime(at)[:6] == (2031, 2, 3, 0, 0, 0)


@pytest.mark.parametrize(
    "text", ["", "30", "0d", "-1d", "30 d", "2031-02-30", "20310203", "2031-W06-1", "1y", "9999999d"]
)
def test_what_is_no_expiry_is_refused(text: str) -> None:
    with pytest.raises(KeysError, match="expected a duration such as 30d"):
        expiry_of(text, 1000.0)


def test_a_day_that_is_over_is_refused() -> None:
    with pytest.raises(KeysError, match="has expired already"):
        expiry_of("2001-01-01", 2e9)


def test_an_expired_key_admits_nobody_and_may_be_renewed(
    store: KeyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = Identity(name="bob", cwd_roots=("/srv",))
    key = store.new(identity, tmp_path / "bob.key", expires="1d")
    new(store)
    allowed = AllowedKeys(store, lambda line: None)
    assert allowed.read() and not allowed.read()
    principal = allowed.clients[key.public_key].principal
    assert allowed.key_of_token(key.token) == key.public_key and not allowed.is_revoked(principal, key.public_key)
    later = time.time() + DAY + 1
    monkeypatch.setattr(KeyStore, "now", staticmethod(lambda: later))
    # No file has changed.
    assert allowed.read() and not allowed.read()
    assert key.public_key not in allowed.clients and len(allowed.clients) == 1
    assert allowed.key_of_token(key.token) is None and not allowed.is_allowed(principal, key.public_key)
    assert allowed.is_revoked(principal, key.public_key) and allowed.is_revoked(principal, "")
    with pytest.raises(KeysError, match="say when the new one does"):
        store.renew("bob", tmp_path / "bob.key")
    renewed = store.renew("bob", tmp_path / "bob.key", expires="never")
    assert allowed.read() and allowed.clients[renewed.public_key].principal == principal
    assert not allowed.is_revoked(principal, renewed.public_key)


def test_the_verbs_say_when_a_key_expires(tmp_path: Path) -> None:
    run = CliRunner().invoke
    directory, file = str(tmp_path / "keys"), str(tmp_path / "bob.key")
    made = run(verbs, ["keys", "new", "bob", "--keys", directory, "-o", file, "--expires", "2031-02-03"])
    assert made.exit_code == 0, made.output
    assert "  expires on 2031-02-03 00:00" in run(verbs, ["keys", "list", "--keys", directory]).output
    refused = run(verbs, ["keys", "renew", "bob", "--keys", directory, "-o", file])
    assert refused.exit_code == 2 and "--expires 30d" in refused.output
    again = run(verbs, ["keys", "renew", "bob", "--keys", directory, "-o", file, "--expires", "soon"])
    assert again.exit_code == 2 and "'soon' is no time" in again.output
    assert run(verbs, ["keys", "renew", "bob", "--keys", directory, "-o", file, "--expires", "never"]).exit_code == 0
    assert "expires" not in run(verbs, ["keys", "list", "--keys", directory]).output
