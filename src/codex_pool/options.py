"""PoolOptions: every option of a pool, once - its type, default, bound, unit and help text.

`Pool`, the verbs that make a pool (`serve`, `batch`, `score`), their `--pool-config` files, the supervisor's start
arguments and docs/reference/pool-options.md derive from it. A new option is a new field here; `make options` then
writes the keywords of `Pool` and the page again.

Pure, and quick to import: `codex-pool VERB --help` loads it.
"""

from __future__ import annotations

import functools
import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

# Titles of the groups that help and docs list options in.
Group = Literal["Workers", "Connections", "Users", "Recycling", "Limits of turns", "Stopping"]
GROUPS: tuple[Group, ...] = ("Workers", "Connections", "Users", "Recycling", "Limits of turns", "Stopping")
# Values of `Option.takes` that may be given as a path.
TAKES_PATHS = ("address", "path")
# Groups of options of which a daemon that runs takes new values.
LIVE: tuple[Group, ...] = ("Workers", "Recycling", "Limits of turns")
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_UNITS = {"s": " of seconds", "bytes": " of bytes"}


class Option(NamedTuple):
    """Facts about an option that its type and its default do not state.

    `help` is a sentence. `unit`: "s", "bytes", or "" for a count or a text. `metavar`: of its value, on the command
    line. `has_envvar`: a daemon takes it from an environment variable too. `default`: words for a default of None,
    where that is not "no limit". `takes`: "address" for an endpoint, which may be given as the path of its socket,
    "path" for a file or a directory, "name" for a text that is no address. `alias`: another flag for it.
    """

    group: Group
    help: str
    metavar: str = "N"
    unit: str = ""
    has_envvar: bool = True
    default: str = "no limit"
    takes: Literal["", "address", "path", "name"] = ""
    alias: str = ""


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a pool. Raises InvalidInputError for a value that none can have; None is no limit."""

    workers: Annotated[int, Option("Workers", "App-server processes.")] = 2
    turns_per_worker: Annotated[
        int, Option("Workers", "Turns that run at once on one app-server; further ones wait.")
    ] = 8
    endpoint: Annotated[
        str | None,
        Option(
            "Connections",
            "Where clients connect.",
            metavar="ipc:///PATH",
            # CODEX_POOL_ENDPOINT is where clients connect, which may be another machine.
            has_envvar=False,
            default="a socket in the user's runtime directory",
            takes="address",
        ),
    ] = None
    listen: Annotated[
        str | None,
        Option(
            "Connections",
            "Where clients with a key connect as well; `codex-pool keys new NAME` makes one.",
            metavar="tcp://HOST:PORT",
            default="nowhere",
        ),
    ] = None
    listen_unix: Annotated[
        str | None,
        Option(
            "Connections",
            "Unix socket for clients of `codex app-server`, such as `codex --remote unix://PATH`.",
            metavar="PATH",
            default="nowhere",
            takes="path",
        ),
    ] = None
    listen_group: Annotated[
        str | None,
        Option(
            "Connections",
            "Group whose users may connect there too; `codex-pool keys new NAME --unix-user USER` says as whom.",
            metavar="GROUP",
            alias="--group",
            default="only this user may",
            takes="name",
        ),
    ] = None
    listen_ws: Annotated[
        str | None,
        Option(
            "Connections",
            "WebSocket for clients with the token of a key, such as `codex --remote ws://HOST:PORT`.",
            metavar="HOST:PORT",
            default="nowhere",
        ),
    ] = None
    insecure_no_auth: Annotated[
        bool,
        Option("Connections", "Ask for no token there, so that every local user may do what this user may."),
    ] = False
    tls_cert: Annotated[
        str | None,
        Option(
            "Connections",
            "Certificates of the WebSocket and of HTTP, in PEM, for wss://HOST:PORT and https://HOST:PORT.",
            metavar="FILE",
            default="no TLS, on loopback only",
            takes="path",
        ),
    ] = None
    tls_key: Annotated[
        str | None,
        Option(
            "Connections", "Private key of the first certificate, in PEM.", metavar="FILE", default="none", takes="path"
        ),
    ] = None
    allow_host: Annotated[
        str | None,
        Option(
            "Connections",
            "Further names that clients may call the host of the WebSocket and of HTTP by, separated by commas.",
            metavar="NAME,...",
            default="HOST, localhost and loopback addresses",
            takes="name",
        ),
    ] = None
    listen_http: Annotated[
        str | None,
        Option(
            "Connections",
            "HTTP for probes and metrics: /healthz, /readyz and, with a token, /metrics for Prometheus.",
            metavar="HOST:PORT",
            default="nowhere",
        ),
    ] = None
    metrics_token: Annotated[
        str | None,
        Option(
            "Connections",
            "File with the token that /metrics asks for, beside those of admin keys.",
            metavar="FILE",
            default="none",
            takes="path",
        ),
    ] = None
    traces: Annotated[
        bool,
        Option("Connections", "Send OpenTelemetry traces of turns by OTLP over HTTP, where OTEL_* variables say."),
    ] = False
    control_socket: Annotated[
        bool,
        Option("Connections", "Listen where a plain `codex` looks for its daemon, so that it uses this pool."),
    ] = False
    keys: Annotated[
        str | None,
        Option(
            "Connections",
            "Directory of the keys.",
            metavar="DIR",
            default="$CODEX_POOL_KEYS, else codex-pool/keys in the user's configuration",
            takes="path",
        ),
    ] = None
    log_file: Annotated[
        str | None,
        Option(
            "Connections",
            "Log of the pool's processes, opened again after it was removed or rotated.",
            metavar="FILE",
            default="stderr",
            takes="path",
        ),
    ] = None
    prices: Annotated[
        str | None,
        Option(
            "Users",
            "Prices of tokens by model, for limits of spend and `codex-pool usage`; `litellm` is the table of an "
            "installed litellm.",
            metavar="FILE|litellm[:FILE]",
            default="none",
            takes="name",
        ),
    ] = None
    audit_log: Annotated[
        str | None,
        Option(
            "Users",
            "File for a JSON line for each decision: who asked for what, and whether it was allowed.",
            metavar="FILE",
            default="none",
            takes="path",
        ),
    ] = None
    audit_log_bytes: Annotated[
        int, Option("Users", "Size at which the audit log is rotated, to FILE.1 and so on.", unit="bytes")
    ] = 64 * 1024**2
    audit_log_files: Annotated[int, Option("Users", "Files of the audit log that are kept, with the present one.")] = 8
    recycle_turns: Annotated[int | None, Option("Recycling", "Replace a worker that has finished so many turns.")] = (
        None
    )
    recycle_threads: Annotated[int | None, Option("Recycling", "Replace a worker that has loaded so many threads.")] = (
        None
    )
    recycle_age_s: Annotated[
        float | None, Option("Recycling", "Replace a worker that has run for so many seconds.", metavar="S", unit="s")
    ] = None
    # An app-server starts with 140 MiB and keeps about 2 MiB for every thread that it has loaded.
    recycle_memory_bytes: Annotated[
        int | None,
        Option("Recycling", "Replace a worker that occupies so much memory with all below it.", unit="bytes"),
    ] = 3 * 1024**3 // 2
    # The MCP servers of ephemeral threads stay for half an hour after these were let go.
    recycle_descendants: Annotated[
        int | None,
        Option(
            "Recycling",
            "Replace a worker with so many MCP servers and commands left of turns; it loads no thread beyond.",
        ),
    ] = 32
    # Each keeps its thread loaded, with the MCP servers of that.
    waiting_turns_per_worker: Annotated[
        int,
        Option(
            "Limits of turns",
            "Turns of one app-server that may wait for an approval beside those that run; others count as running.",
        ),
    ] = 32
    approval_timeout_s: Annotated[
        float | None,
        Option(
            "Limits of turns",
            "Seconds after which an approval that no client could give is declined.",
            metavar="S",
            alias="--approval-timeout",
            unit="s",
        ),
    ] = 86400.0
    turn_idle_limit_s: Annotated[
        float | None,
        Option(
            "Limits of turns",
            "Seconds after which a turn without any event is stalled, unless a tool or an approval is open.",
            metavar="S",
            unit="s",
        ),
    ] = 600.0
    turn_wall_limit_s: Annotated[
        float | None, Option("Limits of turns", "Seconds that a turn may run at most.", metavar="S", unit="s")
    ] = None
    # With the 10 s that the end takes it is over within the 30 s that Kubernetes grants.
    drain_timeout_s: Annotated[
        float | None,
        Option(
            "Stopping",
            "Seconds that `serve` waits for running turns, after SIGTERM or `codex-pool stop`.",
            metavar="S",
            alias="--drain-timeout",
            unit="s",
        ),
    ] = 20.0

    @property
    def lets_keys_in(self) -> bool:
        """True if other clients than this user may connect, by a key."""
        has_tokens = self.listen_ws is not None and not self.insecure_no_auth
        return self.listen is not None or has_tokens or self.listen_group is not None

    @property
    def has_listener_options(self) -> bool:
        """True if anything is said about listeners for clients of `codex app-server`."""
        listeners = (self.listen_unix, self.listen_ws, self.listen_http)
        more = (self.listen_group, self.metrics_token, self.tls_cert, self.tls_key, self.allow_host)
        return any(text is not None for text in (*listeners, *more)) or self.insecure_no_auth or self.control_socket

    def __post_init__(self) -> None:
        for field in fields(type(self)):
            problem = field.problem(getattr(self, field.name), none="None")
            if problem is not None:
                raise invalid(f"{field.name} {problem}")


class Field(NamedTuple):
    """A field of PoolOptions: `kind` is int, float, str or bool; `optional`, whether it may be None."""

    name: str
    kind: type
    optional: bool
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """The option of the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def envvar(self) -> str:
        """The environment variable that a daemon takes it from; "" for none."""
        return f"CODEX_POOL_{self.name.upper()}" if self.option.has_envvar else ""

    @property
    def is_live(self) -> bool:
        """True if a daemon that runs takes a new value."""
        return self.option.group in LIVE

    def of_text(self, text: str) -> Any:
        """The value that a text states, the text itself if it states none of this type."""
        if self.kind is bool:
            return _BOOLEANS.get(text.lower(), text)
        try:
            return self.kind(text)
        except ValueError:
            return text

    def is_none(self, value: Any) -> bool:
        """True for the number that states that there is no limit, in a file, a variable or a flag: 0."""
        return self.optional and isinstance(value, int | float) and not isinstance(value, bool) and value == 0

    def expected(self, *, none: str) -> str:
        """Words for the values that it may have. `none`: how its source states that there is no limit, None or 0."""
        if self.kind is str:
            words = {"path": "a path", "name": f"a text such as {self.option.metavar}"}
            return words.get(self.option.takes, f"an address such as {self.option.metavar}")
        if self.kind is bool:
            return "true or false"
        unit = _UNITS.get(self.option.unit, "")
        number = f"a whole number{unit}, 1 or more" if self.kind is int else f"a number{unit} above 0"
        return f"{number}, or {none} for no limit" if self.optional else number

    def problem(self, value: Any, *, none: str) -> str | None:
        """Words for why it cannot have the value, to stand behind its name; None if it can."""
        if (value is None and self.optional) or self._holds(value):
            return None
        return f"is {value!r}; expected {self.expected(none=none)}"

    def _holds(self, value: Any) -> bool:
        if self.kind is str:
            return isinstance(value, str) and value != ""
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if self.kind is int:
            return isinstance(value, int) and value >= 1
        return isinstance(value, int | float) and math.isfinite(value) and value > 0


