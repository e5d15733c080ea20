"""Types of a task of Harbor, with what each key of its task.toml comes to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

SCHEMAS = ("1.0", "1.1", "1.2", "1.3", "1.4")
NEWEST = SCHEMAS[-1]
REWARD = "reward"
"""Key of the reward that a reward.txt holds, and that a `min_reward` without a key is about."""

# Paths in the container.
TESTS, SOLUTION, LOGS = "/tests", "/solution", "/logs"
VERIFIER_LOGS, AGENT_LOGS, ARTIFACTS = f"{LOGS}/verifier", f"{LOGS}/agent", f"{LOGS}/artifacts"


class Healthcheck(msgspec.Struct, frozen=True):
    """A command that is run until it ends with 0; times are in seconds."""

    command: str
    interval_s: float = 5.0
    timeout_s: float = 30.0
    start_period_s: float = 0.0
    start_interval_s: float = 5.0
    retries: int = 3


class Artifact(msgspec.Struct, frozen=True):
    """A file or directory of the container that is kept; `destination` is its path among the artifacts."""

    source: str
    destination: str


class Verifier(msgspec.Struct, frozen=True):
    """The run of a test.sh: its limit in seconds, its variables as they are written, and its user."""

    timeout_s: float = 600.0
    environment: Mapping[str, str] = {}
    user: str | None = None


class Step(msgspec.Struct, frozen=True):
    """A step of a task: an instruction and a verifier of its own. A task without steps is one step without a name.

    `timeout_s` is that of its turn; `min_reward` holds the least rewards with which the next step is run.
    """

    name: str
    timeout_s: float | None
    verifier: Verifier
    min_reward: Mapping[str, float] = {}
    healthcheck: Healthcheck | None = None
    artifacts: tuple[Artifact, ...] = ()


class Environment(msgspec.Struct, frozen=True):
    """The container of a task. `image` is None where it is built of environment/Dockerfile."""

    image: str | None = None
    build_timeout_s: float = 600.0
    cpus: float | None = None
    memory_mb: int | None = None
    workdir: str | None = None
    network: bool = True
    variables: Mapping[str, str] = {}
    healthcheck: Healthcheck | None = None


class Task(msgspec.Struct, frozen=True):
    """A task, as its task.toml describes it."""

    schema: str
    name: str | None
    environment: Environment
    steps: tuple[Step, ...]
    user: str | None = None
    is_mean: bool = True
    """True if its reward is the mean of those of its steps, False if it is that of the last one."""
    solution_environment: Mapping[str, str] = {}
    metadata: Mapping[str, Any] = {}

    @property
    def has_steps(self) -> bool:
        """False for a task whose instruction and tests stand in the folder itself."""
        return self.steps[0].name != ""
