"""The holder as a process: what app-servers get from its endpoint, what the issuer is asked, what is in the file."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from codex_app_server.testing.issuer import LoopbackIssuer
from codex_pool.account.auth_content import digest, parse_login, with_tokens
from codex_pool.account.holder import JUST_ISSUED_S
from codex_pool.account.issuer import ISSUER_URL, URL_VARIABLE, ask
from codex_pool.supervisor.launchers import LocalLauncher
from codex_pool.supervisor.token_holder import LONGEST_DELAY_S, AccountHolder

LIMIT_S = 20.0


@pytest.fixture
def issuer() -> Iterator[LoopbackIssuer]:
    with LoopbackIssuer() as issuer:
        yield issuer


class Pool:
    """The supervisor's part of it."""

    def __init__(self, auth_json: Path, issuer: LoopbackIssuer) -> None:
        self.path = auth_json
        self.holder = AccountHolder(str(auth_json), issuer.environ, LocalLauncher())
        self.url = urlsplit(self.holder.environ({})[URL_VARIABLE])
        self.holder.start(time.monotonic())

    def post(
        self, refresh_token: str, *, path: str = "", body: bytes | None = None, writes: bool = True
    ) -> tuple[int, dict[str, Any]]:
        """The answer to a refresh request, as codex makes it. `writes`: its tokens are written, as codex does.

        The holder waits for that, for up to a second.
        """
        connection = http.client.HTTPConnection(str(self.url.hostname), self.url.port or 0, timeout=LIMIT_S)
        request = {"client_id": "app", "grant_type": "refresh_token", "refresh_token": refresh_token}
        try:
            connection.request("POST", path or self.url.path, body or json.dumps(request), {"User-Agent": "codex-test"})
            with connection.getresponse() as response:
                status, answer = response.status, json.loads(response.read())
        finally:
            connection.close()
        if writes and status == 200:
            content = with_tokens(self.path.read_bytes(), answer, time.time())
            # Empties it, which the kernel lets wait until the holder has put a copy in its place.
            with open(self.path, "wb", buffering=0) as file:
                file.write(content)
        return status, answer

    def tokens(self) -> dict[str, str]:
        tokens: dict[str, str] = json.loads(self.path.read_bytes())["tokens"]
        return tokens

    def end(self) -> None:
        child = self.holder.child
        if child is not None:
            child.close_stdin()
            assert child.reap(LIMIT_S) is not None
        self.holder.close()


@pytest.fixture
def pool(tmp_path: Path, issuer: LoopbackIssuer) -> Iterator[Pool]:
    pool = Pool(issuer.write_auth_json(tmp_path), issuer)
    yield pool
    pool.end()


def at_once(pool: Pool, tokens: list[str]) -> list[tuple[int, dict[str, Any]]]:
    answers: list[tuple[int, dict[str, Any]]] = []
    threads = [threading.Thread(target=lambda token=token: answers.append(pool.post(token))) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    return answers


def wait_until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.01)


def test_many_at_once_are_one_request_and_all_get_what_the_file_holds(pool: Pool, issuer: LoopbackIssuer) -> None:
    issuer.answer_after_s = 0.2
    old = pool.tokens()["refresh_token"]
    answers = at_once(pool, [old] * 4)
    assert issuer.counts == {"refreshed": 1}
    for status, tokens in answers:
        assert status == 200
        assert tokens == {name: value for name, value in pool.tokens().items() if name != "account_id"}
    assert issuer.accepts(pool.tokens()["access_token"]) and pool.tokens()["refresh_token"] != old
    assert pool.tokens()["account_id"] == "account-loopback"


def test_another_login_is_passed_on_and_the_file_left_alone(pool: Pool, issuer: LoopbackIssuer) -> None:
    before = pool.path.read_bytes()
    other = issuer.tokens()["refresh_token"]
    status, tokens = pool.post(other, writes=False)
    assert status == 200 and issuer.accepts(tokens["access_token"])
    assert pool.path.read_bytes() == before
    # A sibling with the same login gets the same, for a while.
    assert pool.post(other, writes=False) == (status, tokens)
    assert issuer.counts == {"refreshed": 1}


