"""The effective configuration, asked of an app-server or a pool."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server import AppServerError, AsyncCodex, JsonRpcError, TurnLostError, operations
from codex_app_server._runtime.files import read_file
from codex_app_server.operations import Operation, encode_plain
from codex_pool import trust
from codex_pool.configuration import Configuration, while_lost

from .effective import Effective, keys_of
from .started_thread import text, without_servers
from .variants import Variant

# How long an app-server may take to answer a question about its configuration.
ANSWER_LIMIT_S = 30.0
NOTHING = Variant(name="")


class _Thread(msgspec.Struct, rename="camel"):
    id: str
    cli_version: Any = None


class _Start(msgspec.Struct, rename="camel"):
    """Settings of a thread in the answer to thread/start and thread/fork (codex 0.163.0)."""

    thread: _Thread
    model: Any = None
    model_provider: Any = None
    reasoning_effort: Any = None
    service_tier: Any = None
    sandbox: Any = None
    instruction_sources: Any = None


_decode_start = msgspec.json.Decoder(_Start).decode


def _start_of(result: bytes) -> _Start:
    try:
        return _decode_start(result)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AppServerError(f"the answer to the start of a thread does not name one: {error}") from None


async def aread_effective(
    codex: AsyncCodex,
    cwd: Path,
    configuration: Configuration,
    *,
    approval_policy: Any,
    guarded: bool,
    trusting: bool,
    is_here: bool,
    asked: Variant = NOTHING,
    sandbox: str | None = None,
) -> Effective:
    """Ask an app-server, or a pool, for the effective configuration.

    Defaults of codex are known once a thread is made, so one is, without MCP servers, and deleted again: that frees
    it, an ephemeral one would stay loaded. `cwd` is an absolute path that it takes nothing from. `is_here`: files that
    the configuration names lie on this machine. `asked`: what threads ask for in a variant, or in a run that has a
    model or an effort of its own; `sandbox`: the one that they ask for. Raises AppServerError; what a pool refuses to
    a limited key is not known.
    """
    config, origins = await while_lost(lambda: _config(codex))
    start = await while_lost(lambda: _probe(codex, cwd, config or {}, approval_policy, asked, sandbox))
    overrides = overrides_of(asked)
    if config is not None and overrides:
        leaves = dict(_leaves(overrides))
        config, origins = _overridden(config, leaves), {**origins, **dict.fromkeys(map(".".join, leaves))}
    provider = text((config or {}).get("model_provider")) if start is None else text(start.model_provider)
    effort = asked.effort or text((config or {}).get("model_reasoning_effort"))
    sandbox = sandbox or configuration.sandbox or configuration.profile
    digest = _digest if is_here else _not_here
    version = None if start is None else text(start.thread.cli_version)
    sources = [] if start is None else start.instruction_sources or []
    return Effective(
        model=asked.model or text((config or {}).get("model")) if start is None else text(start.model),
        provider=provider,
        effort=effort if start is None else text(start.reasoning_effort),
        configured_effort=effort,
        service_tier=text((config or {}).get("service_tier")) if start is None else text(start.service_tier),
        sandbox=sandbox or (None if start is None else start.sandbox),
        approval_policy=approval_policy,
        sources={str(source): digest(str(source)) for source in sources},
        keys=None if config is None else keys_of(config, origins, provider, digest),
        guarded=guarded,
        trusting=trusting,
        codex_version=version,
        agents_md=asked.agents_md_digest,
        binary=None if asked.codex_bin is None else version or asked.codex_bin,
    )


def overrides_of(variant: Variant) -> dict[str, Any]:
    """The `config` of thread/start for a variant: its keys, and its effort, which is that of each turn as well."""
    effort = {} if variant.effort is None else {"model_reasoning_effort": variant.effort}
    return {**variant.config, **effort}


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and value of each setting: codex merges tables, and replaces all else."""
    if not isinstance(value, Mapping) or (path and not value):
        yield path, value
        return
    for key, each in value.items():
        yield from _leaves(each, (*path, *([key] if path else key.split("."))))


def _overridden(config: Mapping[str, Any], leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return the configuration with settings set."""
    made = copy.deepcopy(dict(config))
    for (*parents, name), value in leaves.items():
        place = made
        for parent in parents:
            inner = place.get(parent)
            place[parent] = place = inner if isinstance(inner, dict) else {}
        place[name] = value
    return made


async def _config(codex: AsyncCodex) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """`config` and `origins` of config/read; None where they are refused."""
    operation = Operation("config/read", encode_plain("config/read", {"includeLayers": False}), _decode)
    try:
        found = await codex.client.perform(operation, timeout_s=ANSWER_LIMIT_S)
    except TurnLostError:
        raise
    except JsonRpcError:
        return None, {}
    config, origins = found.get("config"), found.get("origins")
    return (config if isinstance(config, dict) else None), (origins if isinstance(origins, dict) else {})


async def _probe(
    codex: AsyncCodex,
    cwd: Path,
    config: Mapping[str, Any],
    approval_policy: Any,
    asked: Variant,
    sandbox: str | None,
) -> _Start | None:
    """The settings of a thread that asks for nothing else; None where one is refused, as those of samples will be."""
    servers = config.get("mcp_servers") or {}
    overrides = {**without_servers(overrides_of(asked)), **trust.untrusting(str(cwd)), "project_doc_max_bytes": 0}
    if servers:
        overrides["mcp_servers"] = {name: {"enabled": False} for name in servers}
    options = {"cwd": str(cwd), "config": overrides, "approval_policy": approval_policy}
    given = {"model": asked.model, "sandbox": sandbox}
    options |= {name: value for name, value in given.items() if value is not None}
    start: _Start
    operation: Operation[Any] = operations.thread_start(options)
    operation = msgspec.structs.replace(operation, finish=_start_of, paths=())
    try:
        start = await codex.client.perform(operation, timeout_s=ANSWER_LIMIT_S)
    except TurnLostError:
        raise
    except JsonRpcError:
        return None
    with contextlib.suppress(JsonRpcError):
        await codex.client.request("thread/delete", {"thread_id": start.thread.id})
    return start


def _decode(result: bytes) -> dict[str, Any]:
    found = msgspec.json.decode(result)
    return found if isinstance(found, dict) else {}


def _digest(path: str) -> str | None:
    try:
        return hashlib.sha256(read_file(Path(path))).hexdigest()[:16]
    except OSError:
        return None


def _not_here(path: str) -> str | None:
    return None
