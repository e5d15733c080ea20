"""Configuration of a daemon, and the pool that is made of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from codex_app_server import AppServerConfig, InvalidInputError
from codex_app_server.errors import HomeError
from codex_app_server.home import codex_home

from .. import homes
from ..demo import demo_home
from ..errors import PoolStartError
from ..option_sources import ConfigSource
from ..options import PoolOptions
from ..pool import Pool
from ..protocol import endpoints
from ..runtime import endpoint_name

OWN, USER = "own", "user"
COMPARED_FEATURES = (
    "features.api_key_model_discovery",
    "features.auth_elicitation",
    "features.code_mode_host",
    "features.mcp_oauth_refresh_coordination",
)


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """Configuration of one daemon. Without an endpoint in `options` it has the user's default one.

    `home`: "user", "own", or an existing CODEX_HOME; None is "own" where keys let others in, else "user", so that
    threads are shared with `codex`. The own one is made of the user's, without the directories that it trusts.
    `source`: where the options are read again while the daemon runs.
    """

    options: PoolOptions = field(default_factory=PoolOptions)
    overrides: tuple[str, ...] = ()
    codex_bin: str | None = None
    demo: bool = False
    env: dict[str, str] = field(default_factory=dict)
    home: str | None = None
    source: ConfigSource | None = None

    @property
    def endpoint(self) -> str:
        """The address for its clients."""
        return self.options.endpoint or endpoints.default_endpoint()

    def notice(self) -> str | None:
        """Return a notice for the first start with a home of its own: the threads that stay in the user's home."""
        if self._choice != OWN:
            return None
        return homes.left_behind(homes.daemon_home(self.endpoint), codex_home({**os.environ, **self.env}))

    @property
    def _choice(self) -> str:
        if self.demo:
            return USER
        return self.home or (OWN if self.options.lets_keys_in else USER)

    def _home(self, endpoint: str) -> Path:
        choice = self._choice
        user = codex_home({**os.environ, **self.env})
        if choice == OWN:
            return homes.make_home(homes.daemon_home(endpoint), user, follow=True)
        path = user if choice == USER else Path(choice).expanduser().absolute()
        if choice != USER and not path.is_dir():
            raise InvalidInputError(
                f"--home {choice}: {path} is not a directory; give own, user, or an existing CODEX_HOME"
            )
        return path

    def named(self, message: str) -> str:
        """A message about the configuration of a home of the daemon's own, as one about the user's it is made of."""
        if self._choice != OWN:
            return message
        own = homes.daemon_home(self.endpoint)
        return homes.ConfigCopy(own, codex_home({**os.environ, **self.env})).named(message)

    @contextmanager
    def pool(self) -> Iterator[Pool]:
        """The pool, not started yet. With `demo` the loopback model runs as long as the context lasts.

        Raises EndpointError, HomeError, InvalidInputError, and PoolStartError while another pool holds the endpoint.
        """
        if self.options.control_socket:
            self._check_control_socket()
        endpoint = self.endpoint
        path = endpoints.ipc_path(endpoint)
        endpoints.check_private(path.parent)
        # Before the home, which the other one may use, is changed. The lock decides what this does not see.
        holder = endpoint_name.holder(path)
        if holder is not None:
            raise PoolStartError(
                f"a pool is already running on {endpoint} (supervisor pid {holder or 'unknown'}); stop it or use "
                "another endpoint"
            )
        if not self.demo:
            yield self._pool(endpoint, {"CODEX_HOME": str(self._home(endpoint))})
            return
        home = homes.demo_home_of(endpoint)
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HomeError(
                f"{home}, the home of --demo, cannot be made: {error.strerror}; set XDG_STATE_HOME to a directory that "
                "can be written"
            ) from None
        with demo_home(home):
            yield self._pool(endpoint, {"CODEX_HOME": str(home)})

    def _check_control_socket(self) -> None:
        """Check that a plain `codex` would use the pool behind the control socket. Raises InvalidInputError."""
        if self._choice == OWN:
            raise InvalidInputError(
                "--control-socket is where codex looks in your home, and this daemon has one of its own; "
                "add --home user, or leave out --control-socket"
            )
        # codex compares these with its own before it uses a daemon (measured with 0.163).
        for override in self.overrides:
            name, _, _ = override.partition("=")
            if name.strip() in COMPARED_FEATURES:
                raise InvalidInputError(
                    f"-c {override}: codex does not use a daemon whose {name.strip()} differs from its own; set it in "
                    "config.toml, where both read it, or leave out --control-socket"
                )

    def _pool(self, endpoint: str, env: dict[str, str]) -> Pool:
        config = AppServerConfig(
            codex_bin=self.codex_bin or None,
            config_overrides=self.overrides,
            env={**self.env, **env},
            client_name="codex_pool",
            client_title="codex-pool",
        )
        pool = Pool.of(msgspec.structs.replace(self.options, endpoint=endpoint), config)
        pool.source = self.source
        return pool
