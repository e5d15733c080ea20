"""auth.json on the disk: replaced at once, locked, kept whole while an app-server writes to it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_account_holder import NOW, auth_json, login
from test_account_process import wait_until

from codex_pool.account import auth_file
from codex_pool.account.auth_content import digest, with_tokens
from codex_pool.account.auth_file import AuthFile, LockTimeoutError, UnreadableError
from codex_pool.account.file_replacement import ChangedError
from codex_pool.account.holder import Lineage

# As codex 0.163 does (seen with strace): the file is emptied, and then written.
WRITER = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
time.sleep(0.05)
os.write(fd, sys.stdin.buffer.read())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "user" / "auth.json"
    path.parent.mkdir()
    path.write_bytes(auth_json("r1", later=[1, 2]))
    return path


@pytest.fixture
def file(path: Path, tmp_path: Path) -> AuthFile:
    """The file by a link, as in the home of a batch."""
    link = tmp_path / "auth.json"
    link.symlink_to(path)
    return AuthFile(str(link))


def write_like_codex(path: Path, content: bytes) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-S", "-E", "-c", WRITER, str(path)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert writer.stdin is not None
    writer.stdin.write(content)
    writer.stdin.close()
    return writer


def test_it_is_replaced_where_it_is_and_keeps_what_is_not_known(file: AuthFile, path: Path, tmp_path: Path) -> None:
    path.chmod(0o644)
    before = file.stamp()
    content, found = file.read()
    assert found == login("r1")
    file.write(content, login("r2").tokens, NOW)
    assert (tmp_path / "auth.json").is_symlink() and not path.is_symlink()
    assert json.loads(path.read_bytes())["later"] == [1, 2]
    assert file.read()[1] == login("r2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert file.stamp() != before
    assert os.listdir(path.parent) == ["auth.json"]


def test_its_owner_is_kept(file: AuthFile, path: Path) -> None:
    # Only root may give files away.
    owner = (12345, 54321) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, *owner)
    file.write(path.read_bytes(), login("r2").tokens, NOW)
    assert (path.stat().st_uid, path.stat().st_gid) == owner


def test_no_file_and_no_login(tmp_path: Path) -> None:
    file = AuthFile(str(tmp_path / "auth.json"))
    assert file.stamp() is None and file.read() == (b"", None)
    (tmp_path / "auth.json").write_text('{"OPENAI_API_KEY": "sk-x"}')
    assert file.read()[1] is None and file.stamp() is not None
    with pytest.raises(ValueError, match=r"auth\.json is not an auth\.json with tokens"):
        file.write(b'{"tokens": null}', {}, NOW)
    assert os.listdir(tmp_path) == ["auth.json"]


def test_a_link_to_nowhere_is_no_login(tmp_path: Path) -> None:
    (tmp_path / "auth.json").symlink_to(tmp_path / "none" / "auth.json")
    file = AuthFile(str(tmp_path / "auth.json"))
    assert file.stamp() is None
    with file.lock() as locked:
        assert locked.keep(Lineage("a", ("t",))) == locked.lineage() == Lineage("a", ("t",)), "it is in memory"


def test_a_file_that_is_just_being_written_is_read_again(file: AuthFile, path: Path) -> None:
    path.write_bytes(b"")
    timer = threading.Timer(0.03, path.write_bytes, (auth_json("r2"),))
    timer.start()
    assert file.read()[1] == login("r2")
    timer.join()


def test_the_lock_is_beside_the_file_itself_and_keeps_the_lineage(file: AuthFile, path: Path) -> None:
    lineage = Lineage().with_login(login("r1"))
    with file.lock() as locked:
        assert locked.lineage() == Lineage()
        locked.keep(lineage.with_login(login("r2")))
        locked.keep(lineage)
    lock = path.with_name("auth.json.codex-pool")
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    assert b"r1" not in lock.read_bytes()
    with AuthFile(str(path)).lock() as locked:
        assert locked.lineage() == lineage
    lock.write_bytes(b"\xff{")
    with file.lock() as locked:
        assert locked.lineage() == Lineage()


def test_two_holders_take_turns_and_none_waits_for_ever(
    file: AuthFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_file, "LOCK_LIMIT_S", 0.1)
    with (
        AuthFile(str(path)).lock(),
        pytest.raises(LockTimeoutError, match=r"has kept the lock on .* for 0\.1 s"),
        file.lock(),
    ):
        raise AssertionError("both have it")
    with file.lock():
        pass


@pytest.mark.parametrize("leases", [True, False])
def test_one_writer_at_a_time_and_with_leases_no_reader_sees_half_a_file(
    leases: bool, file: AuthFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not leases:
        monkeypatch.delattr(fcntl, "F_SETLEASE")
    file.write(path.read_bytes(), login("r2").tokens, NOW)
    torn: list[bytes] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            with path.open("rb") as opened:
                content = opened.read()
                # One that was opened before it lost its name is the writer's to empty.
                has_name = os.path.samestat(os.fstat(opened.fileno()), path.stat())
            with contextlib.suppress(ValueError):
                json.loads(content)
                continue
            if has_name:
                torn.append(content)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(3):
            with file.shield() as shield:
                writer = write_like_codex(path, auth_json("old"))
                assert shield.wait(10.0)
            assert writer.wait(10.0) == 0
    finally:
        over.set()
        reader.join()
    if leases:
        assert torn == []
        assert file.read()[1] == login("r2")
    else:
        assert file.read()[1] == login("old")


def test_a_shield_that_nobody_needs_is_taken_away(file: AuthFile, path: Path) -> None:
    with file.shield() as shield:
        assert not shield.wait(0.02)
    writer = write_like_codex(path, auth_json("r3"))
    assert writer.wait(10.0) == 0
    assert file.read()[1] == login("r3")


def test_without_leases_on_a_file_system_it_only_waits(file: AuthFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, command: int, argument: int = 0) -> int:
        raise OSError(errno.EINVAL, "no leases here")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with file.shield() as shield:
        assert not shield.wait(0.02)


# What goes wrong.


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_not_taken_for_a_log_out(file: AuthFile, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=r"auth\.json holds \d+ bytes that are not JSON"):
        file.read()
    path.unlink()
    path.mkdir()
    with pytest.raises(UnreadableError, match="cannot be read: Is a directory"):
        file.read()


KILLED = """
import os, signal, sys, time
from codex_pool.account.auth_file import AuthFile
file = AuthFile(sys.argv[1])
with file.replacement() as replacement:
    replacement.write(sys.stdin.buffer.read())
    os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
    replacement.put(lambda: True)
