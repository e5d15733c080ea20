"""Scores to verdicts: a gate has passed or failed, and the reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

from codex_app_server._runtime.text import plural

from .columns import Columns, Scored
from .options import FailUnder, GateOptions, named

EPSILON = 1e-9
FAIL_UNDER, WORSE_THAN = "fail-under", "fail-if-worse-than"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Outcome of a gate for one scorer in one variant. `figures` are the numbers that it was decided by."""

    kind: str
    gate: str
    scorer: str
    variant: str
    passed: bool
    reason: str
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The verdict as the store and `--json` have it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Baseline:
    """A variant of a run that others are compared with. `name` is how the command named it.

    `variant` names one of the same command: its scores are those that the run itself has in the end, and `scores` is
    empty.
    """

    name: str
    path: str
    scores: Mapping[str, Scored]
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Subjects of the gates: variants ("" alone if there are none), and scorers that baselines are compared by.

    `baselines` are by the value of --fail-if-worse-than and the variant that is compared with it; a variant is not
    compared with itself.
    """

    variants: Sequence[str] = ("",)
    scorers: Sequence[str] = ()
    baselines: Mapping[tuple[str, str], Baseline] = field(default_factory=dict)


def fail_under(gate: FailUnder, variant: str, scored: Scored | None, min_scored: float) -> Verdict:
    """Decide whether a mean is high enough. A sample without a score counts as 0, or as the lowest score below 0."""
    scored = scored or Scored()
    planned, values = scored.planned, scored.values
    floor = min([0.0, *values])
    mean = (sum(values) + floor * (planned - len(values))) / planned if planned else floor
    over = f"over {_scores(len(values), planned)}"
    problem = _too_few(len(values), planned, min_scored)
    if problem is None and mean < gate.least - EPSILON:
        problem = f"{_number(mean, gate.least)} is below {gate.least:g}, {over}"
    return Verdict(
        kind=FAIL_UNDER,
        gate=f"{named(gate.scorer, variant)} >= {gate.least:g}",
        scorer=gate.scorer,
        variant=variant,
        passed=problem is None,
        reason=problem or f"{_number(mean, gate.least)} {over}",
        figures={
            "value": mean if planned else None,
            "least": gate.least,
            "scored": len(values),
            "planned": planned,
            "min_scored": min_scored,
        },
    )


def worse_than(baseline: Baseline, scorer: str, variant: str, scored: Scored | None, options: GateOptions) -> Verdict:
    """Decide whether a run is worse than a baseline by more than the margin, sample by sample.

    The epochs of a sample count as one, by their mean. A sample of the run without a score counts as 0, or as the
    lowest score below 0. The test is one-sided: that the mean change lies below -margin, by flips of the signs of the
    changes after the margin was added to them.
    """
    from ..report.paired import difference

    scored, before = scored or Scored(), baseline.scores.get(scorer) or Scored()
    common = [sample for sample in scored.samples if sample in before.samples]
    ours = Scored({sample: scored.samples[sample] for sample in common})
    floor = min([0.0, *ours.values, *before.values])
    pairs = []
    for sample in common:
        known = [value for value in before.samples[sample] if value is not None]
        if known:
            now = [floor if value is None else value for value in ours.samples[sample]]
            pairs.append((fmean(known), fmean(now)))
    found = difference(pairs)
    shifted = difference([(first, second + options.margin) for first, second in pairs])
    p = None
    if shifted is not None:
        # The flips are symmetric: one side has half of the two-sided p.
        p = shifted.p / 2 if shifted.value < 0 else 1 - shifted.p / 2
    problem = _too_few(len(ours.values), ours.planned, options.min_scored)
    if problem is None and len(pairs) < options.pairs_needed:
        problem = (
            f"{plural(len(pairs), 'sample')} scored in both; at least {options.pairs_needed} are needed to find a "
            f"difference at alpha {options.alpha:g}"
        )
    if problem is None and len(pairs) < options.min_scored * len(common) - EPSILON:
        problem = f"the baseline has scored {len(pairs):,} of {plural(len(common), 'common sample')}"
    only = len(scored.samples) - len(common), len(before.samples) - len(common)
    said = "nothing to compare"
    is_worse = False
    if found is not None and shifted is not None and p is not None:
        # A mean that is not below the margin is not worse, whatever p is.
        is_worse = shifted.value < -EPSILON and p <= options.alpha
        said = (
            f"{found.value:+.3f} ({found.before:.3f} to {found.after:.3f}), p {p_text(p)}, "
            f"{plural(found.count, 'common sample')}"
        )
        said += f", {only[0]:,} only in the run" if only[0] else ""
        said += f", {only[1]:,} only in the baseline" if only[1] else ""
    return Verdict(
        kind=WORSE_THAN,
        gate=f"{named(scorer, variant)} not worse than {baseline.name}",
        scorer=scorer,
        variant=variant,
        passed=problem is None and not is_worse,
        reason=said if problem is None else f"{problem}; {said}",
        figures={
            "baseline": baseline.path,
            "margin": options.margin,
            "alpha": options.alpha,
            "change": None if found is None else found.value,
            "low": _finite(None if found is None else found.low),
            "high": _finite(None if found is None else found.high),
            "p": p,
            "test": None if shifted is None else shifted.test,
            "pairs": len(pairs),
            "only_run": only[0],
            "only_baseline": only[1],
            "scored": len(ours.values),
            "planned": ours.planned,
            "min_scored": options.min_scored,
        },
    )


def decide(options: GateOptions, columns: Columns, prepared: Prepared) -> list[Verdict]:
    """Decide all gates of a command, in the order of its options; each for each variant that it holds for."""
    verdicts = []
    for gate in options.fail_under:
        for variant in prepared.variants if gate.variant is None else (gate.variant,):
            scored = columns.get(variant, {}).get(gate.scorer)
            verdicts.append(fail_under(gate, variant, scored, options.min_scored))
    for text in options.worse_than:
        for variant in prepared.variants:
            baseline = prepared.baselines.get((text, variant))
            if baseline is None:
                continue
            if baseline.variant is not None:
                baseline = replace(baseline, scores=columns.get(baseline.variant, {}))
            for scorer in prepared.scorers:
                scored = columns.get(variant, {}).get(scorer)
                verdicts.append(worse_than(baseline, scorer, variant, scored, options))
    return verdicts


def p_text(p: float) -> str:
    """A p-value for people."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _too_few(scored: int, planned: int, min_scored: float) -> str | None:
    if not planned:
        return "no sample was to be scored by it"
    if not scored:
        return f"none of {plural(planned, 'sample')} has a score"
    if scored >= min_scored * planned - EPSILON:
        return None
    return f"too few have a score: {scored:,} of {planned:,}; at least {100 * min_scored:g} % are needed"


def _scores(scored: int, planned: int) -> str:
    if scored == planned:
        return plural(planned, "score")
    return f"{plural(planned, 'sample')}, {planned - scored:,} of them without a score"


def _number(mean: float, least: float) -> str:
    """A mean, with as many digits as it takes to tell it from what it is compared with."""
    for digits in (3, 6):
        if abs(mean - least) < EPSILON or round(mean, digits) != round(least, digits):
            return f"{mean:.{digits}f}"
    return f"{mean:.9f}"


def _finite(value: float | None) -> float | None:
    return None if value is None or value in (float("inf"), float("-inf")) else value
