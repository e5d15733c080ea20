"""A run from the dataset to the exit code: what `codex-pool batch` calls.

dataset and tools checked -> directory held and loaded -> Batch on its event loop -> secrets taken out, directory closed
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from codex_app_server import HomeError, InvalidInputError
from codex_app_server._runtime.files import resolved
from codex_app_server._runtime.paths import lone_surrogate
from codex_app_server._runtime.text import plural
from codex_pool import EndpointError
from codex_pool.litellm_prices import find_prices
from codex_pool.prices import Prices, PricesError
from codex_pool.runtime import startup
from codex_pool.runtime.os_errors import describe

from ..configuration import settings as run_settings
from ..configuration.defaults import restored
from ..configuration.settings import Settings
from ..configuration.variants import Variant, VariantsError, check_daemon
from ..dataset import Dataset, DatasetError
from ..display import summary
from ..exit_codes import CANNOT_START, SOME_FAILED, USAGE
from ..gates.columns import Plan
from ..gates.judge import Gates
from ..gates.options import GateError
from ..gates.prepare import plan_of_samples, plan_of_store, prepare
from ..plugins.discovery import Plugin, PluginError
from ..plugins.hooks import hooks_of
from ..redaction import scrub
from ..redaction.known_secrets import known_secrets
from ..redaction.redactor import Redactor, is_redacted
from ..scoring import ScorerError, Scorers
from ..store import Entry, RunDirectory, RunDirectoryError, layout, locked, open_run
from ..workspace import Repositories
from . import home
from .batch import Batch
from .dataset_checks import open_dataset
from .disks import Disk, is_full
from .hangup import HangUp
from .price_check import Models, UnpricedRunError
from .scheduler import entry_of
from .shard_check import claim_shard
from .tools import Tools, ToolsError, check_shell


def run_batch(settings: Settings) -> int:
    """Run a batch; messages go to stderr.

    The exit code, of `exit_codes`: OK all completed or at a limit, SOME_FAILED some not, USAGE bad input or no git,
    CANNOT_START the pool could not start or the CODEX_HOME cannot be used, GATE_FAILED, INTERRUPTED.
    """
    try:
        hang_up = HangUp()
        prices = None if settings.prices is None else find_prices(settings.prices)
        if settings.stored:
            settings = replace(settings, variants=_stored_variants(settings.output))
        if settings.endpoint is not None:
            check_daemon(settings.variants)
        hooks = hooks_of(settings.on_record)
        models = Models(settings.configured_model, settings.defaults)
        scorers = Scorers(settings.scorers)
        sources = Repositories(settings.output / layout.REPOSITORIES)
        tools = Tools(scorers)
        samples = open_dataset(settings, scorers, sources, tools, models)
    except HomeError as error:
        return _refuse(error, CANNOT_START)
    except PluginError as error:
        return _refuse(PluginError(f"--on-record: {error}; nothing was run"))
    except (EndpointError, RunDirectoryError) as error:
        return _refuse(error)
    except (DatasetError, PricesError, ScorerError, VariantsError) as error:
        print(error, file=sys.stderr)
        print(f"codex-pool: {plural(len(error.problems), 'problem')}; nothing was run", file=sys.stderr)
        return USAGE
    # Many small objects and few cycles, for hours.
    startup.collect_rarely()
    with samples:
        try:
            check_shell({"--workspace-hook": settings.hook, "--notify": settings.notify})
            tools.check(samples)
        except ToolsError as error:
            print(f"codex-pool: {error}; nothing was run", file=sys.stderr)
            return USAGE
        if prices is not None and settings.run_limits.cost is not None:
            problems = models.without_price(prices)
            if problems:
                print(f"codex-pool: {UnpricedRunError(problems, prices.source)}; nothing was run", file=sys.stderr)
                return USAGE
        try:
            gates = _gates(settings, samples, scorers)
        except GateError as error:
            print(error, file=sys.stderr)
            print(f"codex-pool: {plural(len(error.problems), 'problem')}; nothing was run", file=sys.stderr)
            return USAGE
        except (RunDirectoryError, ScorerError) as error:
            return _refuse(error)
        # A hook may bring them.
        for program in tools.not_found(samples) if settings.hook is None else ():
            print(f"codex-pool: {program}", file=sys.stderr)
        return _with_directory(settings, samples, prices, models, scorers, sources, gates, hooks, hang_up)


def _gates(settings: Settings, samples: Dataset, scorers: Scorers) -> Gates:
    """The gates of a run, checked; a shard without samples has none.

    Raises GateError, ScorerError, RunDirectoryError.
    """
    options, plan = settings.gates, Plan()
    if settings.shard is not None and not len(samples):
        return Gates()
    if options.any_gate and settings.stored:
        # The dataset is only what is to be run again.
        with open_run(settings.output) as store:
            plan = plan_of_store(store)
    elif options.any_gate:
        plan = plan_of_samples(samples, scorers.of, settings.defaults.names)
    return Gates(options, prepare(options, plan, settings.output))


def _with_directory(
    settings: Settings,
    samples: Dataset,
    prices: Prices | None,
    models: Models,
    scorers: Scorers,
    sources: Repositories,
    gates: Gates,
    hooks: tuple[Plugin, ...],
    hang_up: HangUp,
) -> int:
    """Run in the run directory, which is held meanwhile."""
    disk = Disk(settings.output)
    try:
        for what, path in (("run directory", settings.output), ("dataset", samples.path)):
            if path is not None and (odd := lone_surrogate(resolved(path))) is not None:
                raise RunDirectoryError(
                    f"the path of the {what}, {odd!r}, is not UTF-8 here, and the app-server cannot speak of it; use "
                    "one that is, and a UTF-8 locale"
                )
        # Before anything is made there; what --fresh removes may be the room that is missing.
        shortage = None if settings.fresh else disk.shortage()
        if shortage is not None:
            raise RunDirectoryError(disk.problem(shortage))
        directory = RunDirectory(settings.output, fresh=settings.fresh, redactor=_redactor_of(settings))
    except RunDirectoryError as error:
        return _refuse(error)
    except OSError as error:
        return _refuse(RunDirectoryError(f"{settings.output} cannot be a run directory: {describe(error)}"))
    try:
        _load(settings, directory, samples, scorers)
        config = _config(settings, directory, samples, scorers, prices)
        private = [path for scorer in scorers.run for path in scorer.private]
        private += [*([] if samples.path is None else [samples.path]), *settings.request.caches]
        batch = Batch(settings, directory, config, prices, models, scorers, sources, tuple(private), gates, hooks)
        try:
            return asyncio.run(batch.run(hang_up))
        finally:
            _scrub(settings, directory)
    except HomeError as error:
        return _refuse(error, CANNOT_START)
    except (RunDirectoryError, EndpointError, InvalidInputError, FileExistsError) as error:
        return _refuse(error)
    except (OSError, sqlite3.Error) as error:
        print(f"codex-pool: {_reason(settings.output, disk, error)}", file=sys.stderr)
        return SOME_FAILED
    finally:
        try:
            directory.close()
        except (OSError, sqlite3.Error) as error:
            where = directory.file(layout.RESULTS)
            why = disk.problem(error) if is_full(error) else f"{error}; the same command writes it again"
            print(f"codex-pool: {where} is not up to date: {why}", file=sys.stderr)


def _stored_variants(run: Path) -> tuple[Variant, ...]:
    """The variants of samples that were begun and are not done, as the run has stored them.

    Raises VariantsError when they cannot be run as they were, RunDirectoryError when there is no run.
    """
    with open_run(run) as store:
        begun = {row.variant for row in store.samples(begun=True)}
        found = [each for each in store.variants() if each["name"] in begun]
    if is_redacted(json.dumps(found, ensure_ascii=False)):
        raise VariantsError([f"{run}: its variants held a secret, which is not kept: run the command of the run again"])
    return restored(found)


def _load(settings: Settings, directory: RunDirectory, samples: Dataset, scorers: Scorers) -> None:
    """Take the samples of the dataset into the run, or those that it has; what is new is reported."""
    claim_shard(settings, directory)
    if settings.stored:
        directory.reload()
        return
    changes = directory.load(
        _entries(settings, samples, scorers),
        settings.dataset_name,
        rerun_changed=settings.rerun_changed,
        whole=samples.digests if settings.is_partly else None,
    )
    for line in summary.dataset_changes(changes):
        print(f"codex-pool: {line}", file=sys.stderr)


def _entries(settings: Settings, samples: Dataset, scorers: Scorers) -> Iterator[Entry]:
    """Yield the samples as the store takes them, at their places among those of all shards."""
    defaults = settings.defaults
    for place, sample in samples.placed():
        for number, product in enumerate(defaults.products([sample])):
            yield entry_of(product, scorers, place * len(defaults.names) + number)


def _config(
    settings: Settings, directory: RunDirectory, samples: Dataset, scorers: Scorers, prices: Prices | None
) -> dict[str, Any]:
    """Return the configuration that is written down of the launch."""
    specs = [scorer.spec for scorer in scorers.run]
    config = run_settings.config(settings, samples.fingerprint, len(samples), specs)
    if settings.shard is not None:
        config["dataset"]["content"] = samples.content
    if samples.commit is not None:
        config["dataset"]["commit"] = samples.commit
    if settings.stored:
        config["dataset"] = directory.store.info()["config"].get("dataset", config["dataset"])
    config["currency"] = None if prices is None else prices.currency
    config["prices"] = None if prices is None else prices.source
    return config


def _reason(output: Path, disk: Disk, error: OSError | sqlite3.Error) -> str:
    """The reason why a run could not go on, with the remedy."""
    if is_full(error):
        return disk.problem(error)
    if locked.is_locked(error):
        return f"{locked.problem(output / layout.DATABASE)}; then the same command goes on"
    if isinstance(error, OSError):
        return describe(error)
    return f"{output}: {error}; see that nothing else changes what is in it, and run the same command again"


def _redactor_of(settings: Settings) -> Redactor:
    """A redactor of the secrets that are known where a run starts."""
    if not settings.redact:
        return Redactor()
    homes = [*home.known(settings.home, settings.endpoint), settings.output / layout.HOME]
    of_variants = (f"{key}={json.dumps(value)}" for each in settings.variants for key, value in each.config.items())
    return Redactor(known_secrets(os.environ, homes, (*settings.overrides, *of_variants), settings.key))


def _scrub(settings: Settings, directory: RunDirectory) -> None:
    """Take secrets out of what others have written; the pool has ended."""
    try:
        for name in (layout.LOG, layout.OUTPUT):
            scrub.Log(directory.file(name)).mask(directory.redactor)
        if settings.endpoint is None and (settings.home == home.RUN or settings.demo):
            scrub.redact_home(directory.file(layout.HOME), directory.redactor)
    except OSError as error:
        print(f"codex-pool: secrets may be left in {directory.path}: {describe(error)}", file=sys.stderr)


def _refuse(error: Exception, code: int = USAGE) -> int:
    print(f"codex-pool: {error}", file=sys.stderr)
    return code
