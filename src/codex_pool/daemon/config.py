"""Configuration of a daemon, and the pool that is made of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from codex_app_server import AppServerConfig, InvalidInputError
from codex_app_server.errors import HomeError
from codex_app_server.home import codex_home
from codex_pool import defaults, endpoint_name, endpoints, homes
from codex_pool.demo import demo_home
from codex_pool.pool import Pool, PoolStartError

OWN, USER = "own", "user"


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """Configuration of one daemon. `endpoint` None is the user's default one.

    `home`: "user", "own", or an existing CODEX_HOME; None is "own" with `listen`, else "user", so that threads are
    shared with `codex`. The own one is made of the user's, without the directories that it trusts.
    """

    endpoint: str | None = None
    workers: int = defaults.WORKERS
    turns_per_worker: int = defaults.TURNS_PER_WORKER
    overrides: tuple[str, ...] = ()
    codex_bin: str | None = None
    demo: bool = False
    env: dict[str, str] = field(default_factory=dict)
    listen: str | None = None
    keys: str | None = None
    home: str | None = None
    # As the parameters of Pool.
    recycle_turns: int | None = None
    recycle_threads: int | None = None
    recycle_age_s: float | None = None
    recycle_memory_bytes: int | None = defaults.RECYCLE_MEMORY_BYTES
    recycle_descendants: int | None = defaults.RECYCLE_DESCENDANTS
    turn_idle_limit_s: float | None = defaults.TURN_IDLE_LIMIT_S
    turn_wall_limit_s: float | None = None

    def notice(self) -> str | None:
        """Something to be said before the first start with a home of its own: the threads that stay in the user's."""
        if self._choice != OWN:
            return None
        endpoint = self.endpoint or endpoints.default_endpoint()
        return homes.left_behind(homes.daemon_home(endpoint), codex_home({**os.environ, **self.env}))

    @property
    def _choice(self) -> str:
        if self.demo:
            return USER
        return self.home or (OWN if self.listen is not None else USER)

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
        own = homes.daemon_home(self.endpoint or endpoints.default_endpoint())
        return homes.ConfigCopy(own, codex_home({**os.environ, **self.env})).named(message)

    @contextmanager
    def pool(self) -> Iterator[Pool]:
        """The pool, not started yet. With `demo` the loopback model runs as long as the context lasts.

        Raises EndpointError, HomeError, InvalidInputError, and PoolStartError while another pool holds the endpoint.
        """
        endpoint = self.endpoint or endpoints.default_endpoint()
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

    def _pool(self, endpoint: str, env: dict[str, str]) -> Pool:
        config = AppServerConfig(
            codex_bin=self.codex_bin or None,
            config_overrides=self.overrides,
            env={**self.env, **env},
            client_name="codex_pool",
            client_title="codex-pool",
        )
        return Pool(
            self.workers,
            config,
            turns_per_worker=self.turns_per_worker,
            endpoint=endpoint,
            listen=self.listen,
            keys=self.keys,
            recycle_turns=self.recycle_turns,
            recycle_threads=self.recycle_threads,
            recycle_age_s=self.recycle_age_s,
            recycle_memory_bytes=self.recycle_memory_bytes,
            recycle_descendants=self.recycle_descendants,
            turn_idle_limit_s=self.turn_idle_limit_s,
            turn_wall_limit_s=self.turn_wall_limit_s,
        )
