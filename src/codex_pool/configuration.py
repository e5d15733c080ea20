"""The configuration that app-servers of a home run with, as `config/read` answers it.

codex starts also with a configuration that it cannot read, on its defaults, and refuses every thread until the file is
mended. `config/read` fails in each such case, so a pool asks it before anything is run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from codex_app_server import (
    AppServerConfig,
    AsyncCodex,
    Codex,
    InternalRpcError,
    InvalidRequestError,
    JsonRpcError,
    TurnLostError,
)
from codex_app_server.home import ensure_home
from codex_app_server.operations import Operation, encode_plain

from .protocol.thread_defaults import TRIES, configuration_in, unusable
from .protocol.thread_defaults import UNKNOWN as UNKNOWN
from .protocol.thread_defaults import Configuration as Configuration
from .protocol.thread_defaults import ConfigurationError as ConfigurationError
from .protocol.thread_defaults import configuration_of as configuration_of
from .supervisor.sqlite_homes import SqliteHomes, root_of, sqlite_override

LIMIT_S = 30.0

T = TypeVar("T")


def read_configuration(codex: Codex, cwd: str | None = None) -> Configuration:
    """Ask an app-server, or a pool, for the configuration of threads that work in `cwd`, an absolute path.

    Raises ConfigurationError, and what else a request raises.
    """
    for _ in range(TRIES - 1):
        with contextlib.suppress(TurnLostError):
            return _configuration(codex, cwd)
    return _configuration(codex, cwd)


def _configuration(codex: Codex, cwd: str | None) -> Configuration:
    try:
        return codex.client.perform(_read(cwd), timeout_s=LIMIT_S)
    except (InternalRpcError, InvalidRequestError) as error:
        problem: JsonRpcError = error
    try:
        codex.client.perform(_TRY, timeout_s=LIMIT_S)
    except TurnLostError:
        raise
    except JsonRpcError as error:
        problem = error
    raise unusable(problem)


async def aread_configuration(codex: AsyncCodex, cwd: str | None = None) -> Configuration:
    """Ask as `read_configuration` does, with an asyncio client."""
    return await while_lost(lambda: _aconfiguration(codex, cwd))


async def while_lost(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask a question that changes nothing, again where the worker that was asked has died: its successor answers."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(TurnLostError):
            return await ask()
    return await ask()


async def _aconfiguration(codex: AsyncCodex, cwd: str | None) -> Configuration:
    try:
        return await codex.client.perform(_read(cwd), timeout_s=LIMIT_S)
    except (InternalRpcError, InvalidRequestError) as error:
        problem: JsonRpcError = error
    try:
        await codex.client.perform(_TRY, timeout_s=LIMIT_S)
    except TurnLostError:
        raise
    except JsonRpcError as error:
        problem = error
    raise unusable(problem)


Ask = Callable[[AsyncCodex, Configuration], Awaitable[None]]


async def probe_configuration(config: AppServerConfig, ask: Ask | None = None) -> Configuration:
    """Start an app-server only to ask it for its configuration, and what else `ask` asks.

    It runs in the SQLite home of a pool's first slot, so that the work of a first start is not done twice.
    Raises ConfigurationError, HomeError, BinaryNotFoundError, TransportClosedError, and what `ask` raises.
    """
    home = ensure_home(config.environ())
    with contextlib.closing(SqliteHomes(root_of(home), slots=1)) as homes:
        path = homes.take(0)
        probing = replace(
            config,
            config_overrides=(*config.config_overrides, sqlite_override(path)),
            env={**config.env, "CODEX_SQLITE_HOME": str(path)},
        )
        async with AsyncCodex(probing) as codex:
            configuration = await aread_configuration(codex)
            if ask is not None:
                await ask(codex, configuration)
            return configuration


def _read(cwd: str | None) -> Operation[Configuration]:
    params = {"includeLayers": False} if cwd is None else {"includeLayers": False, "cwd": cwd}
    return Operation("config/read", encode_plain("config/read", params), configuration_in)


# Refused as well where config/read is, with a message that names file, line and column.
_TRY = Operation("thread/start", b'{"ephemeral":true}', bytes)
