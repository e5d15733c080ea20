#!/usr/bin/env python3
"""Call every stable method of the real app-server once, and writes which it answers to docs/reference/methods.md.

It runs in temporary directories on a loopback model, without an account and without a network. `--check` compares
with what is written instead of writing: exit 1 and the rows that differ.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from codex_app_server import AppServerClient, AppServerConfig, AppServerError, JsonRpcError, Notification
from codex_app_server.generated import models
from codex_app_server.generated.routing import REFUSED, REQUESTS, RUNTIME_VERSION
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home

TABLE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "methods.md"
STABLE = sorted(method for method, request in REQUESTS.items() if not request.experimental)
LIMIT_S = 10.0
MESSAGE_CHARS = 90
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
NOBODY = "00000000-0000-4000-8000-000000000000"
# Nothing listens there: what tries to leave the machine through a proxy is refused at once.
NO_NETWORK = "http://127.0.0.1:9"
MCP_SERVER = """
import json, sys
RESULTS = {
    "initialize": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}, "resources": {}},
                   "serverInfo": {"name": "probe", "version": "0"}},
    "tools/list": {"tools": [{"name": "greet", "inputSchema": {"type": "object"}}]},
    "tools/call": {"content": [{"type": "text", "text": "hello"}]},
    "resources/list": {"resources": []},
    "resources/templates/list": {"resourceTemplates": []},
    "resources/read": {"contents": [{"uri": "probe://greeting", "text": "hello"}]},
}
for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": RESULTS.get(message["method"], {})}
        print(json.dumps(answer), flush=True)
"""
PRELUDE = """\
# Methods

The {total} stable requests of codex {version}. `client.request(method, params)` sends any of them, fields in
snake_case, and returns its result; `client.request(params)` does so for an object of the type of the params. Types are
classes of `codex_app_server.generated.models`.

{answered} of them were answered when each was asked once with small, harmless arguments: on a home without an account,
with no network, plugins and feedback off, and API keys forbidden. The last column says why the others refused that.

