"""The holder's process: one endpoint for refresh requests, one thread for each that is being answered.

    python -m codex_pool.account      start arguments: one JSON line on stdin, which then stays open as death pipe;
                                      whatever comes there later is answered on stdout: a sign of life
                                      stderr: log, without any token

It finishes what it has begun to ask the issuer for before it ends, for up to STOP_LIMIT_S: a refresh token that has
been used and whose successor was not stored is a lost login.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ..runtime import log, startup
from . import issuer
from .arguments import HolderArguments
from .auth_content import Login, digest, parse_login, with_tokens
from .auth_file import AuthFile, LockedFile, LockTimeoutError, UnreadableError
from .file_replacement import ChangedError, Replacement
from .holder import Answer, Ask, Holder, Lineage
from .http import RefreshRequest, RequestError, read_request, send_answer

# The file is looked at so often, and again after a refusal: codex itself may just be writing the tokens that it got.
LOOK_EVERY_S = 2.0
OUTSIDER_LIMIT_S = 2.0
CONNECTION_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 64
# How long an app-server may take to write the tokens of its answer, until the next one is answered.
WRITE_LIMIT_S = 1.0
STOP_LIMIT_S = 6.5

_log = logging.getLogger(__name__)


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
        # Time of the last wait for the lock that ran out, and its error message.
        self._not_locked: tuple[float, str] | None = None

    def answer(self, request: RefreshRequest, arrived_at: float, send: Callable[[Answer], None]) -> None:
        """Answer the refresh request of an app-server. The next one is not answered before this app-server has written
        its tokens to the file."""
        self._headers.update(request.headers)
        posted = str(request.body["refresh_token"])
        with self._one_at_a_time, self._lock(arrived_at) as locked:
            answer, ours = self._refresh(posted, request.body, arrived_at, locked)
            if answer.status != 200 or not ours:
                return send(answer)
            with self._file.shield() as shield:
                send(answer)
                shield.wait(WRITE_LIMIT_S)
            self._put_login(shield.written, locked)

    def renew(self, has_newest: Callable[[Login], bool], arrived_at: float) -> tuple[Answer, Login | None]:
        """The newest login in the file, for one who does not write to it; None if there is none.

        It is refreshed if the one who asks has it already, or if it is used up. Raises LockTimeoutError."""
        with self._one_at_a_time, self._lock(arrived_at) as locked:
            try:
                login, _ = self._read(locked)
                if login is None:
                    return issuer.failure(503, "no login"), None
                answer = Answer(200, b"")
                if has_newest(login) or not self._holder.is_fresh(login, time.monotonic(), time.time()):
                    answer, _ = self._refresh(login.refresh_token, None, arrived_at, locked)
                    login = self._read(locked)[0]
            except UnreadableError as error:
                return issuer.failure(503, str(error)), None
            return answer, login

    @contextlib.contextmanager
    def _lock(self, arrived_at: float) -> Iterator[LockedFile]:
        """The lock of the file; a request that was waiting while another one timed out on it does not wait again."""
        if self._not_locked is not None and self._not_locked[0] >= arrived_at:
            raise LockTimeoutError(self._not_locked[1])
        try:
            with self._file.lock() as locked:
                yield locked
        except LockTimeoutError as error:
            self._not_locked = time.monotonic(), str(error)
            raise

    def _put_login(self, written: bytes, locked: LockedFile) -> None:
        """Read what an app-server wrote while the file was shielded: another login, or the tokens of its answer."""
        if not written:
            return
        lineage, login = locked.lineage(), parse_login(written)
        if login is not None and lineage.has_held(login, login.refresh_token):
            return
        _log.warning("somebody has logged in while an app-server was given new tokens: this login is kept")
        self._try(lambda: self._file.put_login(written, lineage))

    def look(self) -> float:
        """Read the file if it has changed, and refresh the tokens if it is time; in how many seconds to look again."""
        with self._one_at_a_time:
            stamp = self._file.stamp()
            if stamp != self._stamp:
                self._stamp, self._login = stamp, None
                try:
                    self._login = self._file.read()[1]
                except UnreadableError as error:
                    _log.warning(f"no tokens are refreshed: {error}")
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
                        _log.info(f"refreshed the tokens ahead of their expiry: HTTP status {answer.status}")
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
        try:
            login, lineage = self._read(locked)
        except UnreadableError as error:
            if digest(posted) in locked.lineage().seen:
                # Its successor could not be stored in this file.
                _log.warning(f"no tokens are refreshed: {error}")
                return issuer.failure(503, f"no tokens are refreshed: {error}"), True
            login, lineage = None, Lineage()
        ours = login is not None and (posted == login.refresh_token or lineage.has_held(login, posted))
        decided = self._decide(posted, login, lineage, arrived_at)
        if isinstance(decided, Answer):
            return decided, ours
        if not decided.write or login is None:
            answer = issuer.ask(self._issuer_url, issuer.refresh_body(posted, request), self._headers)
            self._holder.answered(decided, answer, None, at=time.monotonic())
            return answer, ours
        try:
            with self._file.replacement() as replacement:
                answer = self._exchange(login, decided, request, lineage, locked, replacement)
        except (OSError, UnreadableError) as error:
            answer = issuer.failure(503, f"the issuer is not asked, because new tokens could not be stored: {error}")
            _log.warning(f"the issuer is not asked, because new tokens could not be stored: {error}")
            self._holder.answered(decided, answer, None, at=time.monotonic())
        if answer.permanent:
            answer = self._wait_for_outsider(posted, locked) or answer
        return answer, ours

    def _exchange(
        self,
        login: Login,
        ask: Ask,
        request: dict[str, Any] | None,
        lineage: Lineage,
        locked: LockedFile,
        replacement: Replacement,
    ) -> Answer:
        """Ask the issuer, and write its tokens. Raises UnreadableError before it is asked."""
        content, _ = self._file.read()
        locked.keep(lineage, digest(ask.refresh_token))
        answer = issuer.ask(self._issuer_url, issuer.refresh_body(ask.refresh_token, request), self._headers)
        now = time.time()
        renewed = login.renewed(answer.body, now) if answer.status == 200 else None
        if renewed is not None:
            # First of all: should this process be killed, the next one finds them.
            self._try(lambda: replacement.write(with_tokens(content, renewed.tokens, now)), put=False)
        self._holder.answered(ask, answer, renewed, at=time.monotonic(), on_demand=request is not None)
        if renewed is None:
            _log.warning(f"the issuer has refused to refresh: HTTP status {answer.status}")
            return answer
        self._login = renewed
        locked.keep(lineage.with_login(renewed))
        self._try(lambda: replacement.put(lambda: self._file.read()[1] == login))
        # The issuer may leave out what has not changed.
        return Answer(200, json.dumps(renewed.tokens).encode())

    def _decide(self, posted: str, login: Login | None, lineage: Lineage, arrived_at: float) -> Answer | Ask:
        at, now = time.monotonic(), time.time()
        return self._holder.decide(posted, login, lineage, arrived_at=arrived_at, at=at, now=now)

    def _read(self, locked: LockedFile) -> tuple[Login | None, Lineage]:
        """The login in the file, and its lineage; tokens that have been exchanged already are replaced."""
        content, found = self._file.read()
        lineage = locked.lineage()
        if found is None:
            return None, lineage
        if (asked := locked.asked) == digest(found.refresh_token) and (left := self._file.recover(asked)) is not None:
            _log.info("the tokens that a holder has left which was killed are put in place")
            content, found = self._file.read()[0], left
        login = self._holder.newest(found)
        lineage = locked.keep(lineage.with_login(found).with_login(login))
        if login is not found:
            _log.warning(
                "auth.json has been overwritten with tokens that are no longer valid: the valid ones are written again"
            )
            self._login = login
            self._try(lambda: self._file.write(content, login.tokens, time.time()))
        return login, lineage

    def _try(self, write: Callable[[], None], *, put: bool = True) -> None:
        """Write to the file, unless the user has logged out, or in again, meanwhile. `put`: it is changed by this."""
        try:
            write()
            self._stamp = self._file.stamp() if put else self._stamp
        except (ChangedError, UnreadableError) as error:
            self._stamp = None
            _log.warning(f"auth.json is left as it is: {error}")
        except (OSError, ValueError, TypeError, KeyError) as error:
            # The app-server that has asked writes them itself, and who asks later gets them from here.
            _log.warning(f"the new tokens cannot be written: {error}")

    def _wait_for_outsider(self, posted: str, locked: LockedFile) -> Answer | None:
        """The tokens of a codex that is not of a pool, and has used the refresh token a moment before."""
        deadline = time.monotonic() + OUTSIDER_LIMIT_S
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if self._file.stamp() == self._stamp:
                continue
            try:
                login, lineage = self._read(locked)
            except UnreadableError:
                continue
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
        if signals in readable and startup.asks_to_end(signals):
            break
        if 0 in readable:
            if not os.read(0, 4096):
                break
            # The supervisor may just have died.
            with contextlib.suppress(OSError):
                os.write(1, b'{"event":"pong","lost_lines":%d}\n' % log.lost())
        if listener in readable:
            try:
                connection, _ = listener.accept()
            except OSError:
                # The client has gone, or there are no descriptors left.
                time.sleep(0.01)
                continue
            try:
                threading.Thread(target=_serve_one, args=(account, connection, path), daemon=True).start()
            except RuntimeError as error:
                # An app-server that is not answered keeps its tokens, and asks again.
                _log.warning(f"a refresh request is not answered: {error}")
                connection.close()
    account.finish(STOP_LIMIT_S)


def _keep_looking(account: Account) -> None:
    while True:
        try:
            wait_s = account.look()
        except Exception as error:
            # Any unforeseen error of a disk or an issuer: app-servers still ask on their own.
            _log.warning(f"cannot look after the tokens: {type(error).__name__}: {error}")
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
            _log.warning(str(error))
            send_answer(connection, issuer.failure(503, str(error)))
        except Exception as error:
            _log.error(f"a refresh request cannot be answered: {type(error).__name__}: {error}")
            send_answer(connection, issuer.failure(500, "the holder of the tokens has failed; its log says more"))


def main() -> int:
    """Entry of the holder's process."""
    log.begin("account", *sys.argv[1:2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals = startup.signal_descriptor(signal.SIGTERM)
    startup.survive_hang_up()
    arguments = msgspec.json.decode(startup.read_line(0), type=HolderArguments)
    listener = socket.socket(fileno=arguments.listen_fd)
    account = Account(AuthFile(arguments.auth_json), arguments.issuer_url)
    serve(account, listener, arguments.path, signals)
    return 0
