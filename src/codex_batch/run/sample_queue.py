"""SampleQueue: the samples that a run is to do, in the order of the dataset; those that were put back come first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ..dataset import Sample
from ..store import RunDirectory, SampleRow
from .executor import SampleJob

PAGE = 200


class SampleQueue:
    """Reads samples from the store; a page of them is in memory at a time.

    `only`: positions, among all that is to be done, of the samples to be run; all if None. `filled` gives a sample what
    the run, or its variant, has in place of what it does not name.
    """

    def __init__(
        self,
        directory: RunDirectory,
        only: frozenset[int] | None = None,
        filled: Callable[[Sample], Sample] = lambda sample: sample,
    ) -> None:
        self._directory = directory
        self._only = only
        self._filled = filled
        self._again: deque[SampleJob] = deque()
        self._page: deque[SampleRow] = deque()
        self._after: tuple[int, int] | None = None
        self._position = -1

    def next(self) -> SampleJob | None:
        """Return the next sample to be done, None if there is none."""
        while True:
            if self._again:
                return self._again.popleft()
            if not self._page:
                self._page.extend(self._directory.to_do(PAGE, self._after))
                if not self._page:
                    return None
                self._after = self._page[-1].position, self._page[-1].n
            row = self._page.popleft()
            self._position += 1
            if self._only is None or self._position in self._only:
                # What is kept without a secret is not what was asked.
                spec = self._directory.as_asked.get(row.key, row.spec)
                return job_of(row, self._filled(Sample.from_json(spec)))

    def put_back(self, job: SampleJob) -> None:
        """Let a sample be the next one again."""
        self._again.append(job)


def job_of(row: SampleRow, sample: Sample) -> SampleJob:
    """Return a job for a sample, on the running event loop."""
    return SampleJob(row, sample, asyncio.get_running_loop().create_future())