Scope is which app-server of a pool answers: `owner` the one that holds the thread; `any` one of them; `all` of them,
one after the other; `account` one of them, or for logging in and out all, one after the other; `renewing` one of them,
and the others are renewed; `reloading` one of them, and the others start their MCP servers again; `merged` all, their
answers put together; `session` the one that has what the request names, such as a process of the client's session, with
which it ends; `refused` none: see [below](#refused-through-a-pool).

Written by `scripts/probe_methods.py`; do not edit.

| method | params | result | scope in a pool | answered by codex {version} |
|---|---|---|---|---|
"""

REFUSALS = """
## Refused through a pool

With error -32601, experimental methods included. Use a `Codex` or `AppServerClient` of its own for them.

| methods | why |
|---|---|
"""


class ProbeError(Exception):
    """The probe cannot go on; the message says at which method."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one method: its typed result, or why there is none."""

    result: Any
    refusal: str | None


class Probe:
    """Calls the methods and notes what comes back."""

    def __init__(self, client: AppServerClient, directory: Path) -> None:
        self.client = client
        self.directory = directory
        self.outcomes: dict[str, Outcome] = {}

    def ask(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """Note what the method answers; None when it refuses."""
        if method not in REQUESTS:
            # Of another version of codex.
            return None
        if method in self.outcomes:
            raise ProbeError(f"{method} is asked twice; ask it once")
        result, refusal = None, None
        try:
            result = self.client.request(method, params, timeout_s=LIMIT_S)
        except JsonRpcError as error:
            refusal = f"{error.code}: {self._lasting(error.message)}"
        except (AppServerError, ValueError) as error:
            refusal = self._lasting(f"{type(error).__name__}: {error}")
        expected = REQUESTS[method].result
        if refusal is None and not isinstance(result, getattr(models, expected)):
            refusal = f"came as {type(result).__name__}, not as {expected}"
        self.outcomes[method] = Outcome(result, refusal)
        return result

    def need(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """Do the same as `ask`, for an answer that later methods build on."""
        result = self.ask(method, params)
        refusal = self.outcomes[method].refusal
        if refusal is not None:
            raise ProbeError(f"{method}: expected {REQUESTS[method].result}, got {refusal}; give it other params here")
        return result

    def wait_for(self, method: str, wanted: Callable[[Notification], bool] = lambda _: True) -> None:
        """Wait for a notification that belongs to no turn of the client."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            notification = self.client.next_notification(LIMIT_S)
            if notification is not None and notification.method == method and wanted(notification):
                return
        raise ProbeError(f"no {method} within {LIMIT_S:g} s")

    def wait_for_turn_of(self, thread_id: str) -> None:
        self.wait_for("turn/completed", lambda notification: notification.params["threadId"] == thread_id)

    def _lasting(self, text: str) -> str:
        """Without what differs from run to run."""
        text = UUID.sub("ID", text.replace(str(self.directory), "DIR")).partition("\n")[0].replace("|", "/")
        return text if len(text) <= MESSAGE_CHARS else text[: MESSAGE_CHARS - 3] + "..."


def probe(codex_bin: Path | None = None, *, is_complete: bool = True) -> dict[str, Outcome]:
    """The answers of each stable method. Raises ProbeError, for a method that is not asked too if `is_complete`."""
    if sys.platform == "win32":
        raise ProbeError("windowsSandbox/setupStart would change this machine; run the probe on Linux or macOS")
    with tempfile.TemporaryDirectory(prefix="codex-probe-") as made, LoopbackModel() as model:
        directory = Path(made).resolve()
        (work := directory / "work").mkdir()
        with own_environment(), AppServerClient(configuration(directory, work, model.base_url, codex_bin)) as client:
            probe = Probe(client, directory)
            ask_connection(probe)
            ask_account(probe)
            ask_config(probe, work)
            ask_files(probe, work)
            ask_command(probe)
            ask_plugins(probe, work)
            ask_threads(probe)
            ask_hosts(probe, work)
    missing = sorted(set(STABLE) - probe.outcomes.keys())
    if missing and is_complete:
        raise ProbeError(f"never asked: {', '.join(missing)}; add them to the probe")
    return probe.outcomes | dict.fromkeys(missing, Outcome(None, "not asked"))


@contextmanager
def own_environment() -> Iterator[None]:
    """Without the variables through which the user's account, homes and settings would reach codex."""
    with mock.patch.dict(os.environ):
        for name in list(os.environ):
            if name.startswith(("CODEX_", "OPENAI_", "XDG_")):
                del os.environ[name]
        yield


def configuration(directory: Path, work: Path, base_url: str, codex_bin: Path | None = None) -> AppServerConfig:
    """An app-server whose home, user and temporary files are in `directory`, and whose only server is the model's."""
    server = directory / "mcp_server.py"
    server.write_text(MCP_SERVER, encoding="utf-8")
    env = {"CODEX_HOME": str(write_loopback_home(directory / "home", base_url))}
    for name, value in (("HOME", "user"), ("TMPDIR", "tmp")):
        env[name] = str(directory / value)
        Path(env[name]).mkdir()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        env[name] = env[name.lower()] = NO_NETWORK
    env["NO_PROXY"] = env["no_proxy"] = "127.0.0.1"
    env |= {"CODEX_APP_SERVER_DISABLE_MANAGED_CONFIG": "1", "RUST_LOG": "off"}
    overrides = (
        f"chatgpt_base_url={json.dumps(base_url)}",
        # Refused before anything is sent or stored.
        'forced_login_method="chatgpt"',
        "feedback.enabled=false",
        'cli_auth_credentials_store="file"',
        f"mcp_servers.probe={{command={json.dumps(sys.executable)},args=[{json.dumps(str(server))}]}}",
    )
    return AppServerConfig(codex_bin=codex_bin, cwd=work, env=env, config_overrides=overrides, experimental_api=False)


def ask_connection(probe: Probe) -> None:
    info = {"name": "probe", "title": "Probe of the methods", "version": "0"}
    params = {"client_info": info, "capabilities": {"experimental_api": False}}
    agent = probe.need("initialize", params).user_agent
    probe.client.notify("initialized")
    if f"/{RUNTIME_VERSION} " not in str(agent):
        raise ProbeError(f"the SDK is for codex {RUNTIME_VERSION}, this is {agent!r}; run generate-types for it first")


def ask_account(probe: Probe) -> None:
    probe.ask("account/gatewayOAuth/cancel")
    probe.ask("account/gatewayOAuth/login")
    probe.ask("account/gatewayOAuth/read")
    probe.ask("account/login/cancel", {"login_id": NOBODY})
    probe.ask("account/login/start", {"type": "apiKey", "api_key": "none"})
    probe.ask("account/logout")
    probe.ask("account/rateLimitResetCredit/consume", {"idempotency_key": "probe"})
    probe.ask("account/rateLimits/read", {})
    probe.ask("account/read", {})
    probe.ask("account/sendAddCreditsNudgeEmail", {"credit_type": "credits"})
    probe.ask("account/usage/read", {})
    probe.ask("account/workspaceMessages/read")
    probe.ask("feedback/upload", {"classification": "bug", "include_logs": False})


def ask_config(probe: Probe, work: Path) -> None:
    edit = {"key_path": "model_verbosity", "value": "low", "merge_strategy": "replace"}
    probe.ask("config/batchWrite", {"edits": [edit]})
    probe.ask("config/mcpServer/reload")
    probe.ask("config/read", {})
    probe.ask("config/value/write", edit)
    probe.ask("configRequirements/read")
    probe.ask("experimentalFeature/enablement/set", {"enablement": {}})
    probe.ask("experimentalFeature/list", {})
    probe.ask("hooks/list", {"cwds": [str(work)]})
    probe.ask("model/list", {})
    probe.ask("modelProvider/capabilities/read", {})
    probe.ask("permissionProfile/list", {})
    probe.ask("skills/config/write", {"name": "none", "enabled": False})
    probe.ask("skills/extraRoots/set", {"extra_roots": []})
    probe.ask("skills/list", {"cwds": [str(work)]})


def ask_files(probe: Probe, work: Path) -> None:
    directory, file = str(work / "box"), str(work / "box" / "note")
    probe.ask("fs/createDirectory", {"path": directory})
    probe.ask("fs/writeFile", {"path": file, "data_base64": in_base64("hello")})
    probe.ask("fs/readFile", {"path": file})
    probe.ask("fs/getMetadata", {"path": file})
    probe.ask("fs/copy", {"source_path": file, "destination_path": f"{file}-copy"})
    probe.ask("fs/readDirectory", {"path": directory})
    probe.ask("fuzzyFileSearch", {"query": "note", "roots": [str(work)]})
    probe.ask("fs/watch", {"path": directory, "watch_id": "box"})
    probe.ask("fs/unwatch", {"watch_id": "box"})
    probe.ask("fs/remove", {"path": directory, "recursive": True})


def ask_command(probe: Probe) -> None:
    command: dict[str, Any] = {
        "command": ["sh", "-c", "echo ready; exec cat"],
        "process_id": "cat",
        "tty": True,
        "stream_stdin": True,
        "stream_stdout_stderr": True,
        "sandbox_policy": {"type": "dangerFullAccess"},
    }
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(probe.ask, "command/exec", command)
        probe.wait_for("command/exec/outputDelta")
        probe.ask("command/exec/write", {"process_id": "cat", "delta_base64": in_base64("hello\n")})
        probe.ask("command/exec/resize", {"process_id": "cat", "size": {"rows": 24, "cols": 80}})
        probe.ask("command/exec/terminate", {"process_id": "cat"})
        running.result()


def ask_plugins(probe: Probe, work: Path) -> None:
    marketplace = work / "marketplace"
    listing = marketplace / ".agents" / "plugins" / "marketplace.json"
    policy = {"installation": "AVAILABLE", "authentication": "ON_INSTALL"}
    source = {"source": "local", "path": "./plugins/greeter"}
    write_json(listing, {"name": "market", "plugins": [{"name": "greeter", "source": source, "policy": policy}]})
    manifest = {"name": "greeter", "version": "1.0.0", "description": "Greets."}
    write_json(marketplace / "plugins" / "greeter" / ".codex-plugin" / "plugin.json", manifest)
    plugin = {"plugin_name": "greeter", "marketplace_path": str(listing)}
    probe.ask("marketplace/add", {"source": str(marketplace)})
    probe.ask("marketplace/upgrade", {})
    probe.ask("plugin/list", {"marketplace_kinds": ["local"]})
    probe.ask("plugin/read", plugin)
    probe.ask("plugin/install", plugin)
    probe.ask("plugin/installed", {})
    probe.ask("plugin/reconcile", {})
    probe.ask("plugin/uninstall", {"plugin_id": "greeter@market"})
    probe.ask("marketplace/remove", {"marketplace_name": "market"})
    targets = {"remote_plugin_id": "none", "discoverability": "PRIVATE", "share_targets": []}
    probe.ask("plugin/share/checkout", {"remote_plugin_id": "none"})
    probe.ask("plugin/share/delete", {"remote_plugin_id": "none"})
    probe.ask("plugin/share/list", {})
    probe.ask("plugin/share/save", {"plugin_path": str(marketplace / "plugins" / "greeter")})
    probe.ask("plugin/share/updateTargets", targets)
    skill = {"remote_marketplace_name": "market", "remote_plugin_id": "none", "skill_name": "none"}
    probe.ask("plugin/skill/read", skill)


def ask_threads(probe: Probe) -> None:
    thread_id = probe.need("thread/start", {}).thread.id
    thread = {"thread_id": thread_id}
    first = probe.need("turn/start", {**thread, "input": text("[[text one]]")}).turn.id
    probe.client.wait_for_turn_completed(first)
    second = start_turn(probe, thread_id, "[[text two]]")
    probe.client.wait_for_turn_completed(second)
    probe.ask("thread/revert", {**thread, "before_turn_id": second})

    hanging = start_turn(probe, thread_id, "[[hang]]")
    notifications = probe.client.turn_notifications(hanging)
    while next(notifications).method != "turn/started":
        pass
    probe.ask("turn/steer", {**thread, "expected_turn_id": hanging, "input": text("Hurry.")})
    probe.ask("turn/interrupt", {**thread, "turn_id": hanging})
    for _ in notifications:
        pass
    review = probe.need("review/start", {**thread, "target": {"type": "custom", "instructions": "Look."}})
    probe.client.wait_for_turn_completed(review.turn.id)
    probe.ask("thread/shellCommand", {**thread, "command": "true"})
    probe.wait_for_turn_of(thread_id)
    probe.ask("thread/compact/start", thread)
    probe.wait_for_turn_of(thread_id)
    denied = {
        "id": "none",
        "turn_id": hanging,
        "started_at_ms": 0,
        "status": "denied",
        "risk_level": "high",
        "rationale": "None.",
        "action": {"type": "command", "source": "shell", "command": "true", "cwd": "/"},
    }
    probe.ask("thread/approveGuardianDeniedAction", {**thread, "event": denied})
    message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]}
    probe.ask("thread/inject_items", {**thread, "items": [message]})
    probe.ask("mcpServer/tool/call", {**thread, "server": "probe", "tool": "greet"})

    probe.ask("thread/name/set", {**thread, "name": "probe"})
    probe.ask("thread/metadata/update", {**thread, "git_info": {"branch": "main"}})
    probe.ask("thread/goal/set", {**thread, "objective": "None.", "status": "paused"})
    probe.ask("thread/goal/get", thread)
    probe.ask("thread/goal/clear", thread)
    attachment = {"attachment_type": "note", "identity_key": "one"}
    probe.ask("thread/attachment/add", {**thread, **attachment, "payload": {}})
    probe.ask("thread/attachment/list", thread)
    probe.ask("thread/attachmentOwner/list", attachment)
    probe.ask("thread/attachment/remove", {**thread, **attachment})
    section = {"section_id": probe.need("threadSection/create", {"name": "one"}).section.id}
    probe.ask("threadSection/list", {})
    probe.ask("threadSection/update", {**section, "name": "two"})
    probe.ask("thread/section/move", {**thread, **section})
    probe.ask("threadSection/delete", section)

    probe.ask("thread/list", {})
    probe.ask("thread/loaded/list", {})
    probe.ask("thread/read", thread)
    probe.ask("thread/turns/list", thread)
    probe.ask("thread/items/list", thread)
    fork = probe.need("thread/fork", thread).thread.id
    probe.ask("thread/delete", {"thread_id": fork})
    probe.ask("thread/unsubscribe", thread)
    probe.ask("thread/archive", thread)
    probe.ask("thread/unarchive", thread)
    probe.ask("thread/resume", thread)


def ask_hosts(probe: Probe, work: Path) -> None:
    """The methods that need what lies outside: apps, MCP servers, other agents, Windows."""
    probe.ask("app/installed", {})
    probe.ask("app/list", {})
    probe.ask("app/read", {"app_ids": ["none"]})
    probe.ask("mcpServer/oauth/login", {"name": "probe"})
    probe.ask("mcpServer/resource/read", {"server": "probe", "uri": "probe://greeting"})
    probe.ask("mcpServerStatus/list", {})
    probe.ask("externalAgentConfig/detect", {"cwds": [str(work)], "include_home": False})
    probe.ask("externalAgentConfig/import", {"migration_items": []})
    probe.ask("externalAgentConfig/import/recordHistory", {"provider_id": "probe", "item_type_results": []})
    probe.ask("externalAgentConfig/import/readHistories")
    probe.ask("windowsSandbox/readiness")
    probe.ask("windowsSandbox/setupStart", {"mode": "unelevated"})


def start_turn(probe: Probe, thread_id: str, prompt: str) -> str:
    turn = probe.client.request("turn/start", {"thread_id": thread_id, "input": text(prompt)}, timeout_s=LIMIT_S).turn
    return str(turn.id)


def text(prompt: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": prompt}]


def in_base64(content: str) -> str:
    return base64.b64encode(content.encode()).decode()


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def render(outcomes: dict[str, Outcome]) -> str:
    """The page: the same for the same codex, whenever and wherever it is made."""
    answered = sum(outcome.refusal is None for outcome in outcomes.values())
    lines = []
    for method, outcome in sorted(outcomes.items()):
        request = REQUESTS[method]
        params = f"`{request.params}`" if request.params else "none"
        last = "yes" if outcome.refusal is None else outcome.refusal
        lines.append(f"| `{method}` | {params} | `{request.result}` | {request.scope} | {last} |\n")
    prelude = PRELUDE.format(total=len(outcomes), answered=answered, version=RUNTIME_VERSION)
    return prelude + "".join(lines) + REFUSALS + "".join(refusals())


def refusals() -> Iterator[str]:
    """The rows of what a pool refuses, experimental methods included, by the reason."""
    by_reason: dict[str, list[str]] = {}
    for method, reason in sorted(REFUSED.items()):
        by_reason.setdefault(reason, []).append(f"`{method}`")
    for reason, methods in sorted(by_reason.items(), key=lambda item: item[1]):
        yield f"| {', '.join(methods)} | {reason} |\n"


def differences(written: str, found: str) -> list[str]:
    """The lines in which the page and the runtime differ, `-` as written and `+` as found; empty when they agree."""
    before, after = written.splitlines(), found.splitlines()
    return list(difflib.unified_diff(before, after, "as written", "as codex answers", lineterm="", n=0))


def main() -> int:
    """The command line: 1 when rows differ or the probe cannot go on."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare with what is written, write nothing")
    parser.add_argument("--codex-bin", type=Path, help="the codex to ask (default: that of openai-codex-cli-bin)")
    parser.add_argument("--incomplete", action="store_true", help="list methods that are not asked, instead of failing")
    arguments = parser.parse_args()
    try:
        found = render(probe(arguments.codex_bin, is_complete=not arguments.incomplete))
    except (ProbeError, AppServerError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not arguments.check:
        TABLE.write_text(found, encoding="utf-8", newline="\n")
        return 0
    differing = differences(TABLE.read_text(encoding="utf-8") if TABLE.exists() else "", found)
    print("\n".join(differing) if differing else f"{TABLE.name} agrees with codex {RUNTIME_VERSION}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