def test_without_a_file_it_passes_on(tmp_path: Path, issuer: LoopbackIssuer) -> None:
    pool = Pool(tmp_path / "none" / "auth.json", issuer)
    try:
        status, tokens = pool.post(issuer.tokens()["refresh_token"], writes=False)
        assert status == 200 and issuer.accepts(tokens["access_token"])
        assert not pool.path.exists()
    finally:
        pool.end()


def test_errors_of_the_issuer_are_passed_on_as_they_are(pool: Pool, issuer: LoopbackIssuer) -> None:
    token = pool.tokens()["refresh_token"]
    before = pool.path.read_bytes()
    issuer.answer_next(503, {"later": True})
    issuer.answer_next(400, {"error": {"code": "refresh_token_expired"}})
    assert pool.post(token) == (503, {"later": True})
    # What is final is asked once, as codex does.
    assert pool.post(token) == pool.post(token) == (400, {"error": {"code": "refresh_token_expired"}})
    assert issuer.counts == {"scripted": 2}
    assert pool.path.read_bytes() == before
    issuer.close()
    status, answer = pool.post("another")
    assert status == 502 and "cannot be reached" in answer["error"]["message"]


def test_a_codex_that_is_not_of_a_pool_may_have_been_first(pool: Pool, issuer: LoopbackIssuer) -> None:
    token = pool.tokens()["refresh_token"]
    lock = pool.path.with_name("auth.json.codex-pool")
    wait_until(lambda: lock.exists() and digest(token) in lock.read_text(), "the holder has seen the token")
    status, tokens = issuer.refresh(token)
    assert status == 200
    content = json.loads(pool.path.read_bytes())
    content["tokens"].update(tokens)
    timer = threading.Timer(0.3, pool.path.write_text, (json.dumps(content),))
    timer.start()
    assert pool.post(token) == (200, tokens)
    timer.join()
    assert issuer.counts == {"refreshed": 1, "reused": 1}


def test_it_is_ahead_of_expiry_and_notices_a_login(tmp_path: Path, issuer: LoopbackIssuer) -> None:
    pool = Pool(tmp_path / "auth.json", issuer)
    try:
        issuer.access_lifetime_s = 302
        issuer.write_auth_json(tmp_path)
        first = pool.tokens()["refresh_token"]
        wait_until(lambda: issuer.counts["refreshed"] >= 2, "two refreshes")
        issuer.access_lifetime_s = 3600
        count = issuer.counts["refreshed"]
        wait_until(lambda: issuer.counts["refreshed"] > count, "one more")
        assert issuer.counts["reused"] == 0
        # The oldest token of this login gets the newest ones.
        count = issuer.counts["refreshed"]
        wait_until(lambda: pool.post(first)[1].get("access_token") == pool.tokens()["access_token"], "the same tokens")
        assert issuer.counts["refreshed"] == count
    finally:
        pool.end()


def test_tokens_that_an_app_server_writes_late_are_replaced(pool: Pool, issuer: LoopbackIssuer) -> None:
    old = pool.path.read_bytes()
    assert pool.post(pool.tokens()["refresh_token"])[0] == 200
    newest = pool.tokens()
    pool.path.write_bytes(old)
    wait_until(lambda: pool.tokens() == newest, "the newest tokens are written again")
    pool.path.write_bytes(old)
    status, tokens = pool.post(json.loads(old)["tokens"]["refresh_token"])
    assert status == 200 and tokens["access_token"] == newest["access_token"]
    assert issuer.counts == {"refreshed": 1}


