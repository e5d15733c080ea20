"""Memory and descriptors of a daemon's processes over time, and what of them grows. Pure but for `sample`."""

from __future__ import annotations

import contextlib
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path

# A process of Python settles within some MiB, and so does its allocator; a leak of a turn's kilobytes is far beyond.
MORE_BYTES, MORE_SHARE = 6 * 2**20, 0.15
MORE_DESCRIPTORS = 4


@dataclass(frozen=True)
class Sample:
    """What a process has at a moment. `own_bytes` are those that no file is behind and nobody shares."""

    at: float
    pss_bytes: int
    own_bytes: int
    descriptors: int


@dataclass
class Samples:
    """Samples by role, and by process."""

    of: dict[str, dict[int, list[Sample]]] = field(default_factory=dict)

    def sample(self, processes: dict[str, list[int]], now: float) -> None:
        """Take a sample of each process."""
        for role, pids in processes.items():
            for pid in pids:
                with contextlib.suppress(OSError, KeyError):
                    self.of.setdefault(role, {}).setdefault(pid, []).append(_sample(pid, now))

    def rows(self, first_until: float, last_from: float) -> list[Row]:
        """The medians of each role before and after these times."""
        found = []
        for role, by_pid in self.of.items():
            samples = [each for every in by_pid.values() for each in every]
            first = [each for each in samples if each.at <= first_until]
            last = [each for each in samples if each.at >= last_from]
            if first and last:
                found.append(Row(role, _median(first), _median(last)))
        return found


@dataclass(frozen=True)
class Row:
    """Medians of a role in the first and the last part of a soak."""

    role: str
    first: Sample
    last: Sample

    def problems(self) -> list[str]:
        """What has grown by more than its bound."""
        found = []
        most = self.first.own_bytes + max(MORE_BYTES, self.first.own_bytes * MORE_SHARE)
        if self.last.own_bytes > most:
            found.append(f"memory of {self.role} has grown from {_mib(self.first)} to {_mib(self.last)} MiB of its own")
        if self.last.descriptors > self.first.descriptors + MORE_DESCRIPTORS:
            found.append(
                f"descriptors of {self.role} have grown from {self.first.descriptors} to {self.last.descriptors}"
            )
        return found

    def __str__(self) -> str:
        pss = f"{self.first.pss_bytes / 2**20:7.1f} {self.last.pss_bytes / 2**20:7.1f}"
        own = f"{_mib(self.first):7.1f} {_mib(self.last):7.1f}"
        return f"{self.role:<11} {pss}   {own}   {self.first.descriptors:5} {self.last.descriptors:5}"


HEAD = f"{'':<11} {'PSS MiB':>15}   {'own MiB':>15}   {'descriptors':>11}\n{'':<11} " + "   ".join(
    ["  first    last"] * 2 + ["first  last"]
)


def _sample(pid: int, now: float) -> Sample:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return Sample(now, sizes["Pss"], sizes["Pss_Anon"], len(os.listdir(f"/proc/{pid}/fd")))


def _median(samples: list[Sample]) -> Sample:
    return Sample(
        samples[0].at,
        round(statistics.median(each.pss_bytes for each in samples)),
        round(statistics.median(each.own_bytes for each in samples)),
        round(statistics.median(each.descriptors for each in samples)),
    )


def _mib(sample: Sample) -> float:
    return round(sample.own_bytes / 2**20, 1)
