"""Requests that read a project on their own, and the treatment of each for a client below full access. Pure data.

A project is what codex takes from a working directory: `.codex/`, `.agents/`, AGENTS.md. Measured on
codex 0.163.0, each method with a home that trusts the directory and with one that does not.
"""

from __future__ import annotations

from typing import Any, Literal

from codex_app_server.generated.routing import REQUESTS

from ..protocol import thread_records
from .principal import FULL, NEEDS, POOL_METHODS

Treatment = Literal["untrusted", "loaded", "without", "full", "refused", "none"]

# Parameters that name a project, and the value that is sent in their place; None leaves them out. Without `cwds` the
# skills and hooks of the directory of the app-server would be listed. With a thread, mcpServerStatus/list runs the
# MCP servers of its directory if the home trusts it, whatever the thread was started with.
WITHOUT: dict[str, dict[str, Any]] = {
    "config/read": {"cwd": None},
    "externalAgentConfig/detect": {"cwds": None},
    "hooks/list": {"cwds": ["/"]},
    "mcpServerStatus/list": {"threadId": None},
    "permissionProfile/list": {"cwd": None},
    "plugin/installed": {"cwds": None},
    "plugin/list": {"cwds": None},
    "plugin/search": {"cwds": None},
    "skills/list": {"cwds": ["/"]},
}

# They read no project: what they answer is the same wherever they are asked from, or it is files as such.
_NONE_WORDS = """
    account/bedrock/checkGovCloudRequirements account/bedrock/discover account/gatewayOAuth/cancel
    account/gatewayOAuth/read account/rateLimitResetCredit/consume account/rateLimits/read account/read
    account/sendAddCreditsNudgeEmail account/usage/read account/workspaceMessages/read app/installed app/list app/read
    collaborationMode/list command/exec command/exec/resize command/exec/terminate command/exec/write
    configRequirements/read environment/info environment/status experimentalFeature/list
    externalAgentConfig/import/readHistories fs/copy fs/createDirectory fs/getMetadata fs/readDirectory fs/readFile
    fs/remove fs/unwatch fs/watch fs/writeFile fuzzyFileSearch fuzzyFileSearch/sessionStart
    fuzzyFileSearch/sessionStop fuzzyFileSearch/sessionUpdate initialize mcpServer/resource/read memory/reset
    memory/status mock/experimentalMethod model/list modelProvider/capabilities/read plugin/read plugin/share/delete
    plugin/share/list plugin/share/save plugin/share/updateTargets plugin/skill/read process/kill process/resizePty
    process/writeStdin rollout/compress server/diagnostics thread/attachmentOwner/list thread/list thread/loaded/list
    thread/realtime/listVoices thread/search
"""
_NONE = frozenset(_NONE_WORDS.split()) | POOL_METHODS


def treatment(method: str) -> Treatment | None:
    """Treatment of a request of a client below full access; None: there is no decision, so it is refused.

    `untrusted`: its thread gets the project as untrusted. `loaded`: it acts on a thread that has been treated so.
    `without`: answered without the project. `full`: for full access only. `none`: it reads no project.
    """
    entry = REQUESTS.get(method)
    if method in thread_records.LOADS_THREAD:
        return "untrusted"
    if NEEDS.get(method) == FULL:
        return "full"
    if entry is not None and entry.scope in ("refused", "unassigned"):
        return "refused"
    if method in WITHOUT:
        return "without"
    if method in _NONE:
        return "none"
    is_of_thread = entry is not None and entry.thread is not None and entry.scope in ("owner", "session")
    return "loaded" if is_of_thread else None
