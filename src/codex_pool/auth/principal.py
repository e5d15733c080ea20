"""Identity: the principal behind a key, and which methods it may call at all. Pure."""

from __future__ import annotations

import msgspec

from codex_app_server.generated.routing import REQUESTS

from ..protocol import json_bounds
from ..sandbox_modes import FULL_ACCESS, READ_ONLY, WORKSPACE_WRITE, SandboxMode
from ..sandbox_modes import SANDBOX_MODES as SANDBOX_MODES
from .access import ACCESS, Rule

# A frame beyond it ends the connection that it comes on; below it each identity has its own bound.
MAX_MESSAGE_BYTES = 32 * 1024 * 1024
# Of one request: a decoded value may take 40 times its text.
MAX_VALUES = 50_000
# Of the id of a request: the pool remembers thousands of them. (An app-server has no bound.)
MAX_ID_CHARS = 1024
# Of a share of turns: a principal of 20 has two turns begin for one of a principal of 10.
DEFAULT_PRIORITY = 10
MAX_PRIORITY = 100
FULL = FULL_ACCESS
LEVEL: dict[str, int] = {mode: level for level, mode in enumerate(SANDBOX_MODES)}


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The principal behind a key, and what it may do.

    `principal` is the id under which the pool knows it: random, made with its first key, and kept when the key is
    renewed. `name` is for people; a former principal of the same name is another one.
    An `admin` may do what the pool's owner may over ipc, with all threads; of the rest only the bounds count then.
    `methods` are granted beside DEFAULT_METHODS; `fs/*` is all that begin so. `sandbox` is the widest that its threads
    may have, `cwd_roots` the directories that they may work in or below.
    `max_turns` bounds turns that run and wait together, and `max_running_turns` and `max_waiting_turns` each of them.
    Tokens are input and output together, spend is in the currency of the pool's prices, and a day is of UTC; None is no
    limit. `priority` is its share of turns beside other principals, of which the pool's owner has DEFAULT_PRIORITY.
    """

    name: str
    principal: str = ""
    admin: bool = False
    methods: tuple[str, ...] = ()
    sandbox: SandboxMode = READ_ONLY
    cwd_roots: tuple[str, ...] = ()
    max_message_bytes: int = 8 * 1024 * 1024
    max_sessions: int = 16
    max_threads: int = 10_000
    max_turns: int = 256
    max_running_turns: int | None = None
    max_waiting_turns: int | None = None
    max_tokens_per_day: int | None = None
    max_tokens: int | None = None
    max_spend_per_day: float | None = None
    max_spend: float | None = None
    priority: int = DEFAULT_PRIORITY

    @property
    def counts_usage(self) -> bool:
        """True if it has a limit of tokens or spend."""
        return any(limit is not None for limit in (self.max_tokens_per_day, self.max_tokens)) or self.counts_spend

    @property
    def counts_spend(self) -> bool:
        """True if it has a limit of spend."""
        return self.max_spend_per_day is not None or self.max_spend is not None


POOL_METHODS = frozenset(
    {
        "pool/cancel",
        "pool/sessions/list",
        "pool/status",
        "pool/threads/list",
        "pool/turn/follow",
        "pool/turns/list",
        "pool/usage",
        "pool/workers/list",
    }
)

_ALWAYS = frozenset({"own", "computed", "harmless", "empty"})
_LEVELS: dict[str, SandboxMode] = {
    "granted-workspace-write": WORKSPACE_WRITE,
    "granted-danger-full-access": FULL,
}

# Those that every key opens; those that a grant alone does not open, because they act outside of every sandbox, or
# write files.
DEFAULT_METHODS = POOL_METHODS | {method for method, rule in ACCESS.items() if rule in _ALWAYS}
NEEDS: dict[str, SandboxMode] = {method: _LEVELS[rule] for method, rule in ACCESS.items() if rule in _LEVELS}


def size_problem(identity: Identity, line: bytes) -> str | None:
    """Return why a line is more than this identity may send, before it is decoded; None if it is not."""
    if len(line) > identity.max_message_bytes:
        return (
            f"a request of {len(line)} bytes; the key of {identity.name} allows {identity.max_message_bytes} bytes a "
            "message: send less, or ask the pool's owner for a higher --max-message-bytes"
        )
    if json_bounds.has_more_values(line, MAX_VALUES):
        return f"a request of more than {MAX_VALUES} values; send less"
    return None


def rule_of(method: str) -> Rule:
    """The rule for a method; one without a decision is refused."""
    return ACCESS.get(method, "own" if method in POOL_METHODS else "refused")


def granted(identity: Identity, method: str) -> bool:
    """True for a method that this identity may call at all."""
    if identity.admin or method in DEFAULT_METHODS:
        return True
    return rule_of(method) != "refused" and any(_matches(pattern, method) for pattern in identity.methods)


def known_pattern(pattern: str) -> bool:
    """Return True if a method, or a pattern such as `fs/*`, names anything that can be called."""
    return any(_matches(pattern, method) for method in {*REQUESTS, *POOL_METHODS})


def _matches(pattern: str, method: str) -> bool:
    return method == pattern or (pattern.endswith("/*") and method.startswith(pattern[:-1]))
