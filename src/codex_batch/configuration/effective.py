"""Effective configuration of a run: what decides how its agents answer, as codex resolved it. Pure.

It has three parts. The settings of a thread - model, provider, effort, service tier, sandbox, approval policy - count
as codex resolved them, defaults included. Further keys, those of KEYS, count as far as the configuration sets them: the
defaults of codex belong to its version. The version counts by its class alone, so that an upgrade in the middle of a
run is no change.

Values of environments, headers and query parameters, and whatever may be a credential, are left out before anything is
stored or hashed; the names of variables and headers stay.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from codex_app_server._runtime.text import one_line
from codex_pool.sandbox_modes import WORKSPACE_WRITE

from ..container.running import CONTAINER
from .without_secrets import without_secrets

# The keys of codex's configuration (0.163.0) that change an agent, beside the settings of its thread. `projects` is not
# among them, nor is what only changes how codex logs, displays, notifies or stores.
KEYS = (
    # Instructions and what else is put before the model.
    *("instructions", "developer_instructions", "model_instructions_file", "experimental_instructions_file"),
    *("compact_prompt", "experimental_compact_prompt_file", "personality", "include_permissions_instructions"),
    *("include_apps_instructions", "include_collaboration_mode_instructions", "include_environment_context"),
    *("include_environment_context_time", "project_doc_max_bytes", "project_doc_fallback_filenames"),
    *("project_root_markers", "skills", "memories"),
    # The model.
    *("model_context_window", "model_auto_compact_token_limit", "model_auto_compact_token_limit_scope"),
    *("model_post_turn_compact_threshold_percent", "model_reasoning_summary", "model_verbosity", "model_catalog_json"),
    *("plan_mode_reasoning_effort", "review_model", "oss_provider", "openai_base_url", "chatgpt_base_url"),
    # Tools.
    *("agents", "allow_login_shell", "apps", "background_terminal_max_timeout", "browser_use", "computer_use"),
    *("experimental_use_unified_exec_tool", "features", "goals", "hooks", "mcp_servers", "orchestrator", "plugins"),
    *("shell_environment_policy", "tool_output_token_limit", "tool_suggest", "tools", "web_search"),
    # What it may do.
    *("approvals_reviewer", "auto_review", "default_permissions", "permissions", "sandbox_workspace_write"),
)
# Of the provider that is used; no other one counts.
_OF_PROVIDER = (
    *("base_url", "wire_api", "model_catalog_url", "env_key", "http_headers", "env_http_headers", "query_params"),
    *("capabilities", "requires_openai_auth"),
)
# Their values name files, whose content counts.
_FILES = frozenset(
    {
        "config_file",
        "experimental_compact_prompt_file",
        "experimental_instructions_file",
        "model_catalog_json",
        "model_instructions_file",
    }
)
# Profiles that a pool makes to keep agents from what they must not read.
_GUARD = "codex-pool-"
# A server on this machine may listen at another port the next time.
_LOOPBACK_PORT = re.compile(r"(?<=://)(localhost|127\.[0-9.]+|\[::1\]):[0-9]+")
_UNKNOWN_CLASS = "unknown"

Digest = Callable[[str], str | None]
"""Digest of the file at a path, None where it cannot be read."""


class Effective(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of threads that ask for nothing else. None is what codex leaves to the model, or is not known.

    `effort` is that of a thread, `configured_effort` what the configuration names. `sources`: instruction files that
    codex reads from its home, path to digest. `keys`: those of KEYS and of the provider that are set; None where the
    configuration is not shown, as to a client with a key. `guarded`, `trusting`: without --unguarded, with
    --trust-workspaces. Of a variant alone, `agents_md` is the digest of its AGENTS.md and `binary` the version of the
    binary that it names: that counts whole.
    """

    model: str | None = None
    provider: str | None = None
    effort: str | None = None
    configured_effort: str | None = None
    service_tier: str | None = None
    sandbox: Any = None
    approval_policy: Any = None
    sources: dict[str, str | None] = {}
    keys: dict[str, Any] | None = None
    guarded: bool = True
    trusting: bool = False
    codex_version: str | None = None
    agents_md: str | None = None
    binary: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the whole configuration as plain JSON, with its fingerprint."""
        return {**msgspec.to_builtins(self), "fingerprint": fingerprint(self)}


UNKNOWN = Effective()


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one thread, as codex reported them: who answered. `rerouted_from`: the model that was asked, if the
    service let another one answer."""

    model: str | None = None
    provider: str | None = None
    effort: str | None = None
    codex_version: str | None = None
    rerouted_from: str | None = None


NOBODY = Answered()


def keys_of(
    config: Mapping[str, Any], origins: Mapping[str, Any], provider: str | None, digest: Digest
) -> dict[str, Any]:
    """The part of a `config/read` result that counts: what `origins` lists as set, of KEYS and of the provider."""
    given = _Given(origins)
    found = {key: given.of(config.get(key), key) for key in KEYS}
    servers = found.get("mcp_servers")
    if isinstance(servers, dict):
        found["mcp_servers"] = {
            name: server
            for name, server in servers.items()
            if not (isinstance(server, dict) and server.get("enabled") is False)
        }
    profiles = found.get("permissions")
    if isinstance(profiles, dict):
        found["permissions"] = {name: each for name, each in profiles.items() if not name.startswith(_GUARD)}
    if provider is not None:
        providers = config.get("model_providers")
        path = f"model_providers.{provider}"
        settings = given.of(providers.get(provider), path) if isinstance(providers, Mapping) else None
        if isinstance(settings, dict):
            found[path] = {name: value for name, value in settings.items() if name in _OF_PROVIDER}
    plain = {key: without_secrets(value, key) for key, value in found.items() if value not in (None, {}, [])}
    return {key: _with_files(value, key, digest) for key, value in sorted(plain.items()) if value not in (None, {}, [])}


