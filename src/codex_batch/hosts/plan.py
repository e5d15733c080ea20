"""HostPlan: what a host is to do for a run: its settings, its scorers, its configuration of codex.

A run makes it, and only its hosts unpickle it. They run what the run says anyway: commands, hooks, agents.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server import InvalidInputError
from codex_app_server.home import codex_home
from codex_pool.account.auth_file import UnreadableError
from codex_pool.account.lending import Lender
from codex_pool.prices import Prices

from ..configuration.effective import Effective
from ..configuration.settings import Settings
from ..redaction.redactor import Redactor
from ..run import home
from ..scoring import Scorers
from .bundle import Bundle

CONFIG, LOGIN = "config.toml", "auth.json"
# Of an auth.json with a ChatGPT log-in.
_TOKENS = "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlan:
    """See the module's docstring. `scorers` are specs that name trees of a bundle, `trees` those that they need."""

    settings: Settings
    guarded: bool
    scorers: list[dict[str, Any]]
    trees: tuple[str, ...]
    prices: Prices | None
    effective: Mapping[str, Effective]
    config: bytes | None
    """The config.toml of the CODEX_HOME that the run is of; None if it has none."""
    environment: Mapping[str, str] = field(repr=False)
    """Variables that the user has named, for the log-in."""
    login: bytes | None = field(repr=False)
    """The auth.json that the user has named; of a ChatGPT log-in without its refresh token."""
    is_lent: bool = False
    """True if the run renews the tokens of the log-in."""
    redactor: Redactor = field(repr=False)

    def to_bytes(self) -> bytes:
        """Return it as bytes."""
        return pickle.dumps(self)

    @staticmethod
    def from_bytes(data: bytes) -> HostPlan:
        """Return the plan that `to_bytes` was called on."""
        plan = pickle.loads(data)
        assert isinstance(plan, HostPlan)
        return plan


def make_plan(
    settings: Settings,
    *,
    bundle: Bundle,
    scorers: Scorers,
    prices: Prices | None,
    effective: Mapping[str, Effective],
    guarded: bool,
    redactor: Redactor,
    lender: Lender | None,
) -> HostPlan:
    """Return the plan of a run. Raises InvalidInputError for a log-in that cannot be used there, and OSError.

    `lender` has the log-in that the user has named, see `make_lender`.
    """
    hosts = settings.hosts
    assert hosts is not None
    missing = [name for name in hosts.environment if name not in os.environ]
    if missing:
        raise InvalidInputError(f"--ray-env {missing[0]}: this variable is not set here; set it, or do not name it")
    specs, trees = bundle.scorers(scorers.run)
    directory = codex_home() if settings.home in (home.RUN, home.USER) else Path(settings.home)
    config = directory / CONFIG
    of_host = dataclasses.replace(
        settings,
        scorers=(),
        gates=type(settings.gates)(),
        run_limits=type(settings.run_limits)(),
        estimate=None,
        notify=None,
        home=home.RUN,
        prices=None,
        retries=0,
        fresh=False,
        as_json=False,
        hosts=None,
    )
    return HostPlan(
        settings=of_host,
        guarded=guarded,
        scorers=specs,
        trees=trees,
        prices=prices,
        effective=effective,
        config=None if settings.demo or not config.is_file() else config.read_bytes(),
        environment={name: os.environ[name] for name in hosts.environment},
        login=_login(hosts.login, lender),
        is_lent=lender is not None,
        redactor=redactor,
    )


def make_lender(path: Path | None) -> Lender | None:
    """Return the lender of the log-in in an auth.json; None for a key, or without a file. Raises InvalidInputError."""
    if path is None or not _read(path).get(_TOKENS):
        return None
    return Lender(str(path), os.environ)


def _login(path: Path | None, lender: Lender | None) -> bytes | None:
    """The auth.json that a user has named, as hosts get it. Raises InvalidInputError."""
    if path is None:
        return None
    try:
        return msgspec.json.encode(_read(path)) if lender is None else lender.copy()
    except UnreadableError as error:
        raise InvalidInputError(f"--ray-login {path}: {error}; expected the auth.json of a log-in that works") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInputError(f"--ray-login {path}: {error}; expected an auth.json of codex") from None
