"""Metrics of a pool as Prometheus reads them, from a report of the broker.

Loaded by need: prometheus_client takes a tenth of a second to load, and only a scrape needs it. Labels are bounded:
principals have `broker.counts.MAX_NAMES` names and `other`, reasons MAX_REASONS; no label has the id of a thread, a
turn or a worker. A slot that is gone has no series.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..protocol.pool_report import PoolReport
from ..protocol.tally import DURATION_S, FIRST_DELTA_S, OTHER, QUEUE_S, Histogram
from ..protocol.wire_types import TURN_ENDS

# Prometheus 2 and 3 read it.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_REASONS = 64
_NAME = "codex_pool_"


class _Report(Collector):
    def __init__(self, report: PoolReport, refused_here: Mapping[str, int], version: str) -> None:
        self._report = report
        self._refused_here = refused_here
        self._version = version

    def collect(self) -> Iterator[Metric]:
        report, tally = self._report, self._report.tally
        assert tally is not None, "a report without counts has no metrics"
        yield _gauge("turns_running", "Turns that run.", [((), report.turns_running)])
        yield _gauge("turns_waiting", "Turns that wait in the queue to be started.", [((), report.turns_waiting)])
        ended = {**dict.fromkeys((*TURN_ENDS, OTHER), 0), **tally.ended}
        yield _counter("turns", "Turns that have ended, by outcome.", ended, "outcome")
        yield _histogram("turn_queue_seconds", "Time that turns waited in the queue.", tally.queued, QUEUE_S)
        yield _histogram(
            "turn_first_delta_seconds",
            "Time from the beginning of turns to the first piece of their answers.",
            tally.first_delta,
            FIRST_DELTA_S,
        )
        yield _histogram(
            "turn_duration_seconds", "Time from the beginning of turns to their end.", tally.took, DURATION_S
        )
        tokens = CounterMetricFamily(
            f"{_NAME}tokens",
            "Tokens of turns; cached_input is part of input, reasoning of output.",
            labels=("type", "principal"),
        )
        for name, used in sorted(tally.tokens.items()):
            kinds = {
                "input": used.input,
                "cached_input": used.cached,
                "output": used.output,
                "reasoning": used.reasoning,
            }
            for kind, value in kinds.items():
                tokens.add_metric((kind, name), value)
        yield tokens
        yield _gauge(
            "workers", "Workers by state.", [((state,), count) for state, count in report.workers.items()], "state"
        )
        yield _counter("worker_restarts", "Workers that have died and were replaced.", report.restarts, "reason")
        yield _counter("worker_recycles", "Workers that were replaced without a gap.", report.recycles, "reason")
        yield _gauge(
            "app_server_memory_bytes",
            "Memory (PSS) of a worker and all below it, but for tool commands of running turns.",
            _by_slot(report.memory_bytes),
            "slot",
        )
        yield _gauge("threads_loaded", "Threads that are loaded.", _by_slot(report.threads), "slot")
        yield _gauge("sessions", "Sessions of clients.", [((), report.sessions)])
        yield _counter(
            "events_dropped", "Notifications left out for clients that read too slowly.", {"": tally.dropped}
        )
        yield _gauge(
            "rate_limit_paused",
            "1 while no turn is started until the account's rate limit is over, else 0.",
            [((), report.rate_limit_paused)],
        )
        yield _gauge(
            "upgrade_failed",
            "1 if the last upgrade of codex has failed, until the next one, else 0.",
            [((), report.upgrade in ("going back", "failed"))],
        )
        if report.spans:
            yield _counter(
                "spans", "OpenTelemetry spans of turns, by what has become of them.", report.spans, "outcome"
            )
        yield _counter("refused", "Connections and requests that were refused.", self._refused(), "reason")
        build = GaugeMetricFamily(f"{_NAME}build_info", "Always 1: versions that run.", labels=("version", "codex"))
        for codex in report.codex or ["unknown"]:
            build.add_metric((self._version, codex), 1)
        yield build

    def _refused(self) -> dict[str, int]:
        """Counts of the broker and of the gateway, which begin at zero apart from each other: no reason is of both."""
        found: Counter[str] = Counter()
        for prefix, counts in (("", self._report.refused), ("gateway_", self._refused_here)):
            for reason, count in counts.items():
                name = prefix + reason_label(reason)
                found[name if name in found or len(found) < MAX_REASONS else f"{prefix}{OTHER}"] += count
        return dict(found)


def text_of(report: PoolReport, refused_here: Mapping[str, int]) -> bytes:
    """The text of all metrics; `report` has a tally. `refused_here`: what the gateway has refused, by reason."""
    from .. import __version__

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Report(report, refused_here, __version__))
    return generate_latest(registry)


def reason_label(reason: str) -> str:
    """Words of a reason as a label, without what follows them as a detail."""
    words = re.split(r"[:(]", reason, maxsplit=1)[0]
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")[:64] or OTHER


def _gauge(name: str, help: str, values: Iterable[tuple[tuple[str, ...], float]], *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(_NAME + name, help, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _counter(name: str, help: str, counts: Mapping[str, int], *labels: str) -> CounterMetricFamily:
    family = CounterMetricFamily(_NAME + name, help, labels=labels)
    for label_value, count in counts.items():
        family.add_metric((label_value,) if labels else (), count)
    return family


def _histogram(name: str, help: str, histogram: Histogram, bounds_s: tuple[float, ...]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(_NAME + name, help)
    total, buckets = 0, []
    for bound, count in zip((*map(str, bounds_s), "+Inf"), histogram.counts or [0] * (len(bounds_s) + 1), strict=True):
        total += count
        buckets.append((bound, float(total)))
    family.add_metric((), buckets, histogram.sum_ms / 1000)
    return family


def _by_slot(values: Mapping[int, int]) -> list[tuple[tuple[str, ...], float]]:
    return [((str(slot),), value) for slot, value in sorted(values.items())]