class _Given:
    """Keys of a configuration that any of its layers sets: config.toml, `-c`, managed ones."""

    def __init__(self, origins: Mapping[str, Any]) -> None:
        self._set: set[str] = set()
        for path in origins:
            parts = path.split(".")
            self._set.update(".".join(parts[:length]) for length in range(1, len(parts) + 1))

    def of(self, value: Any, path: str) -> Any:
        if value is None or path not in self._set:
            return None
        if not isinstance(value, Mapping):
            return value
        inner = {name: self.of(each, f"{path}.{name}") for name, each in value.items()}
        return {name: each for name, each in inner.items() if each is not None}


def _with_files(value: Any, key: str, digest: Digest) -> Any:
    if isinstance(value, Mapping):
        return {name: _with_files(each, name, digest) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_files(each, "", digest) for each in value]
    if key in _FILES and isinstance(value, str):
        return {"path": value, "digest": digest(value)}
    return value


# What makes configurations differ.


class OfSample(msgspec.Struct, frozen=True):
    """Settings that a sample names itself. `instructions`: digest of its directory's AGENTS.md, None without one."""

    model: str | None = None
    effort: str | None = None
    sandbox: str | None = None
    instructions: str | None = None


def of_sample(spec: Mapping[str, Any], instructions: str | None = None, *, sandbox: str | None = None) -> OfSample:
    """Read a sample's own settings from its JSON; one with a workspace may write there by default.

    `sandbox` is the one that the run was asked for, instead of that default.
    """
    if spec.get("container") is not None:
        return OfSample(spec.get("model"), spec.get("effort"), CONTAINER, instructions)
    sandbox = spec.get("sandbox") or sandbox or (None if spec.get("workspace") is None else WORKSPACE_WRITE)
    return OfSample(spec.get("model"), spec.get("effort"), sandbox, instructions)


def fingerprint(effective: Effective, own: OfSample | None = None) -> str:
    """A digest of a configuration, with what a sample asks for itself in place of what it has by default."""
    counted = _counted(effective)
    own = own or OfSample()
    if own.model is not None:
        # The default effort is that of the model.
        counted["model"], counted["effort"] = own.model, effective.configured_effort
    if own.effort is not None:
        counted["effort"] = own.effort
    if own.sandbox is not None:
        counted["sandbox"] = own.sandbox
    if effective.agents_md is None:
        counted["agents_md"] = own.instructions
    return hashlib.sha256(_sorted(counted).encode()).hexdigest()[:16]


def version_class(version: str | None) -> str:
    """Return the class of a codex version: its first number. Versions of one class share homes and threads."""
    found = re.match(r"[0-9]+", version or "")
    return found[0] if found else _UNKNOWN_CLASS


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """List the differences of two configurations, as `to_json` gives them, for people: "name: before, now after"."""
    old, new = (_counted(msgspec.convert(_without_fingerprint(each), Effective)) for each in (before, after))
    first, second = (dict(_flat(each, "")) for each in (old, new))
    names = [*first, *(name for name in second if name not in first)]
    return [
        f"{name.replace('_', ' ')}: {_shown(first.get(name))}, now {_shown(second.get(name))}"
        for name in names
        if first.get(name) != second.get(name)
    ]


def flattened(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what counts of a configuration, as `to_json` gives it: dotted names and values, None where not known.

    The version of codex stands in full.
    """
    effective = msgspec.convert(_without_fingerprint(configuration), Effective)
    return {**dict(_flat(_counted(effective), "")), "codex_version": effective.codex_version}


def unlike(effective: Effective, own: OfSample, answered: Answered) -> str | None:
    """Describe how a thread's settings differ from those that the run was started with; None if they do not.

    A setting that either side does not name is not compared.
    """
    effort = effective.effort if own.model is None else effective.configured_effort
    expected = {
        "model": (effective.model if own.model is None else None, answered.model),
        "provider": (effective.provider, answered.provider),
        "effort": (effort if own.effort is None else None, answered.effort),
    }
    for name, (wanted, found) in expected.items():
        if wanted is not None and found is not None and wanted != found:
            return f"{name} is {found!r}, and was {wanted!r} when the run started"
    return None


def _counted(effective: Effective) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(effective)
    del found["configured_effort"]
    found["codex_version"] = version_class(effective.codex_version)
    if effective.binary is None:
        # So that the digest of what has none stays as it was.
        del found["binary"]
    # Where they lie does not matter.
    found["sources"] = list(effective.sources.values())
    if effective.keys is not None:
        found["keys"] = _comparable(effective.keys)
    return found


def _comparable(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"path", "digest"} and value["digest"] is not None:
            return value["digest"]
        return {name: _comparable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_comparable(each) for each in value]
    return _LOOPBACK_PORT.sub(r"\1", value) if isinstance(value, str) else value


def _flat(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, each in value.items():
        where = name if path in ("", "keys") else f"{path}.{name}"
        if isinstance(each, Mapping):
            yield from _flat(each, where)
        else:
            yield where, each


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return one_line(text, 60)


def _without_fingerprint(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in value.items() if name != "fingerprint"}


_sorted = json.JSONEncoder(sort_keys=True).encode


def in_words(problems: Iterable[str], most: int = 5) -> str:
    """Differences on one line."""
    found = list(problems)
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(found[:most]) + more
