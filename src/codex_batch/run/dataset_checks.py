"""The dataset of a run: opened, and each sample checked against the run's scorers, pool and directories."""

from __future__ import annotations

import io
import sys

from codex_app_server._runtime.files import resolved
from codex_pool.protocol.endpoints import is_tcp
from codex_pool.sandbox_modes import FULL_ACCESS

from ..configuration.settings import Settings
from ..dataset import Dataset, Sample
from ..rules.limits import parse_limits
from ..scoring import Scorers
from ..store.stored_samples import begun_samples
from ..workspace import Repositories, cwd_problem
from . import home
from .price_check import Models
from .run_containers import ContainerPlan
from .thread_options import has_answers
from .tools import Tools


def open_dataset(settings: Settings, scorers: Scorers, sources: Repositories, tools: Tools, models: Models) -> Dataset:
    """Open the dataset; `tools` and `models` observe each sample.

    Raises DatasetError with all that is wrong, ScorerError, EndpointError, HomeError, RunDirectoryError.
    """
    plan = ContainerPlan(settings.container)
    homes = home.known(settings.home, settings.endpoint)
    dataset = None if settings.demo_dataset else settings.request.path
    defaults = settings.defaults
    is_elsewhere = settings.endpoint is not None and is_tcp(settings.endpoint)

    def check(sample: Sample, where: str) -> list[str]:
        wrong = [f"{where}: {problem.partition(': ')[2]}" for problem in scorers.problems([sample])]
        if not wrong:
            tools.observe(sample)
            models.observe(sample, scorers)
        if sample.workspace is not None and is_elsewhere:
            problem = (
                f"cannot be made where {settings.endpoint} runs; expected an own pool, or a daemon on this machine"
            )
            wrong.append(f"{where}: workspace: {problem}")
        if (
            not wrong
            and is_guarded(settings)
            and (sample.sandbox or defaults.sandbox) != FULL_ACCESS
            and has_answers(sample, scorers)
        ):
            private = map(resolved, scorers.files_of(sample))
            in_private = cwd_problem(sample, settings.output, dataset, homes, private)
            wrong += [] if in_private is None else [f"{where}: cwd: {in_private}"]
        if defaults.variants:
            wrong += [f"{where}: {field}: {problem}" for field, problem in defaults.problems(sample)]
        return wrong + [f"{where}: limits: {problem}" for problem in parse_limits(sample.limits)[1]]

    def check_repository(repository: str, revision: str) -> str:
        # Without git the run is refused.
        return sources.check(repository, revision) if tools.git_problem is None else revision

    if settings.stored:
        # What an agent must not read, if it is still there.
        path = None if dataset is None or not dataset.exists() else dataset
        return begun_samples(
            settings.output, settings.dataset_name, path, check_sample=check, check_repository=check_repository
        )
    stdin = sys.stdin.buffer
    if settings.demo_dataset:
        from codex_app_server.testing.loopback.demo import demo_jsonl

        stdin = io.BytesIO(demo_jsonl().encode())
    return settings.request.open(stdin=stdin, check_sample=check, check_repository=check_repository, adapt=plan.of)


def is_guarded(settings: Settings) -> bool:
    """Return True if agents are kept from reading the dataset and the run; elsewhere there is nothing to be read."""
    return not (settings.unguarded or (settings.endpoint is not None and is_tcp(settings.endpoint)))
