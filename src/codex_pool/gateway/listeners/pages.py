"""Probes and metrics over HTTP: /healthz, /readyz and /metrics.

    /healthz    200 while gateway and broker answer, else 503
    /readyz     200 while a worker can take a turn, else 503, with the reason
    /metrics    the metrics of the pool, for requests with the token; 503 while they are not known

Probes are answered from a report of the broker that is up to PROBE_AGE_S old, so that they cost no more than that;
nothing is done while nobody asks. All that ask at once wait for one report.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import stat
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web

from ...auth import tokens
from ...protocol.endpoints import EndpointError
from ...protocol.pool_report import PoolReport
from .admission import Answer
from .connection import SERVER

ASK_LIMIT_S = 2.0
PROBE_AGE_S = 1.0
MIN_TOKEN_CHARS = 16


class TokenFile:
    """A file with the token that opens /metrics, read again when it has changed. "" is no file.

    Raises EndpointError for one that cannot be used.
    """

    def __init__(self, path: str, log: Callable[[str], None]) -> None:
        self._path = path
        self._log = log
        self._seen: tuple[int, ...] = ()
        self._digest = ""
        if path:
            self._seen = self._look()
            self._digest = self._read()

    def is_right(self, token: str) -> bool:
        """True for the token of the file; nothing is while the file cannot be used."""
        if not self._path or len(token) > tokens.MAX_TOKEN_CHARS:
            return False
        try:
            seen = self._look()
            if seen != self._seen:
                self._seen, self._digest = seen, ""
                self._digest = self._read()
        except EndpointError as error:
            self._digest = ""
            self._log(str(error))
        return bool(self._digest) and hmac.compare_digest(tokens.digest_of(token), self._digest)

    def _look(self) -> tuple[int, ...]:
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise EndpointError(f"metrics_token {self._path} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o007:
            raise EndpointError(
                f"metrics_token {self._path} has mode {stat.filemode(status.st_mode)}; expected a file that only its "
                "owner and group can read (chmod 640)"
            )
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size

    def _read(self) -> str:
        try:
            with open(self._path, encoding="utf-8", errors="surrogateescape") as file:
                token = file.read(tokens.MAX_TOKEN_CHARS + 2).strip()
        except OSError as error:
            raise EndpointError(f"metrics_token {self._path} cannot be read: {error.strerror}") from None
        if not MIN_TOKEN_CHARS <= len(token) <= tokens.MAX_TOKEN_CHARS or len(token.split()) != 1:
            raise EndpointError(
                f"metrics_token {self._path} has no token; expected one line of {MIN_TOKEN_CHARS} to "
                f"{tokens.MAX_TOKEN_CHARS} characters without spaces (openssl rand -hex 32)"
            )
        return tokens.digest_of(token)


class Pages:
    """See the module's docstring. `ask` gets a report from the broker, None if it does not answer in time.

    `refused`: what the gateway has refused so far, by reason.
    """

    def __init__(
        self, ask: Callable[[float], Awaitable[PoolReport | None]], refused: Callable[[], dict[str, int]]
    ) -> None:
        self._ask = ask
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._asking: asyncio.Task[PoolReport | None] | None = None
        self._last: PoolReport | None = None
        self._last_at = -PROBE_AGE_S

    async def answer(self, path: str) -> web.Response:
        """The answer to a request that was admitted."""
        if path == "/metrics":
            return await self._metrics()
        report = await self._report(PROBE_AGE_S)
        if report is None:
            return page(Answer(HTTPStatus.SERVICE_UNAVAILABLE, "the broker does not answer"))
        if path == "/readyz" and report.not_ready:
            return page(Answer(HTTPStatus.SERVICE_UNAVAILABLE, report.not_ready))
        return page(Answer(HTTPStatus.OK, "ok"))

    async def _metrics(self) -> web.Response:
        report = await self._report(0.0)
        if report is None or report.tally is None:
            why = "the broker does not answer" if report is None else report.not_ready
            return page(Answer(HTTPStatus.SERVICE_UNAVAILABLE, why))
        # In a thread: loading the library takes long, the first time.
        content_type, body = await self._loop.run_in_executor(None, _exposition, report, self._refused())
        return web.Response(body=body, headers={**SERVER, "Content-Type": content_type})

    async def _report(self, age_s: float) -> PoolReport | None:
        """A report that is no older than this."""
        if self._last is not None and self._loop.time() - self._last_at <= age_s:
            return self._last
        if self._asking is None:
            self._asking = self._loop.create_task(self._ask_once())
        # One that asks and leaves ends nobody else's.
        return await asyncio.shield(self._asking)

    async def _ask_once(self) -> PoolReport | None:
        try:
            began = self._loop.time()
            report = await self._ask(ASK_LIMIT_S)
            self._last, self._last_at = report, began
            return report
        finally:
            self._asking = None

    async def close(self) -> None:
        """End what is under way."""
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking


def page(answer: Answer) -> web.Response:
    """A short text as a response."""
    return web.Response(status=answer.status, text=f"{answer.text}\n" if answer.text else None, headers=SERVER)


def _exposition(report: PoolReport, refused: dict[str, int]) -> tuple[str, bytes]:
    from .. import exposition

    return exposition.CONTENT_TYPE, exposition.text_of(report, refused)