"""


def left_by_a_killed_holder(path: Path, refresh_token: str) -> Path:
    content = with_tokens(path.read_bytes(), login(refresh_token).tokens, NOW)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], input=content, timeout=20, check=False)
    assert done.returncode == -signal.SIGKILL
    return path.with_name("auth.json.codex-pool.next")


def test_tokens_of_a_holder_that_was_killed_before_the_rename_are_put_in_place(file: AuthFile, path: Path) -> None:
    partial = left_by_a_killed_holder(path, "r2")
    assert file.read()[1] == login("r1") and stat.S_IMODE(partial.stat().st_mode) == 0o600
    assert file.recover(digest("r1")) == login("r2")
    assert file.read()[1] == login("r2") and json.loads(path.read_bytes())["later"] == [1, 2]
    assert file.recover(digest("r1")) is None
    assert os.listdir(path.parent) == ["auth.json"]


@pytest.mark.parametrize("asked", ["r0", "r2"])
def test_tokens_of_another_exchange_are_removed(file: AuthFile, path: Path, asked: str) -> None:
    partial = left_by_a_killed_holder(path, "r2")
    assert file.recover(digest(asked)) is None
    assert not partial.exists() and file.read()[1] == login("r1")


def test_what_was_left_is_not_put_in_the_place_of_another_login_or_of_none(file: AuthFile, path: Path) -> None:
    left_by_a_killed_holder(path, "r2")
    path.write_bytes(auth_json("r1", user="b"))
    assert file.recover(digest("r1")) is None
    left_by_a_killed_holder(path, "r2")
    path.unlink()
    assert file.recover(digest("r1")) is None and not path.exists()


def test_a_log_in_and_a_log_out_while_new_tokens_are_written_stay(file: AuthFile, path: Path) -> None:
    with file.replacement() as replacement:
        replacement.write(auth_json("r2"))
        path.write_text('{"OPENAI_API_KEY": "sk-new"}')
        with pytest.raises(ChangedError):
            replacement.put(lambda: file.read()[1] == login("r1"))
    assert "sk-new" in path.read_text()
    with file.replacement() as replacement:
        replacement.write(auth_json("r2"))
        path.unlink()
        with pytest.raises(ChangedError):
            replacement.put(lambda: file.read()[1] == login("r1"))
    assert os.listdir(path.parent) == []


def test_a_log_in_while_the_file_is_shielded_is_reported(file: AuthFile, path: Path) -> None:
    with file.shield() as shield:
        writer = write_like_codex(path, b'{"OPENAI_API_KEY": "sk-new"}')
        assert shield.wait(10.0)
        assert shield.written == b'{"OPENAI_API_KEY": "sk-new"}'
    assert writer.wait(10.0) == 0
    lineage = Lineage().with_login(login("r1"))
    file.put_login(shield.written, lineage)
    assert "sk-new" in path.read_text()
    with pytest.raises(ChangedError):
        file.put_login(auth_json("r9"), lineage)


def test_a_log_out_while_the_file_is_shielded_stays(file: AuthFile, path: Path) -> None:
    with file.shield() as shield, path.open("rb") as opened:
        path.unlink()
        writer = write_like_codex(Path(f"/proc/{os.getpid()}/fd/{opened.fileno()}"), auth_json("r1"))
        assert shield.wait(10.0)
        assert writer.wait(10.0) == 0
    assert os.listdir(path.parent) == []


def test_a_file_that_cannot_be_replaced_is_written_over(
    file: AuthFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, "it is mounted by itself")

    monkeypatch.setattr(os, "replace", refuse)
    number = path.stat().st_ino
    for refresh_token in ("r2", "r" * 5000, "r4"):
        file.write(path.read_bytes(), login(refresh_token).tokens, NOW)
        assert file.read()[1] == login(refresh_token) and path.stat().st_ino == number
    assert os.listdir(path.parent) == ["auth.json"]


def test_a_lock_file_that_is_removed_is_no_lock(file: AuthFile, path: Path) -> None:
    lock = path.with_name("auth.json.codex-pool")
    order: list[str] = []

    def wait_for_it() -> None:
        with AuthFile(str(path)).lock():
            order.append("second")
            with pytest.raises(LockTimeoutError), AuthFile(str(path)).lock():
                order.append("third")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth_file, "LOCK_LIMIT_S", 0.5)
        with file.lock():
            # It waits with the file that has lost its name.
            waiting = threading.Thread(target=wait_for_it)
            waiting.start()
            wait_until(lambda: descriptors_of(lock) >= 2, "it waits")
            lock.unlink()
        waiting.join(10.0)
    assert order == ["second"] and lock.exists()


def descriptors_of(path: Path) -> int:
    found = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return found.count(str(path))