def test_two_pools_on_one_file(pool: Pool, issuer: LoopbackIssuer, tmp_path: Path) -> None:
    link = tmp_path / "run" / "auth.json"
    link.parent.mkdir()
    link.symlink_to(pool.path)
    other = Pool(link, issuer)
    try:
        issuer.answer_after_s = 0.2
        token = pool.tokens()["refresh_token"]
        answers: list[tuple[int, dict[str, Any]]] = []
        threads = [
            threading.Thread(target=lambda which=which: answers.extend(at_once(which, [token] * 2)))
            for which in (pool, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert [status for status, _ in answers] == [200] * 4
        assert len({tokens["access_token"] for _, tokens in answers}) == 1
        assert issuer.counts == {"refreshed": 1}
        assert link.is_symlink()
    finally:
        other.end()


def test_a_new_holder_goes_on_where_a_killed_one_was(pool: Pool, issuer: LoopbackIssuer) -> None:
    first = pool.tokens()["refresh_token"]
    assert pool.post(first)[0] == 200
    assert pool.holder.child is not None
    pool.holder.child.kill()
    assert pool.holder.child.reap(LIMIT_S) == "killed by SIGKILL"
    delays = [pool.holder.died(time.monotonic()) for _ in range(12)]
    assert delays == sorted(delays) and delays[0] < 0.1 and delays[-1] == LONGEST_DELAY_S
    # Requests wait in the backlog of the socket, which the supervisor has.
    answers: list[tuple[int, dict[str, Any]]] = []
    thread = threading.Thread(target=lambda: answers.append(pool.post(first)))
    thread.start()
    pool.holder.start(time.monotonic())
    thread.join(LIMIT_S)
    status, tokens = answers[0]
    assert status == 200 and tokens["access_token"] == pool.tokens()["access_token"]
    assert issuer.counts == {"refreshed": 1}


def test_it_writes_down_what_it_has_asked_for_before_it_ends(pool: Pool, issuer: LoopbackIssuer) -> None:
    issuer.answer_after_s = 0.5
    old = pool.tokens()["refresh_token"]
    thread = threading.Thread(target=lambda: pool.post(old))
    thread.start()
    wait_until(lambda: issuer.asked == 1, "the issuer is asked")
    assert pool.holder.child is not None
    pool.holder.child.close_stdin()
    thread.join(LIMIT_S)
    assert pool.holder.child.reap(LIMIT_S) is not None
    assert pool.tokens()["refresh_token"] != old and issuer.accepts(pool.tokens()["access_token"])


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/oauth/token", None, 404),
        ("", b"{}", 400),
        ("", b'{"grant_type": "refresh_token"}', 400),
        ("", b'{"grant_type": "authorization_code", "refresh_token": "r"}', 400),
        ("", b"[", 400),
        ("", b"x" * 70_000, 413),
        ("/" + "x" * 20_000, None, 431),
    ],
)
def test_what_is_no_refresh_request_goes_nowhere(
    path: str, body: bytes | None, status: int, pool: Pool, issuer: LoopbackIssuer
) -> None:
    try:
        assert pool.post("r", path=path, body=body)[0] == status
    except (ConnectionError, http.client.HTTPException):
        # It is refused before all of it has been sent.
        assert status in (413, 431)
    assert issuer.asked == 0


def test_connections_that_say_nothing_hold_nobody_up(pool: Pool, issuer: LoopbackIssuer) -> None:
    silent = [socket.create_connection((pool.url.hostname, pool.url.port)) for _ in range(20)]
    try:
        silent[0].sendall(b"POST / HTTP/1.1\r\n")
        silent[1].close()
        assert pool.post(pool.tokens()["refresh_token"])[0] == 200
    finally:
        for connection in silent:
            connection.close()


