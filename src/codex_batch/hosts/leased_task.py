"""LeasedTask: the life of a leased sample on its host: one attempt, recorded as it ended, and scored.

It is that of any sample of a run, but the decision about its end is not made here: the run that leased it retries.
"""

from __future__ import annotations

from ..rules.retry import Outcome
from ..run.executor import AttemptResult
from ..run.sample_task import Decision, SampleTask


class LeasedTask(SampleTask):
    """See the module's docstring."""

    unpriced: str | None = None
    """Price for want of which the cost of the attempt is not known, if that is why."""
    is_assigned = False
    """True once its turn runs."""

    is_cleaned_up = False
    """True once all is done that is done on the host."""

    def assigned(self) -> None:
        """Note that the turn runs."""
        self.is_assigned = True
        super().assigned()

    def _decide(self, outcome: Outcome, tries: int) -> Decision:
        return Decision.RECORD

    async def _clean_up(self) -> None:
        try:
            await super()._clean_up()
        finally:
            self.is_cleaned_up = True

    def _count(self, result: AttemptResult) -> AttemptResult:
        self.unpriced = result.outcome.unpriced
        return super()._count(result)

    async def _recover(self) -> AttemptResult | None:
        """The attempt that a host which died was at, as far as it came: it is not run twice here."""
        last = None if self._job.row.attempts == 0 else self.previous()
        if last is None or last.status is not None:
            return None
        return await self._executor.recover(self._job, last)
