"""Command lines of a container engine, podman or docker, which take the same ones. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .spec import ContainerSpec

ENGINES = ("podman", "docker")
RUN_LABEL = "codex-pool.run"
"""Label of all that a run has made; its value identifies the run directory."""
CODEX, BWRAP = "/opt/codex-pool/codex", "/opt/codex-pool/codex-resources/bwrap"
"""The codex binary inside, and the program of its sandbox, where codex looks for it."""
PORT = 7000
"""Port of the exec-server, on the loopback address inside."""
STATE_FORMAT = "{{.State.Running}} {{.State.OOMKilled}} {{.State.ExitCode}} {{.State.Pid}}"


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is there: its digest, and the directory and the user that it names, None where it names none."""

    digest: str
    workdir: str | None = None
    user: str | None = None


def run(
    engine: str,
    spec: ContainerSpec,
    *,
    name: str,
    run: str,
    image: str,
    workspace: Path,
    workdir: str,
    codex: Path,
    bwrap: Path | None = None,
    token_sha256: str,
) -> list[str]:
    """Start a container in the background, whose only process is an exec-server that knows the digest of its token.

    `bwrap` is the program of codex's sandbox, for a container that is to have it.
    """
    return [
        *(engine, "run", "--detach", "--pull", "never", "--name", name, "--label", f"{RUN_LABEL}={run}"),
        *_limits(spec),
        *("--volume", f"{workspace}:{workdir}", "--volume", f"{codex}:{CODEX}:ro", "--workdir", workdir),
        *(() if bwrap is None else ("--volume", f"{bwrap}:{BWRAP}:ro")),
        *("--entrypoint", CODEX, image),
        *("exec-server", "--listen", f"ws://127.0.0.1:{PORT}"),
        *("--ws-auth", "capability-token", "--ws-token-sha256", token_sha256),
    ]


def _limits(spec: ContainerSpec) -> list[str]:
    found: list[str] = [] if spec.network else ["--network", "none"]
    if spec.cpus is not None:
        found += ["--cpus", f"{spec.cpus:g}"]
    if spec.memory_mb is not None:
        # Without swap: what is over the limit is ended, not slowed down.
        found += ["--memory", f"{spec.memory_mb}m", "--memory-swap", f"{spec.memory_mb}m"]
    if spec.processes is not None:
        found += ["--pids-limit", str(spec.processes)]
    if spec.user is not None:
        found += ["--user", spec.user]
    for variable, value in spec.environment.items():
        found += ["--env", f"{variable}={value}"]
    return found


def execute(
    engine: str, name: str, argv: Sequence[str], *, cwd: str, user: str | None, env: Mapping[str, str], stdin: bool
) -> list[str]:
    """Run a command in a container that runs."""
    found = [engine, "exec", "--workdir", cwd]
    if stdin:
        found.append("--interactive")
    if user is not None:
        found += ["--user", user]
    for variable, value in env.items():
        found += ["--env", f"{variable}={value}"]
    return [*found, name, *argv]


def remove(engine: str, names: Sequence[str]) -> list[str]:
    """Remove containers, whatever runs in them, and their anonymous volumes."""
    return [engine, "rm", "--force", "--volumes", *names]


def state(engine: str, name: str) -> list[str]:
    """Print how a container is, as `State.parse` reads it."""
    return [engine, "container", "inspect", "--format", STATE_FORMAT, name]


def labelled(engine: str, run: str) -> list[str]:
    """Print the names of all containers of a run, one a line."""
    return [engine, "ps", "--all", "--filter", f"label={RUN_LABEL}={run}", "--format", "{{.Names}}"]


def image(engine: str, image: str) -> list[str]:
    """Print an image's digest, user and working directory, as `image_of` reads them."""
    return [engine, "image", "inspect", "--format", "{{.Id}}|{{.Config.User}}|{{.Config.WorkingDir}}", image]


def build(engine: str, directory: str, tag: str) -> list[str]:
    """Build an image of a directory with a Dockerfile."""
    return [engine, "build", "--tag", tag, directory]


def create(engine: str, image: str, name: str, run: str) -> list[str]:
    """Make a container that is not started, to copy files of its image."""
    # A command is needed only by images that have none; it is never run.
    return [engine, "create", "--pull", "never", "--name", name, "--label", f"{RUN_LABEL}={run}", image, "/none"]


def copy(engine: str, source: str, target: str) -> list[str]:
    """Copy files, from or to NAME:PATH."""
    return [engine, "cp", source, target]


@dataclass(frozen=True, slots=True)
class State:
    """State of a container; `pid` is that of its first process on this machine, 0 when it has ended."""

    is_running: bool
    ran_out_of_memory: bool
    exit_code: int
    pid: int

    @classmethod
    def parse(cls, text: str) -> State:
        """Read what `state` has printed. Raises ValueError."""
        running, out_of_memory, code, pid = text.split()
        return cls(running == "true", out_of_memory == "true", int(code), int(pid))


def image_of(text: str) -> Image:
    """Read what `image` has printed. Raises ValueError."""
    digest, user, workdir = text.strip().split("|", 2)
    return Image(digest.removeprefix("sha256:"), workdir if workdir.strip("/") else None, user or None)
