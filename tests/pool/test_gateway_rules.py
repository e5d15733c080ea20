"""Decisions of the gateway's listeners without a connection: addresses, requests, bounds and options."""

from __future__ import annotations

import os
import re
import socket
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from codex_app_server import AppServerConfig, InvalidInputError
from codex_pool.daemon.config import DaemonConfig
from codex_pool.gateway.listeners import addresses, admission, configuration, limits, socket_files
from codex_pool.gateway.listeners.admission import Rules
from codex_pool.gateway.listeners.socket_files import ControlSocket, SocketFile
from codex_pool.gateway.listeners.unsent import Budget, Unsent, header
from codex_pool.gateway.sessions import ListenerConfig
from codex_pool.options import PoolOptions
from codex_pool.protocol.endpoints import EndpointError
from codex_pool.supervisor.spawn import arguments_of

TCP = Rules(frozenset({"pool.example"}), needs_token=True)
HANDSHAKE = {
    "Host": "localhost:7610",
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "WebSocket",
    "Sec-WebSocket-Version": "13",
    "Authorization": "Bearer x",
}


@pytest.mark.parametrize(
    ("host", "is_known"),
    [
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("127.0.0.1:7610", True),
        ("127.9.9.9", True),
        ("[::1]:7610", True),
        ("::1", True),
        ("pool.example", True),
        ("Pool.Example:7610", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("10.0.0.1", False),
        ("", False),
        (None, False),
        ("[", False),
        ("localhost:1:2", False),
    ],
)
def test_hosts(host: str | None, is_known: bool) -> None:
    assert addresses.is_known_host(host, TCP.hosts or frozenset()) is is_known


@pytest.mark.parametrize("text", ["", "7610", ":7610", "localhost", "localhost:0", "localhost:65536", "::1:1", "a b:1"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(EndpointError, match="expected HOST:PORT"):
        addresses.parse(text)


def test_addresses() -> None:
    assert addresses.parse("[::1]:7610") == ("::1", 7610) and addresses.parse("pool.example:1") == ("pool.example", 1)
    assert addresses.split_names(" A.example, 10.0.0.7,::1 ,") == ("a.example", "10.0.0.7", "::1")
    with pytest.raises(EndpointError, match="without ports"):
        addresses.split_names("pool.example:7610")
    with pytest.raises(EndpointError, match="no host 'xxx"):
        addresses.resolve(addresses.parse("x" * 64 + ":1"))


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, None),
        ({"Origin": "http://localhost"}, 403),
        ({"Origin": ""}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": None}, 403),
        ({"Authorization": None}, 401),
        ({"Authorization": "Basic x"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Connection": None}, 400),
        ({"Upgrade": "h2c"}, 400),
        ({"Sec-WebSocket-Version": "8"}, 400),
    ],
)
def test_handshakes(change: dict[str, str | None], status: int | None) -> None:
    given = {**HANDSHAKE, **change}
    headers = CIMultiDict({name.lower(): value for name, value in given.items() if value is not None})
    answer = admission.answer_to("GET", "/rpc", headers, TCP)
    assert (None if answer is None else answer.status) == status
    if answer is not None:
        assert answer.reason
    # A page learns nothing by other requests either, and needs no token for probes.
    for path in admission.PROBES:
        probe = admission.answer_to("GET", path, headers, TCP)
        assert probe is not None and probe.status == (403 if status == 403 else 200)
    post = admission.answer_to("POST", "/", headers, TCP)
    assert post is not None and post.status == (403 if status == 403 else 405)


def test_over_a_unix_socket_host_and_origin_mean_nothing() -> None:
    headers = CIMultiDict({**HANDSHAKE, "Host": "evil.example", "Origin": "x"})
    del headers["Authorization"]
    assert admission.answer_to("GET", "/", headers, admission.UNIX) is None
    assert admission.answer_to("GET", "/readyz", headers, admission.UNIX) == (HTTPStatus.OK, "", "")


def test_tokens_in_headers() -> None:
    assert admission.token_of("Bearer  abc ") == admission.token_of("bearer abc") == "abc"
    assert [admission.token_of(text) for text in (None, "", "Bearer", "Basic abc", "Bearerabc")] == [None] * 5


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536, 2**32])
def test_frames_have_the_length_of_their_message(size: int) -> None:
    head = header(size)
    assert head[0] == 0x81
    if head[1] < 126:
        assert (head[1], len(head)) == (size, 2)
    else:
        assert int.from_bytes(head[2:], "big") == size and len(head) == {126: 4, 127: 10}[head[1]]


def test_what_is_unsent_is_counted_to_the_last_byte() -> None:
    budget = Budget(1000)
    one, other = Unsent(budget), Unsent(budget)
    one.add([b"x" * 100, b"y" * 200])
    other.add([b"z" * 300])
    assert (one.bytes, one.messages, other.bytes) == (102 + 204, 2, 304) and budget.bytes == 610
    assert one.take() == header(100) + b"x" * 100 + header(200) + b"y" * 200
    assert not one and one.bytes == 0 and budget.bytes == 304
    one.buffered(250)
    assert one.bytes == 250 and budget.bytes == 554 and not budget.is_exceeded
    other.add([b"z" * 500])
    assert budget.is_exceeded
    other.clear()
    assert budget.bytes == 250
    one.buffered(0)
    one.clear()
    assert budget.bytes == 0


def test_writes_are_bounded_and_a_long_message_is_one() -> None:
    unsent = Unsent(Budget())
    unsent.add([b"a" * 40_000, b"b" * 40_000, b"c" * 1_000_000, b"d"])
    sizes = []
    while unsent:
        sizes.append(len(unsent.take()))
    assert sizes == [40_004, 40_004, 1_000_010, 3]


def test_bounds_of_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    unsent = Unsent(Budget())
    unsent.add([b""] * limits.UNSENT_MESSAGES)
    assert not unsent.is_too_much
    unsent.add([b""])
    assert unsent.is_too_much
    unsent.clear()
    monkeypatch.setattr(limits, "UNSENT_BYTES", 1000)
    unsent.add([b"x" * 996])
    assert not unsent.is_too_much
    unsent.add([b"x"])
    assert unsent.is_too_much


# Socket files


def test_a_socket_is_private_and_removed_by_its_owner_alone(tmp_path: Path, runtime_directory: Path) -> None:
    path = runtime_directory / "below" / "a.sock"
    file = SocketFile(path)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(path.parent) == ["a.sock"]
    with pytest.raises(EndpointError, match=f"in use: process {os.getpid()} listens there"):
        SocketFile(path)
    assert file.is_there
    path.unlink()
    assert not file.is_there and file.is_free
    other = SocketFile(path)
    file.close()
    assert other.is_there
    other.close()
    assert not path.exists()


def test_a_dead_socket_is_replaced_and_a_file_is_not(runtime_directory: Path) -> None:
    path = runtime_directory / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    file = SocketFile(path)
    assert file.is_there
    file.close()
    path.write_text("precious")
    with pytest.raises(EndpointError, match="not a socket"):
        SocketFile(path)
    assert path.read_text() == "precious"
    path.unlink()


def test_directories_are_checked_and_left_as_they_are(tmp_path: Path) -> None:
    for mode, private, shared in ((0o700, "", ""), (0o750, "mode 0750", ""), (0o1777, "mode 1777", "mode 1777")):
        path = tmp_path / f"{mode:o}"
        path.mkdir()
        path.chmod(mode)
        for check, problem in ((socket_files.check_private, private), (socket_files.check_shared, shared)):
            if problem:
                with pytest.raises(EndpointError, match=problem):
                    check(path)
            else:
                check(path)
        assert path.stat().st_mode & 0o7777 == mode
    with pytest.raises(EndpointError, match="install -d"):
        socket_files.check_shared(tmp_path / "none")
    (tmp_path / "link").symlink_to(tmp_path / "700")
    with pytest.raises(EndpointError, match="not a directory"):
        socket_files.check_private(tmp_path / "link")


def test_a_socket_for_a_group(tmp_path: Path, runtime_directory: Path) -> None:
    path = runtime_directory / "a.sock"
    file = SocketFile(path, os.getgid())
    status = path.stat()
    assert status.st_mode & 0o777 == 0o660 and status.st_gid == os.getgid()
    file.close()


def test_the_control_socket_is_a_link_that_replaces_only_a_dead_one(tmp_path: Path, runtime_directory: Path) -> None:
    path = tmp_path / "home" / configuration.CONTROL_SOCKET
    below = runtime_directory
    path.parent.mkdir(mode=0o700, parents=True)
    path.symlink_to(runtime_directory / "gone")
    control = ControlSocket(path, below=below)
    target = socket_files.target_of(path, below)
    assert os.readlink(path) == str(target) and control.is_there
    assert target.stat().st_mode & 0o777 == 0o600 and target.parent.stat().st_mode & 0o777 == 0o700
    assert re.fullmatch(r"codex-daemon-\d+/[0-9a-f]{64}", str(target.relative_to(below)))
    assert sorted(os.listdir(path.parent)) == ["app-server-control.sock", "app-server-startup.lock"]
    with pytest.raises(EndpointError, match=f"in use: process {os.getpid()} listens there"):
        ControlSocket(path, below=below)
    # The link alone removed: the socket behind it still counts.
    path.unlink()
    assert not control.is_there
    with pytest.raises(EndpointError, match="in use"):
        ControlSocket(path, below=below)
    control.close()
    with pytest.raises(EndpointError, match="not a socket"):
        path.write_text("precious")
        ControlSocket(path, below=below)
    assert path.read_text() == "precious" and not target.exists()


def test_a_start_in_progress_is_waited_for_only_so_long(tmp_path: Path, runtime_directory: Path) -> None:
    import fcntl

    path = tmp_path / "home" / "c.sock"
    path.parent.mkdir(mode=0o700)
    with open(path.with_name(socket_files.STARTUP_LOCK), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EndpointError, match="is starting there"):
            ControlSocket(path, below=runtime_directory, lock_limit_s=0.05)


# Options


def config_of(tmp_path: Path, **given: Any) -> ListenerConfig | None:
    return configuration.listener_config(PoolOptions(**given), tmp_path / "home")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"listen_group": "root"}, "listen_group is about listen_unix"),
        ({"insecure_no_auth": True}, "insecure_no_auth is about listen_ws"),
        ({"tls_cert": "c", "control_socket": True}, "tls_cert is about listen_ws"),
        ({"allow_host": "x"}, "allow_host is about listen_ws"),
        ({"listen_ws": "127.0.0.1"}, "expected HOST:PORT"),
        ({"listen_ws": "0.0.0.0:7610"}, "tokens need TLS"),
        ({"listen_ws": "[::]:7610"}, "tokens need TLS"),
        ({"listen_ws": "0.0.0.0:7610", "insecure_no_auth": True}, "not a loopback address"),
        ({"listen_ws": "127.0.0.1:7610", "tls_cert": "c"}, "belong together"),
        ({"listen_ws": "127.0.0.1:7610", "tls_key": "c"}, "belong together"),
        ({"listen_ws": "127.0.0.1:7610", "tls_cert": "/none", "tls_key": "/none"}, "cannot be read"),
        ({"listen_ws": "127.0.0.1:7610", "tls_cert": __file__, "tls_key": __file__}, "cannot be used"),
        ({"listen_ws": "127.0.0.1:7610", "allow_host": "http://x"}, "allow_host has 'http://x'"),
        ({"listen_unix": "/" + "x" * 108}, "bytes long"),
        ({"listen_unix": __file__}, "not a socket"),
        ({"listen_unix": "/tmp/a.sock"}, "belongs to|mode 1777"),
        ({"listen_unix": "/tmp/a.sock", "listen_group": "root"}, "mode 1777"),
        ({"listen_unix": "/none/a.sock", "listen_group": "no-such-group"}, "no group of this machine"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(EndpointError, match=said):
        config_of(tmp_path, **given)


def test_options_reach_the_listeners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir(mode=0o700)
    assert config_of(tmp_path) is None
    given = {"listen_unix": "below/a.sock", "listen_ws": "localhost:7610", "allow_host": "A,b", "control_socket": True}
    assert config_of(tmp_path, **given, keys="/keys") == ListenerConfig(
        unix=f"{tmp_path}/below/a.sock",
        ws="localhost:7610",
        allow_hosts=("a", "b"),
        control_socket=f"{tmp_path}/home/app-server-control/app-server-control.sock",
        keys="/keys",
    )
    # Without others to let in there is nothing to read of keys.
    only = config_of(tmp_path, listen_ws="127.0.0.1:7610", insecure_no_auth=True, keys="/keys")
    assert only == ListenerConfig(ws="127.0.0.1:7610", insecure_no_auth=True)


def test_without_aiohttp_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EndpointError, match=re.escape("pip install '.[gateway]'")):
        config_of(tmp_path, control_socket=True)
    assert config_of(tmp_path) is None


