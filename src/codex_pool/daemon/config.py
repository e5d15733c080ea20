"""What a daemon is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from codex_app_server import AppServerConfig
from codex_pool import defaults, endpoints
from codex_pool.demo import demo_home
from codex_pool.pool import Pool


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """Configuration of one daemon. `endpoint` None is the user's default one."""

    endpoint: str | None = None
    workers: int = defaults.WORKERS
    turns_per_worker: int = defaults.TURNS_PER_WORKER
    overrides: tuple[str, ...] = ()
    codex_bin: str | None = None
    demo: bool = False
    env: dict[str, str] = field(default_factory=dict)
    listen: str | None = None
    keys: str | None = None
    # As the parameters of Pool.
    recycle_turns: int | None = None
    recycle_threads: int | None = None
    recycle_age_s: float | None = None
    recycle_memory_bytes: int | None = defaults.RECYCLE_MEMORY_BYTES
    turn_idle_limit_s: float | None = defaults.TURN_IDLE_LIMIT_S
    turn_wall_limit_s: float | None = None

    @contextmanager
    def pool(self) -> Iterator[Pool]:
        """The pool, not started yet. With `demo` the loopback model runs as long as the context lasts."""
        endpoint = self.endpoint or endpoints.default_endpoint()
        endpoints.ipc_path(endpoint)
        if not self.demo:
            yield self._pool(endpoint, {})
            return
        home = endpoints.ipc_path(endpoint).with_suffix(".demo")
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
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
            turn_idle_limit_s=self.turn_idle_limit_s,
            turn_wall_limit_s=self.turn_wall_limit_s,
        )