def test_no_token_is_logged_and_nothing_is_on_the_command_line(
    tmp_path: Path, issuer: LoopbackIssuer, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = Pool(issuer.write_auth_json(tmp_path), issuer)
    old = pool.tokens()
    assert pool.holder.child is not None
    pid = pool.holder.child.pid
    assert pool.post(old["refresh_token"])[0] == 200
    issuer.answer_next(401, {"error": {"code": "refresh_token_reused"}})
    pool.post(pool.tokens()["refresh_token"])
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    secret = pool.url.path.split("/")[1]
    pool.end()
    said = capfd.readouterr().err
    for hidden in (*old.values(), *pool.tokens().values(), secret):
        assert hidden == "account-loopback" or (hidden not in said and hidden.encode() not in command)
    assert "rt-" not in said


def test_a_pool_in_a_tool_of_another_pool_uses_the_holder_of_that(tmp_path: Path, pool: Pool) -> None:
    outer = pool.holder.environ({})
    inner = AccountHolder(str(tmp_path / "auth.json"), outer, LocalLauncher())
    assert inner.environ({}) == outer
    assert inner.due > time.monotonic() + 1e9
    inner.close()


def test_a_home_without_a_chatgpt_login_is_left_as_it_is(tmp_path: Path, issuer: LoopbackIssuer) -> None:
    path = tmp_path / "auth.json"
    path.write_text('{"OPENAI_API_KEY": "sk-x"}')
    pool = Pool(path, issuer)
    try:
        assert pool.post("r", path="/nothing")[0] == 404
    finally:
        pool.end()
    assert os.listdir(tmp_path) == ["auth.json"]


def test_the_issuer_is_the_users_own_or_codexs(tmp_path: Path, issuer: LoopbackIssuer) -> None:
    for environ, url in (({}, ISSUER_URL), (issuer.environ, issuer.environ[URL_VARIABLE])):
        holder = AccountHolder(str(tmp_path / "auth.json"), environ, LocalLauncher())
        assert holder.issuer_url == url
        holder.close()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {}),
        ({"HTTPS_PROXY": "http://p"}, {}),
        ({"HTTP_PROXY": "http://p"}, {"NO_PROXY": "127.0.0.1"}),
        ({"all_proxy": "http://p", "no_proxy": "corp"}, {"no_proxy": "corp,127.0.0.1"}),
        (
            {"http_proxy": "http://p", "no_proxy": "a", "NO_PROXY": ""},
            {"no_proxy": "a,127.0.0.1", "NO_PROXY": "127.0.0.1"},
        ),
    ],
)
def test_a_proxy_is_not_between_app_servers_and_the_holder(
    environ: dict[str, str], expected: dict[str, str], tmp_path: Path
) -> None:
    holder = AccountHolder(str(tmp_path / "auth.json"), {}, LocalLauncher())
    try:
        found = holder.environ(environ)
        assert found.pop(URL_VARIABLE).startswith("http://127.0.0.1:")
        assert found == expected
    finally:
        holder.close()


def test_a_proxy_is_used_to_reach_the_issuer(monkeypatch: pytest.MonkeyPatch, issuer: LoopbackIssuer) -> None:
    # The issuer in the place of a proxy: it is asked for the whole URL.
    monkeypatch.setenv("http_proxy", issuer.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert ask("http://issuer.invalid/oauth/token", b"{}", {}).status == 404


def test_a_redirect_is_not_followed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen: list[bytes] = []

        def redirect() -> None:
            connection, _ = server.accept()
            with connection:
                seen.append(connection.recv(65536))
                text = b"HTTP/1.1 307 -\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 2\r\n\r\n{}"
                connection.sendall(text)

        thread = threading.Thread(target=redirect)
        thread.start()
        assert ask(f"http://127.0.0.1:{server.getsockname()[1]}/", b"{}", {}).status == 307
        thread.join(LIMIT_S)
        assert select.select([server], [], [], 0.05)[0] == []


def test_it_is_small_until_it_has_to_ask(pool: Pool) -> None:
    assert pool.holder.child is not None
    # Something is answered: it is up.
    pool.post("r", path="/nothing")
    maps = Path(f"/proc/{pool.holder.child.pid}/maps").read_text()
    assert "_ssl" not in maps and "_asyncio" not in maps and os.path.exists(f"/proc/{pool.holder.child.pid}")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"access_token": ""}', b'{"access_token": 1, "refresh_token": "r"}']
)
def test_a_grant_without_tokens_is_a_failure_that_may_pass(pool: Pool, issuer: LoopbackIssuer, body: bytes) -> None:
    before = pool.path.read_bytes()
    token = pool.tokens()["refresh_token"]
    issuer.answer_next(200, body)
    status, answer = pool.post(token)
    assert (status, "without an access token" in answer["error"]["message"]) == (502, True)
    assert pool.path.read_bytes() == before
    assert pool.post(token)[0] == 200, "it is not remembered"


def test_tokens_that_codex_could_not_read_again_stay_out_of_the_file(pool: Pool, issuer: LoopbackIssuer) -> None:
    before = pool.tokens()
    fresh = issuer.tokens()
    answer = {"access_token": fresh["access_token"], "refresh_token": "", "id_token": "no JWT"}
    issuer.answer_next(200, answer)
    status, given = pool.post(before["refresh_token"])
    expected = {**before, "access_token": fresh["access_token"]}
    assert pool.tokens() == expected
    assert (status, {**given, "account_id": before["account_id"]}) == (200, expected)


