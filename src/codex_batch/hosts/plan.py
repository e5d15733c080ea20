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
from codex_pool.prices import Prices

from ..configuration.effective import Effective
from ..configuration.settings import Settings
from ..redaction.redactor import Redactor
from ..run import home
from ..scoring import Scorers
from .bundle import Bundle

CONFIG = "config.toml"
# Of an auth.json: with them its tokens can be renewed, by one holder at a time.
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
    """The auth.json that the user has named."""
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
) -> HostPlan:
    """Return the plan of a run. Raises InvalidInputError for a log-in that cannot be used there, and OSError."""
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
        login=None if hosts.login is None else _login(hosts.login),
        redactor=redactor,
    )


def _login(path: Path) -> bytes:
    """The auth.json that a user has named. Raises InvalidInputError."""
    try:
        data = path.read_bytes()
        found = msgspec.json.decode(data, type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInputError(f"--ray-login {path}: {error}; expected an auth.json of codex with a key") from None
    if found.get(_TOKENS):
        raise InvalidInputError(
            f"--ray-login {path}: holds the tokens of a ChatGPT log-in, which one holder may renew; use a "
            "file with an API key, or name the variable of a key with --ray-env"
        )
    return data
