"""codex_batch and codex_pool_cli use a listed part of codex_pool; a name that is not listed here fails the test.

docs/architecture.md has the same list. What codex_batch uses is what another package could build an evaluation on.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"

SURFACE: dict[str, dict[str, set[str]]] = {
    "codex_batch": {
        "codex_pool": {"EndpointError", "Pool", "PoolLostError", "PoolStartError", "__version__", "aconnect"},
        "codex_pool.account.auth_file": {"UnreadableError"},
        "codex_pool.account.issuer": {"URL_VARIABLE"},
        "codex_pool.account.lending": {"Lender"},
        "codex_pool.account_notice": {"anotice", "remedy"},
        "codex_pool.trust": {"skills_off", "untrusting"},
        "codex_pool.configuration": {
            "Ask",
            "Configuration",
            "ConfigurationError",
            "UNKNOWN",
            "aread_configuration",
            "probe_configuration",
            "while_lost",
        },
        "codex_pool.demo": {"demo_home"},
        "codex_pool.homes": {"ConfigCopy", "daemon_home", "make_home", "renew_config"},
        "codex_pool.litellm_prices": {"NAME", "find_prices"},
        "codex_pool.open_items": {"OpenItems"},
        "codex_pool.options": {"OF_RUNS", "PoolOptions", "fields"},
        "codex_pool.pool": {"codex_home"},
        "codex_pool.prices": {"Prices", "PricesError", "UNKNOWN", "UnpricedError", "amount"},
        "codex_pool.protocol.endpoints": {"is_tcp"},
        "codex_pool.runtime.log": {"to_file"},
        "codex_pool.runtime.os_errors": {"describe"},
        "codex_pool.runtime.processes": {"become_subreaper", "descendants", "sweep"},
        "codex_pool.runtime.startup": {"HungUp", "collect_rarely", "interrupt_on_signals", "python"},
        "codex_pool.runtime.terminal": {"plain"},
        "codex_pool.runtime.workflow_commands": {"command", "is_on", "json_line"},
        "codex_pool.sandbox_modes": {"FULL_ACCESS", "READ_ONLY", "SANDBOX_MODES", "WORKSPACE_WRITE"},
        "codex_pool.tracer.telemetry": {"Counts", "begin"},
    },
    "codex_pool_cli": {
        "codex_pool": {"Pool", "__version__"},
        "codex_pool.account.login_state": {"login_state"},
        "codex_pool.account_notice": {
            "DEFAULT_PROVIDER",
            "has_credentials",
            "ASK_LIMIT_S",
            "LOGIN",
            "has_own_credentials",
            "is_login_missing",
            "notice",
            "notice_of",
            "provider_of",
            "remedy",
        },
        "codex_pool.auth.key_audit": {"audit"},
        "codex_pool.auth.key_entries": {"duration_s"},
        "codex_pool.auth.keys": {"KeyStore", "KeysError", "check_name", "default_directory", "read_token", "uid_of"},
        "codex_pool.auth.ownership": {"OwnershipError", "reset"},
        "codex_pool.auth.principal": {"Identity"},
        "codex_pool.auth.usage_store": {"reset"},
        "codex_pool.bridge": {"Bridge", "NotReadError", "to_endpoint", "to_pool"},
        "codex_pool.client.transport": {"PoolTransport"},
        "codex_pool.client.unix_transport": {"UnixTransport"},
        "codex_pool.connecting": {"connect"},
        "codex_pool.daemon.config": {"DaemonConfig"},
        "codex_pool.daemon.lifecycle": {"run_daemon"},
        "codex_pool.daemon.options_check": {"problems_of"},
        "codex_pool.daemon.status_text": {
            "HEADER",
            "problems",
            "rows",
            "summary",
            "trace",
            "upgrade_text",
            "waiting_text",
        },
        "codex_pool.demo": {"demo_home"},
        "codex_pool.supervisor.canary.checks": {"CheckError", "ask_version"},
        "codex_pool.homes": {"daemon_home_at", "demo_home_of"},
        "codex_pool.lean_profile": {"LEAN_ENVIRON", "LEAN_OVERRIDES"},
        "codex_pool.open_items": {"OpenItems"},
        "codex_pool.options": {
            "Field",
            "GROUPS",
            "Group",
            "OF_RUNS",
            "PoolOptions",
            "fields",
            "options_of",
        },
        "codex_pool.option_sources": {"Given", "Problem", "Value", "read_given", "read_options"},
        "codex_pool.pool": {"Pool", "codex_home"},
        "codex_pool.prices": {"amount"},
        "codex_pool.protocol.endpoints": {
            "EndpointError",
            "check_client",
            "check_private",
            "default_endpoint",
            "holder_pid",
            "ipc_path",
            "is_held",
            "is_tcp",
            "running_daemon",
            "runtime_path",
            "why_unreachable",
        },
        "codex_pool.protocol.thread_defaults": {
            "Configuration",
            "ConfigurationError",
            "TRIES",
            "UNKNOWN",
            "configuration_in",
            "unusable",
        },
        "codex_pool.runtime.endpoint_name": {"holder"},
        "codex_pool.runtime.os_errors": {"describe", "limits"},
        "codex_pool.runtime.processes": {"cpu_s", "tells_trees", "tree"},
        "codex_pool.runtime.startup": {"HungUp", "interrupt_on_signals", "python"},
        "codex_pool.runtime.terminal": {"plain"},
        "codex_pool.runtime.workflow_commands": {"is_on", "json_line", "neutral"},
        "codex_pool.runtime.writer": {"Writer"},
        "codex_pool.sandbox_modes": {"READ_ONLY", "SANDBOX_MODES"},
    },
}


def names_used(package: str) -> dict[str, set[str]]:
    """The names of codex_pool that a package imports, by module; of a module that is imported, those it looks up."""
    found: dict[str, set[str]] = {}
    for path in sorted((SRC / package).rglob("*.py")):
        for module, name in _uses(ast.parse(path.read_text())):
            found.setdefault(module, set()).add(name)
    return found


def _uses(tree: ast.AST) -> Iterator[tuple[str, str]]:
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and _is_pool(node.module):
            for alias in node.names:
                if _is_module(f"{node.module}.{alias.name}"):
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                else:
                    yield str(node.module), alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _is_pool(alias.name):
                    modules[alias.asname or alias.name] = alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield modules[node.value.id], node.attr


def _is_pool(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] == "codex_pool"


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("package", SURFACE)
def test_only_listed_names_of_codex_pool_are_used(package: str) -> None:
    used, listed = names_used(package), SURFACE[package]
    more = {f"{module}.{name}" for module, names in used.items() for name in names - listed.get(module, set())}
    unused = {f"{module}.{name}" for module, names in listed.items() for name in names - used.get(module, set())}
    assert not more, f"{package} uses names of codex_pool that are not listed: {sorted(more)}; list them, or do without"
    assert not unused, f"{package} does not use {sorted(unused)} any more; take them off the list"


@pytest.mark.parametrize("package", SURFACE)
def test_listed_names_are_there(package: str) -> None:
    for module, names in SURFACE[package].items():
        for name in names:
            assert hasattr(import_module(module), name), f"{module} has no {name}"


def test_names_of_imported_modules_count() -> None:
    source = "from codex_pool.runtime import startup as start\nimport codex_pool\nstart.python(codex_pool.__version__)"
    assert set(_uses(ast.parse(source))) == {
        ("codex_pool.runtime.startup", "python"),
        ("codex_pool", "__version__"),
    }
