"""Gates checked before anything starts: names, bounds, files and baselines. What cannot be decided later is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from codex_app_server._runtime.files import resolved
from codex_app_server._runtime.text import plural
from codex_pool.runtime.os_errors import describe

from ..dataset import Sample
from ..scoring import Scorer, ScorerError
from ..scoring.parse import unchecked
from ..store import RunDirectoryError, RunStore, layout, open_run
from ..store.rows import SampleRow
from .columns import Columns, Plan, ScorersOf, columns_of
from .options import FailUnder, GateError, GateOptions, unknown
from .verdicts import EPSILON, Baseline, Prepared

UNDER, WORSE, GATE_SCORER, JUNIT = "--fail-under", "--fail-if-worse-than", "--gate-scorer", "--junit"


def plan_of_samples(
    samples: Iterable[Sample], scorers_of: Callable[[Sample], Iterable[Scorer]], variants: Sequence[str]
) -> Plan:
    """The plan of a dataset that is to be run in these variants. Raises what `scorers_of` raises."""
    plan = Plan(variants)
    for sample in samples:
        plan.add(sample.id, scorers_of(sample))
    return plan


def plan_of_store(store: RunStore) -> Plan:
    """The plan of a run that there is, of the samples of its last command. Raises ScorerError, RunDirectoryError."""
    scorers = scorers_of_store(store)
    plan, variants, later = Plan(), dict[str, None](), dict[str, set[str]]()
    rows: list[str] = []
    for row in store.samples(selected=True):
        variants[row.variant] = None
        rows.append(row.id)
        plan.add(row.id, scorers.of(row))
        for score in row.scores:
            later.setdefault(score.scorer, set()).add(row.id)
    for name in later:
        if name not in plan.scorers:
            plan.scorers[name], plan.ids[name] = None, set(rows)
    plan.variants = tuple(variants) or ("",)
    return plan


def scorers_of_store(store: RunStore) -> ScorersOf:
    """The scorers of the samples of a run, by its last command. Raises ScorerError."""
    return ScorersOf(store.info()["config"].get("scorers") or (), unchecked)


def prepare(options: GateOptions, plan: Plan, output: Path) -> Prepared:
    """Check gates against the run in the directory `output`, which may be still to start, and read their baselines.

    Raises GateError with all that is wrong.
    """
    problems: list[str] = []
    if options.junit is not None:
        problems += _file_problems(options.junit)
    if not options.any_gate:
        if problems:
            raise GateError(problems)
        return Prepared(plan.variants)
    if not plan.scorers:
        raise GateError([*problems, f"{UNDER}, {WORSE}: the run has no scorers; name one with --scorer"])
    for gate in options.fail_under:
        problems += _under_problems(gate, plan)
    for name in options.scorers:
        if name not in plan.scorers:
            problems.append(f"{GATE_SCORER} {name}: {unknown('scorer', name, plan.scorers)}")
    scorers = [name for name in options.scorers or plan.scorers if name in plan.scorers]
    baselines = {}
    for text in options.worse_than:
        try:
            for variant, baseline in _baselines(text, plan, output):
                problems += _baseline_problems(text, baseline, scorers, plan, options)
                baselines[text, variant] = baseline
        except (RunDirectoryError, ScorerError, ValueError) as error:
            problems.append(f"{WORSE} {text}: {error}")
    if problems:
        # Several variants may have the same problem.
        raise GateError(list(dict.fromkeys(problems)))
    return Prepared(plan.variants, scorers, baselines)


def split_run(text: str) -> tuple[Path, str | None]:
    """The run directory and the variant that `RUN` or `RUN@VARIANT` names."""
    path, at, variant = text.rpartition("@")
    if not at or not path or not variant or Path(text).expanduser().is_dir():
        return resolved(Path(text).expanduser()), None
    return resolved(Path(path).expanduser()), variant


def _under_problems(gate: FailUnder, plan: Plan) -> Iterator[str]:
    where = f"{UNDER} {gate.shown}"
    if gate.variant is not None and gate.variant not in plan.variants:
        if not any(plan.variants):
            yield f"{where}: the run has no variants; expected SCORER=NUMBER"
        else:
            yield f"{where}: {unknown('variant', gate.variant, plan.variants)}"
    if gate.scorer not in plan.scorers:
        yield f"{where}: {unknown('scorer', gate.scorer, plan.scorers)}"
        return
    scorer = plan.scorers[gate.scorer]
    bounds = None if scorer is None else scorer.bounds
    if bounds is not None and not bounds[0] <= gate.least <= bounds[1]:
        low, high = bounds
        what = "can never be reached" if gate.least > high else "is always reached"
        yield f"{where}: {gate.scorer} gives scores from {low:g} to {high:g}, so {gate.least:g} {what}"


def _file_problems(path: Path) -> Iterator[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        yield f"{JUNIT}: {describe(error)}"
        return
    if path.is_dir():
        yield f"{JUNIT}: {path} is a directory; name a file"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        yield f"{JUNIT}: {path.parent} cannot be written; name a file elsewhere"


def _baselines(text: str, plan: Plan, output: Path) -> Iterator[tuple[str, Baseline]]:
    """The baseline of each variant of a run. Raises ValueError, RunDirectoryError, ScorerError."""
    path, named = split_run(text)
    is_own = path == output
    if is_own and named is None:
        raise ValueError("is the run itself; name another run, or a variant of this one as RUN@VARIANT")
    if is_own and named in plan.variants:
        # Of this command, or decided by what it has: known when the gates are decided.
        if len(plan.variants) < 2:
            raise ValueError(f"the run has no variant beside {named} that could be compared with it")
        yield from ((variant, Baseline(text, str(path), {}, named)) for variant in plan.variants if variant != named)
        return
    if is_own and not (path / layout.DATABASE).is_file():
        raise ValueError(unknown("variant", named or "", filter(None, plan.variants)))
    with open_run(path) as store:
        if store.info()["state"] == "running" and not is_own:
            raise ValueError("is still under way; wait for its end, or name another run")
        columns = read_columns(store)
    if not columns:
        raise ValueError("has no samples; name a run that has ended")
    there = [variant for variant in columns if variant]
    if named is not None and named not in columns:
        raise ValueError(unknown("variant", named, there) if there else f"the run has no variants; expected {path}")
    for variant in plan.variants:
        # The variant of the same name, unless one is named for all.
        of_same_name = variant if variant in columns else next(iter(columns)) if len(columns) == 1 else None
        chosen = of_same_name if named is None else named
        if chosen is None:
            what = f"has no variant {variant!r}" if variant else "has several variants"
            raise ValueError(f"{what}; name one of {', '.join(f'{path}@{one}' for one in there)}")
        name = text if named is not None or not chosen else f"{text}@{chosen}"
        yield variant, Baseline(name, str(path), dict(columns[chosen]))


def read_columns(store: RunStore) -> Columns:
    """The scores of a run: of the samples of its last command, and of others that were recorded before."""
    rows: Iterator[SampleRow] = (row for row in store.samples() if row.selected or row.record is not None)
    return columns_of(rows, scorers_of_store(store).names)


def _baseline_problems(
    text: str, baseline: Baseline, scorers: Sequence[str], plan: Plan, options: GateOptions
) -> Iterator[str]:
    where = f"{WORSE} {text}"
    for name in scorers:
        if baseline.variant is not None:
            planned = len(plan.ids[name])
            if planned < options.pairs_needed:
                yield f"{where}: {_cannot_show(plural(planned, 'sample'), name, options)}"
            continue
        before = baseline.scores.get(name)
        if before is None or not before.values:
            yield (
                f"{where}: {name} has not scored it; score it with `codex-pool score`, or name the scorers to compare "
                f"with {GATE_SCORER}"
            )
            continue
        common = [sample for sample in before.samples if sample in plan.ids[name]]
        known = sum(any(value is not None for value in before.samples[sample]) for sample in common)
        if not common:
            yield f"{where}: it has none of the samples that {name} scores in this run; name a run of the same dataset"
        elif known < options.min_scored * len(common) - EPSILON:
            yield (
                f"{where}: {name} has scored {known:,} of {plural(len(common), 'common sample')}; run the others with "
                f"`codex-pool runs retry`, score them with `codex-pool score --missing`, or allow it with --min-scored"
            )
        elif known < options.pairs_needed:
            yield f"{where}: {_cannot_show(plural(known, 'common sample'), name, options)}"


def _cannot_show(samples: str, scorer: str, options: GateOptions) -> str:
    return (
        f"{samples} with a score by {scorer} cannot show that a run is worse at alpha {options.alpha:g}; "
        f"{options.pairs_needed} are needed"
    )