# Of a pool that a run makes for itself: no other program connects to it, and it logs into the run directory.
OF_RUNS: tuple[Group, ...] = ("Workers", "Recycling", "Limits of turns")


@functools.cache
def fields(of: type[PoolOptions] = PoolOptions, groups: tuple[Group, ...] = GROUPS) -> tuple[Field, ...]:
    """The fields of the options that are in one of the groups."""
    hints = typing.get_type_hints(of, include_extras=True)
    found: list[Field] = []
    for each in msgspec.structs.fields(of):
        hint, option = typing.get_args(hints[each.name])
        kinds = typing.get_args(hint) or (hint,)
        (kind,) = (one for one in kinds if one is not types.NoneType)
        if option.group in groups:
            found.append(Field(each.name, kind, types.NoneType in kinds, each.default, option))
    return tuple(found)


def options_of(values: Mapping[str, Any], of: type[PoolOptions] = PoolOptions) -> PoolOptions:
    """Options from keywords, with paths as strings: an endpoint may be the path of its socket.

    Raises InvalidInputError, which names the option, the value and what was expected.
    """
    plain = dict(values)
    for field in fields(of):
        value = plain.get(field.name)
        if isinstance(value, os.PathLike) and field.option.takes in TAKES_PATHS:
            path = os.path.abspath(value) if field.option.takes == "address" else os.fspath(value)
            plain[field.name] = f"ipc://{path}" if field.option.takes == "address" else path
    return of(**plain)


def invalid(message: str) -> Exception:
    """An InvalidInputError with this message."""
    # Loads nothing of the SDK until then.
    from codex_app_server.errors import InvalidInputError

    return InvalidInputError(message)
