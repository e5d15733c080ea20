"""Settings of a run, and what is written down of them."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import codex_app_server
import codex_pool
from codex_pool.configuration import Configuration
from codex_pool.options import OF_RUNS, PoolOptions, fields

from ..container.options import ContainerOptions
from ..dataset.request import Request
from ..gates.options import GateOptions
from ..rules.limits import Limits, RunLimits
from ..rules.retry import RETRY_ON_DEFAULT
from ..run import home
from ..workspace import git
from .defaults import Defaults
from .variants import Variant

GIT_LIMIT_S = 10.0
# An option for `runs retry`: the run directory, in place of that of the command.
STORED = "--stored"
_SECRET = re.compile("token|key|secret|password|auth|header|env", re.IGNORECASE)
# Of a command line, those options whose value may hold a secret.
_MAY_BE_SECRET = ("-c", "--config")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """Options of a run on several machines: the `address` of a Ray cluster, `auto`, or `local`.

    `environment` names variables that the hosts get; `login` is an auth.json that they get. `spool` is the directory in
    which they keep results, of each host's own disk.
    """

    address: str
    environment: tuple[str, ...] = ()
    login: Path | None = None
    spool: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one command. `endpoint` is that of a daemon, None for a pool of its own with the options `pool`.

    `demo_dataset`: the demo's own dataset, in place of the request's source. `demo_script`: the demo's answers.
    `estimate` is how many samples to run first, and only those. `stored`: samples of the run that were started and are
    not done are run as they are stored, whatever is in the dataset by now. `model`, `effort` and `sandbox` are for
    samples that name none; `variants` are run with each sample, and have models and efforts of their own.
    """

    request: Request
    demo_dataset: bool = False
    output: Path
    pool: PoolOptions = field(default_factory=PoolOptions)
    retries: int = 0
    retry_on: frozenset[str] = RETRY_ON_DEFAULT
    max_failures: int | None = None
    scorers: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    run_limits: RunLimits = field(default_factory=RunLimits)
    prices: str | None = None
    hook: str | None = None
    container: ContainerOptions | None = None
    """The containers of samples; None leaves them on this machine."""
    keep: bool = False
    unguarded: bool = False
    redact: bool = True
    """True if secrets that are known are kept out of the run directory."""
    rollouts: bool = True
    """True if the session files of codex are kept in the run directory."""
    trust_workspaces: bool = False
    estimate: int | None = None
    rerun_changed: bool = False
    stored: bool = False
    notify: str | None = None
    on_record: tuple[str, ...] = ()
    """Names of hooks that get each record of the run."""
    gates: GateOptions = field(default_factory=GateOptions)
    home: str = home.RUN
    fresh: bool = False
    as_json: bool = False
    endpoint: str | None = None
    key: str | None = None
    overrides: tuple[str, ...] = ()
    codex_bin: str | None = None
    model: str | None = None
    effort: str | None = None
    sandbox: str | None = None
    variants: tuple[Variant, ...] = ()
    demo: bool = False
    demo_script: Path | None = None
    hosts: HostOptions | None = None
    """The machines that the run is on; None for this one alone."""

    @property
    def workers(self) -> int:
        """Workers of the pool of its own."""
        return self.pool.workers

    @property
    def turns_per_worker(self) -> int:
        """Turns at once on each."""
        return self.pool.turns_per_worker

    @property
    def dataset_name(self) -> str:
        return "the demo dataset" if self.demo_dataset else str(self.request.source)

    @property
    def shard(self) -> str | None:
        """The shard of the dataset that is run, as I/N; None for all of it."""
        return None if self.request.shard is None else str(self.request.shard)

    @property
    def is_partly(self) -> bool:
        """True if only some of the dataset's samples were asked for."""
        request = self.request
        return bool(request.filters or request.sample_ids or request.limit)

    @property
    def defaults(self) -> Defaults:
        """The defaults of samples, by variant."""
        return Defaults(self.model, self.effort, self.sandbox, self.variants)

    @property
    def configured_model(self) -> str | None:
        """The model that `-c` names for all threads that name none."""
        named = [override.partition("=") for override in self.overrides]
        models = [value.strip().strip("\"'") for name, _, value in named if name.strip() == "model"]
        return models[-1] if models else None


def approval_policy(overrides: tuple[str, ...], configuration: Configuration) -> Any:
    """The approval policy: as in `codex exec` there is no user to ask, unless the run's options set another one."""
    if any(override.partition("=")[0].strip() == "approval_policy" for override in overrides):
        return configuration.approval_policy
    return "never"


def config(settings: Settings, fingerprint: str, samples: int, scorers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the exact settings and versions of a run: what stands in config.json."""
    arguments = asdict(settings)
    # The variants stand in full beside the arguments, once their configurations are known.
    del arguments["pool"], arguments["variants"]
    arguments |= {each.name: getattr(settings.pool, each.name) for each in fields(groups=OF_RUNS)}
    # It stands beside them.
    arguments["request"].pop("shard")
    return {
        "arguments": _plain({**arguments, "overrides": list(map(_shown, settings.overrides))}),
        "command": _command(sys.argv[1:]),
        "directory": str(Path.cwd()),
        "versions": {
            "codex_pool": codex_pool.__version__,
            "codex_app_server": codex_app_server.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "dataset": {
            "name": settings.dataset_name,
            "samples": samples,
            "fingerprint": fingerprint,
            "git": _git_state(settings.request),
        },
        **({} if settings.shard is None else {"shard": settings.shard}),
        "scorers": scorers,
    }


def variants_config(defaults: Defaults, effective: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the variants as config.json has them, each with its effective configuration as JSON."""
    unset = dict.fromkeys(Variant.__struct_fields__)
    return [
        {**unset, "config": {}, **each.described(), "effective": effective[each.name]}
        for each in defaults.variants.values()
    ]


def _git_state(request: Request) -> dict[str, Any] | None:
    """The commit that the dataset stands in, and whether it differs from it; None outside of a repository."""
    path = request.path
    if path is None:
        return None
    directory = path if path.is_dir() else path.parent

    def said(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                git.command("-C", str(directory), *arguments),
                # The repository is only looked at: `git status` would write its index again, or wait for its lock.
                env=git.environment(isolated=False),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=GIT_LIMIT_S,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = said("rev-parse", "HEAD")
    if commit is None:
        return None
    changed = said("status", "--porcelain", "--", str(path))
    return {"commit": commit, "branch": said("rev-parse", "--abbrev-ref", "HEAD"), "changed": changed != ""}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value) if isinstance(value, Path) else value


def _command(arguments: list[str]) -> list[str]:
    """The command line, as it may stand in a file, and without what `runs retry` has added to it."""
    if STORED in arguments:
        place = arguments.index(STORED)
        arguments = arguments[:place] + arguments[place + 2 :]
    shown = list(arguments)
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == "--config" and equals:
            shown[index] = f"--config={_shown(value)}"
        elif index and arguments[index - 1] in _MAY_BE_SECRET:
            shown[index] = _shown(argument)
    return shown


def _shown(override: str) -> str:
    """An override as it may stand in a file: run directories hold no secrets."""
    key = override.partition("=")[0]
    return f"{key}=..." if _SECRET.search(key) else override
