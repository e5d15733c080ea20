"""Who stands behind a key, and which methods that one may call at all. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from codex_app_server.generated.routing import REQUESTS

SandboxMode = Literal["read-only", "workspace-write", "danger-full-access"]
SANDBOX_MODES: tuple[SandboxMode, ...] = ("read-only", "workspace-write", "danger-full-access")
# A frame beyond it ends the connection that it comes on; below it each identity has its own bound.
MAX_MESSAGE_BYTES = 32 * 1024 * 1024
FULL = "danger-full-access"
LEVEL: dict[str, int] = {mode: level for level, mode in enumerate(SANDBOX_MODES)}


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a key stands for, and what that one may do.

    `principal` is the id under which the pool knows it: random, made with its first key, and kept when the key is
    renewed. `name` is for people; whoever had that name before is another principal.
    `methods` are granted beside DEFAULT_METHODS; `fs/*` is all that begin so. `sandbox` is the widest that its threads
    may have, `cwd_roots` the directories that they may work in or below.
    """

    name: str
    principal: str = ""
    methods: tuple[str, ...] = ()
    sandbox: SandboxMode = "read-only"
    cwd_roots: tuple[str, ...] = ()
    max_message_bytes: int = 8 * 1024 * 1024
    max_sessions: int = 16
    max_threads: int = 10_000
    max_turns: int = 256


DEFAULT_METHODS = frozenset(
    {
        "initialize",
        "pool/cancel",
        "pool/status",
        "pool/turn/follow",
        "review/start",
        "thread/archive",
        "thread/attachment/add",
        "thread/attachment/list",
        "thread/attachment/remove",
        "thread/backgroundTerminals/clean",
        "thread/backgroundTerminals/list",
        "thread/backgroundTerminals/terminate",
        "thread/compact/start",
        "thread/delete",
        "thread/fork",
        "thread/goal/clear",
        "thread/goal/get",
        "thread/goal/set",
        "thread/items/list",
        "thread/items/read",
        "thread/list",
        "thread/loaded/list",
        "thread/metadata/update",
        "thread/name/set",
        "thread/prediction/request",
        "thread/queue/add",
        "thread/queue/delete",
        "thread/queue/list",
        "thread/queue/reorder",
        "thread/queue/start",
        "thread/queue/update",
        "thread/read",
        "thread/readState/update",
        "thread/resume",
        "thread/revert",
        "thread/searchOccurrences",
        "thread/settings/update",
        "thread/start",
        "thread/timeline/list",
        "thread/turns/list",
        "thread/unarchive",
        "thread/unsubscribe",
        "turn/interrupt",
        "turn/settings/update",
        "turn/start",
        "turn/steer",
        # Those that only read, and nothing of a person's.
        "collaborationMode/list",
        "experimentalFeature/list",
        "model/list",
        "modelProvider/capabilities/read",
        "permissionProfile/list",
        "skills/list",
        "thread/realtime/listVoices",
    }
)
POOL_METHODS = frozenset({"pool/cancel", "pool/status", "pool/turn/follow"})

# What a grant alone does not open, because it acts outside of every sandbox, writes files, or changes every thread.
NEEDS: dict[str, SandboxMode] = {
    "account/bedrock/setup": "danger-full-access",
    "account/gatewayOAuth/login": "danger-full-access",
    "account/login/cancel": "danger-full-access",
    "account/login/start": "danger-full-access",
    "account/logout": "danger-full-access",
    "config/batchWrite": "danger-full-access",
    "config/mcpServer/reload": "danger-full-access",
    "config/value/write": "danger-full-access",
    "environment/add": "danger-full-access",
    "experimentalFeature/enablement/set": "danger-full-access",
    "fs/copy": "workspace-write",
    "fs/createDirectory": "workspace-write",
    "fs/remove": "workspace-write",
    "fs/writeFile": "workspace-write",
    "marketplace/add": "danger-full-access",
    "marketplace/remove": "danger-full-access",
    "marketplace/upgrade": "danger-full-access",
    "mcpServer/oauth/login": "danger-full-access",
    "mcpServer/tool/call": "danger-full-access",
    "plugin/install": "danger-full-access",
    "plugin/reconcile": "danger-full-access",
    "plugin/share/checkout": "danger-full-access",
    "plugin/uninstall": "danger-full-access",
    "process/spawn": "danger-full-access",
    "skills/config/write": "danger-full-access",
    "skills/extraRoots/set": "danger-full-access",
    "thread/approveGuardianDeniedAction": "danger-full-access",
    "thread/inject_items": "danger-full-access",
    "thread/shellCommand": "danger-full-access",
}


def granted(identity: Identity, method: str) -> bool:
    """Whether this identity may call this method at all."""
    return method in DEFAULT_METHODS or any(_matches(pattern, method) for pattern in identity.methods)


def known_pattern(pattern: str) -> bool:
    """Whether a method, or a pattern such as `fs/*`, names anything that can be called."""
    return any(_matches(pattern, method) for method in {*REQUESTS, *POOL_METHODS})


def _matches(pattern: str, method: str) -> bool:
    return method == pattern or (pattern.endswith("/*") and method.startswith(pattern[:-1]))