def test_an_issuer_without_tokens_is_not_asked_all_the_time(
    tmp_path: Path, issuer: LoopbackIssuer, capfd: pytest.CaptureFixture[str]
) -> None:
    issuer.access_lifetime_s = 301
    issuer.answer_next(200, b"<html>", count=100)
    pool = Pool(issuer.write_auth_json(tmp_path), issuer)
    try:
        wait_until(lambda: issuer.counts["scripted"] >= 2, "it is asked again")
    finally:
        pool.end()
    assert capfd.readouterr().err.count("ahead of their expiry") <= 3


def test_an_issuer_that_sends_byte_by_byte_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                while not over.wait(0.05):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        answer = ask(f"http://127.0.0.1:{server.getsockname()[1]}/", b"{}", {}, limit_s=0.5)
        over.set()
        thread.join(LIMIT_S)
    assert answer.status == 504 and time.monotonic() - began < 5


def test_the_next_holder_finds_the_tokens_that_a_killed_one_has_left(tmp_path: Path, issuer: LoopbackIssuer) -> None:
    path = issuer.write_auth_json(tmp_path)
    before = path.read_bytes()
    token = json.loads(before)["tokens"]["refresh_token"]
    # It has asked the issuer, and written the answer beside the file.
    tokens = issuer.refresh(token)[1]
    path.with_name("auth.json.codex-pool.next").write_bytes(with_tokens(before, tokens, time.time()) + b"  ")
    account = parse_login(before)
    assert account is not None
    record = {"account": account.account, "seen": [digest(token)], "asked": digest(token)}
    path.with_name("auth.json.codex-pool").write_text(json.dumps(record))
    pool = Pool(path, issuer)
    try:
        assert pool.post(token)[1]["access_token"] == tokens["access_token"]
        assert pool.tokens()["refresh_token"] == tokens["refresh_token"]
    finally:
        pool.end()
    assert issuer.counts == {"refreshed": 1}
    assert sorted(os.listdir(tmp_path)) == ["auth.json", "auth.json.codex-pool"]


@pytest.mark.parametrize("content", [b"", b"{half"])
def test_a_token_whose_successor_could_not_be_stored_is_not_used(
    pool: Pool, issuer: LoopbackIssuer, content: bytes
) -> None:
    before, token = pool.path.read_bytes(), pool.tokens()["refresh_token"]
    lock = pool.path.with_name("auth.json.codex-pool")
    wait_until(lambda: lock.exists() and digest(token) in lock.read_text(), "the holder has seen the token")
    pool.path.write_bytes(content)
    status, answer = pool.post(token)
    assert status == 503 and "not JSON" in answer["error"]["message"] and issuer.asked == 0
    pool.path.write_bytes(before)
    assert pool.post(token)[0] == 200
    # In the place of the file with its successor there is something that cannot be removed.
    blocked = pool.path.with_name("auth.json.codex-pool.next")
    wait_until(lambda: not blocked.exists(), "the copy for the app-server is not needed any more")
    blocked.mkdir()
    answered_at = pool.path.stat().st_mtime
    token = pool.tokens()["refresh_token"]
    wait_until(lambda: time.time() > answered_at + JUST_ISSUED_S, "the tokens have not just been issued")
    status, answer = pool.post(token)
    assert status == 503 and "could not be stored" in answer["error"]["message"] and issuer.asked == 1
    blocked.rmdir()
    assert pool.post(token)[0] == 200


def test_a_log_in_while_an_app_server_is_given_new_tokens_is_not_lost(pool: Pool, issuer: LoopbackIssuer) -> None:
    key = b'{"OPENAI_API_KEY": "sk-new"}'
    assert pool.post(pool.tokens()["refresh_token"], writes=False)[0] == 200
    # As codex writes; the kernel lets it wait until the holder has put a copy in the place of the file.
    with open(pool.path, "wb", buffering=0) as file:
        file.write(key)
    wait_until(lambda: pool.path.read_bytes() == key, "the log-in is in the file")


def test_a_log_out_while_the_issuer_is_asked_stays(pool: Pool, issuer: LoopbackIssuer) -> None:
    issuer.answer_after_s = 0.3
    token = pool.tokens()["refresh_token"]
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(pool.post(token, writes=False)[0]))
    thread.start()
    wait_until(lambda: issuer.asked == 1, "the issuer is asked")
    pool.path.unlink()
    thread.join(LIMIT_S)
    assert answers == [200] and not pool.path.exists()
    assert not pool.path.with_name("auth.json.codex-pool.next").exists()