@pytest.mark.parametrize(
    ("given", "lets_in"),
    [
        ({"listen_ws": "127.0.0.1:7610"}, True),
        ({"listen_ws": "127.0.0.1:7610", "insecure_no_auth": True}, False),
        ({"control_socket": True}, False),
    ],
)
def test_keys_are_read_where_they_let_others_in(tmp_path: Path, given: dict[str, Any], lets_in: bool) -> None:
    options = PoolOptions(**given, keys=str(tmp_path / "keys"))
    assert options.lets_keys_in is lets_in
    endpoint = f"ipc://{tmp_path}/s.sock"
    sent = arguments_of(options, AppServerConfig(), endpoint=endpoint, argv=["codex"], cwd=tmp_path, home=tmp_path)
    assert sent.listeners is not None
    assert sent.options.keys == (str(tmp_path / "keys") if lets_in else None)
    assert sent.listeners.keys == (sent.options.keys or "")
    assert (tmp_path / "keys").exists() is lets_in


@pytest.mark.parametrize(
    ("given", "overrides", "home", "said"),
    [
        ({"listen": "tcp://127.0.0.1:7601"}, (), None, "--home user"),
        ({"listen_ws": "127.0.0.1:7610"}, (), None, "--home user"),
        ({}, (), "own", "--home user"),
        ({}, ("features.code_mode_host=false",), None, "-c features.code_mode_host=false"),
    ],
)
def test_a_control_socket_that_codex_would_not_use(
    given: dict[str, Any], overrides: tuple[str, ...], home: str | None, said: str
) -> None:
    daemon = DaemonConfig(PoolOptions(control_socket=True, **given), overrides, home=home)
    with pytest.raises(InvalidInputError, match=said), daemon.pool():
        pass
