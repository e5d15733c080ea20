"""The holder's process: one endpoint for refresh requests, one thread for each that is being answered.

    python -m codex_pool.account      start arguments: one JSON line on stdin, which then stays open as death pipe
                                      stderr: log, without any token

It finishes what it has begun to ask the issuer for before it ends, for up to STOP_LIMIT_S: a refresh token that has
been used and whose successor nobody has written down is a login lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from codex_pool import start
from codex_pool.account import issuer
from codex_pool.account.arguments import HolderArguments
from codex_pool.account.auth_file import AuthFile, LockedFile, LockTimeoutError
from codex_pool.account.connection import RefreshRequest, RequestError, read_request, send_answer
from codex_pool.account.holder import Answer, Ask, Holder, Lineage
from codex_pool.account.login import Login

# The file is looked at so often, and again after a refusal: codex itself may just be writing the tokens that it got.
LOOK_EVERY_S = 2.0
OUTSIDER_LIMIT_S = 2.0
CONNECTION_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 64
# How long an app-server may take to write the tokens of its answer, until the next one is answered.
WRITE_LIMIT_S = 1.0
STOP_LIMIT_S = 7.0


class Account:
    """One login and its issuer; the decisions are those of Holder. Methods may be called from any thread."""

    def __init__(self, file: AuthFile, issuer_url: str) -> None:
        self._file = file
        self._issuer_url = issuer_url
        self._holder = Holder()
        self._one_at_a_time = threading.Lock()
        self._jitter = random.random()
        # What app-servers introduce themselves with to the issuer.
        self._headers = {"User-Agent": "codex-pool"}
        self._stamp: tuple[int, ...] | None = None
        self._login: Login | None = None

    def answer(self, request: RefreshRequest, arrived_at: float, send: Callable[[Answer], None]) -> None:
        """Answer the refresh request of an app-server. The next one is not answered before this app-server has written
        its tokens to the file."""
        self._headers.update(request.headers)
        with self._one_at_a_time, self._file.lock() as locked:
            answer, ours = self._refresh(str(request.body["refresh_token"]), request.body, arrived_at, locked)
            if answer.status != 200 or not ours:
                return send(answer)
            with self._file.shield() as shield:
                send(answer)
                shield.wait(WRITE_LIMIT_S)

    def look(self) -> float:
        """Read the file if it has changed, and refresh the tokens if it is time; in how many seconds to look again."""
        with self._one_at_a_time:
            stamp = self._file.stamp()
            if stamp != self._stamp:
                self._stamp, self._login = stamp, self._file.read()[1]
                if self._login is not None:
                    with self._file.lock() as locked:
                        self._stamp = self._file.stamp()
                        self._login, _ = self._read(locked)
            if self._login is not None and self._due_in_s() == 0.0:
                with self._file.lock() as locked:
                    # Another pool may have been first.
                    self._login, _ = self._read(locked)
                    if self._login is not None and self._due_in_s() == 0.0:
                        answer, _ = self._refresh(self._login.refresh_token, None, time.monotonic(), locked)
                        log(f"refreshed the tokens ahead of their expiry: HTTP status {answer.status}")
            due_s = self._due_in_s()
            return LOOK_EVERY_S if due_s is None else min(LOOK_EVERY_S, max(0.01, due_s))

    def finish(self, limit_s: float) -> None:
        """Wait until nothing is under way any more; nothing is begun afterwards."""
        self._one_at_a_time.acquire(timeout=limit_s)

    def _due_in_s(self) -> float | None:
        if self._login is None:
            return None
        return self._holder.due_in_s(self._login, at=time.monotonic(), now=time.time(), jitter=self._jitter)

    def _refresh(
        self, posted: str, request: dict[str, Any] | None, arrived_at: float, locked: LockedFile
    ) -> tuple[Answer, bool]:
        """The answer to a refresh request with this token, and whether it is of the login in the file."""
        login, lineage = self._read(locked)
        ours = login is not None and (posted == login.refresh_token or lineage.has_held(login, posted))
        decided = self._decide(posted, login, lineage, arrived_at)
        if isinstance(decided, Answer):
            return decided, ours
        body = issuer.refresh_body(decided.refresh_token, request)
        answer = issuer.ask(self._issuer_url, body, self._headers)
        now = time.time()
        renewed = login.renewed(answer.body, now) if decided.write and login and answer.status == 200 else None
        self._holder.answered(decided, answer, renewed, at=time.monotonic(), on_demand=request is not None)
        if login is not None and renewed is not None:
            self._write(login, renewed, lineage, locked)
            # The issuer may leave out what has not changed.
            answer = Answer(200, json.dumps(renewed.tokens).encode())
        elif answer.status != 200:
            log(f"the issuer has refused to refresh: HTTP status {answer.status}")
            if decided.write and answer.permanent:
                answer = self._wait_for_outsider(posted, locked) or answer
        return answer, ours

    def _decide(self, posted: str, login: Login | None, lineage: Lineage, arrived_at: float) -> Answer | Ask:
        at, now = time.monotonic(), time.time()
        return self._holder.decide(posted, login, lineage, arrived_at=arrived_at, at=at, now=now)

    def _read(self, locked: LockedFile) -> tuple[Login | None, Lineage]:
        """The login in the file, and its lineage; tokens that have been exchanged already are replaced."""
        _, found = self._file.read()
        lineage = locked.lineage()
        if found is None:
            return None, lineage
        login = self._holder.newest(found)
        lineage = locked.keep(lineage.with_login(found).with_login(login))
        if login is not found:
            log("auth.json has been overwritten with tokens that are no longer valid: the valid ones are written again")
            self._write(found, login, lineage, locked)
        return login, lineage

    def _write(self, before: Login, login: Login, lineage: Lineage, locked: LockedFile) -> None:
        """Write what has become of the login `before`, unless somebody has logged out, or in again, meanwhile."""
        content, found = self._file.read()
        if found is None or (found.account, found.refresh_token) != (before.account, before.refresh_token):
            log("auth.json has been changed while its tokens were refreshed: it is left as it is")
            return
        self._login = login
        locked.keep(lineage.with_login(login))
        try:
            self._file.write(content, login.tokens, time.time())
            self._stamp = self._file.stamp()
        except (OSError, ValueError) as error:
            # The app-server that has asked writes them itself, and who asks later gets them from here.
            log(f"the new tokens cannot be written: {error}")

    def _wait_for_outsider(self, posted: str, locked: LockedFile) -> Answer | None:
        """The tokens of a codex that is not of a pool, and has used the refresh token a moment before."""
        deadline = time.monotonic() + OUTSIDER_LIMIT_S
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if self._file.stamp() == self._stamp:
                continue
            login, lineage = self._read(locked)
            decided = self._decide(posted, login, lineage, time.monotonic())
            if isinstance(decided, Answer) and decided.status == 200:
                return decided
        return None


def serve(account: Account, listener: socket.socket, path: str, signals: int) -> None:
    """Serve until the death pipe ends or a signal comes, and what is under way is finished."""
    listener.setblocking(False)
    threading.Thread(target=_keep_looking, args=(account,), name="look", daemon=True).start()
    others = threading.active_count()
    while True:
        full = threading.active_count() - others >= MAX_CONNECTIONS
        sources: list[Any] = [0, signals] if full else [0, signals, listener]
        readable, _, _ = select.select(sources, [], [], 0.05 if full else None)
        if signals in readable or (0 in readable and not os.read(0, 4096)):
            break
        if listener in readable:
            try:
                connection, _ = listener.accept()
            except OSError:
                # The client has gone, or there are no descriptors left.
                time.sleep(0.01)
                continue
            threading.Thread(target=_serve_one, args=(account, connection, path), daemon=True).start()
    account.finish(STOP_LIMIT_S)


def _keep_looking(account: Account) -> None:
    while True:
        try:
            wait_s = account.look()
        except Exception as error:
            # A disk or an issuer that does what nobody thought of: app-servers still ask by themselves.
            log(f"cannot look after the tokens: {type(error).__name__}: {error}")
            wait_s = LOOK_EVERY_S
        time.sleep(wait_s)


def _serve_one(account: Account, connection: socket.socket, path: str) -> None:
    with connection:
        arrived_at = time.monotonic()
        try:
            request = read_request(connection, path, timeout_s=CONNECTION_TIMEOUT_S)
            account.answer(request, arrived_at, lambda answer: send_answer(connection, answer))
        except RequestError as error:
            send_answer(connection, issuer.failure(error.status, str(error)))
        except LockTimeoutError as error:
            log(str(error))
            send_answer(connection, issuer.failure(503, str(error)))
        except Exception as error:
            log(f"a refresh request cannot be answered: {type(error).__name__}: {error}")
            send_answer(connection, issuer.failure(500, "the holder of the tokens has failed; its log says more"))


def log(message: str) -> None:
    with contextlib.suppress(OSError):
        print(f"account: {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Entry of the holder's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals = start.signal_descriptor(signal.SIGTERM)
    arguments = msgspec.json.decode(start.read_line(0), type=HolderArguments)
    listener = socket.socket(fileno=arguments.listen_fd)
    account = Account(AuthFile(arguments.auth_json), arguments.issuer_url)
    serve(account, listener, arguments.path, signals)
    return 0
