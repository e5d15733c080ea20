"""The processes that scorers run in: off the event loop that all samples share, a bounded number of them, each bounded.

A scorer that starts a process of the user, or asks a model, only waits here. Any other computes - patterns may be the
user's own, and hold Python's lock for as long as they look - and so runs in a process of ours, see `computing`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any

from codex_pool.runtime import startup

from .scorer import Score, ScoreContext, Scored, Scorer, ScoringFailed

# For one score, of which a pattern may take a part only; the kernel counts in whole seconds.
CPU_LIMIT_S = 10
MEMORY_LIMIT_BYTES = 2**30
# Of all responses of a sample together; longer ones are not scored by what only computes.
MAX_CHARACTERS = 64 * 2**20
# Until an answer is there, beyond its CPU time, on a machine that has none to spare.
ANSWER_LIMIT_S = 20.0 * CPU_LIMIT_S


@dataclass(frozen=True, slots=True)
class _Sample:
    """A sample as scorers see it, and nothing more of it."""

    id: str
    epoch: int
    variant: str
    prompts: tuple[str, ...]
    target: Any
    metadata: dict[str, Any] | None
    tags: tuple[str, ...]
    output_schema: dict[str, Any] | None

    @classmethod
    def of(cls, sample: Scored) -> _Sample:
        return cls(
            sample.id,
            sample.epoch,
            sample.variant,
            sample.prompts,
            sample.target,
            sample.metadata,
            sample.tags,
            sample.output_schema,
        )


class ProcessPool:
    """Limits the processes of the user, and ours, to `count` of each at once. Belongs to one event loop; close it."""

    def __init__(self, count: int) -> None:
        self._users = asyncio.Semaphore(count)
        self._ours = asyncio.Semaphore(count)
        self._idle: list[asyncio.subprocess.Process] = []

    def permit(self, scorer: Scorer) -> AbstractAsyncContextManager[None]:
        """Wait for the permit that this scorer needs; call `score` while it is held."""
        if scorer.needs_model:
            return contextlib.nullcontext()
        return self._users if scorer.starts_process else self._ours

    async def score(self, scorer: Scorer, context: ScoreContext) -> Score:
        """Score with a scorer that has its permit. Raises what `Scorer.score` raises."""
        if scorer.needs_model or scorer.starts_process:
            return await scorer.score(context)
        return await self._compute(scorer, context)

    async def close(self) -> None:
        """End the processes that compute."""
        while self._idle:
            await _end(self._idle.pop())

    async def _compute(self, scorer: Scorer, context: ScoreContext) -> Score:
        size = sum(map(len, filter(None, (context.final_response, *context.responses))))
        if size > MAX_CHARACTERS:
            raise ScoringFailed(f"the response is too long: {size:,} characters; at most {MAX_CHARACTERS:,} are read")
        sample: Any = _Sample.of(context.sample)
        request = pickle.dumps((scorer, replace(context, sample=sample, ask=None, diff=None, session=None)), protocol=5)
        child = self._idle.pop() if self._idle else await _start()
        try:
            answer = await asyncio.wait_for(_exchange(child, request), ANSWER_LIMIT_S)
        except asyncio.TimeoutError:
            await _end(child)
            raise ScoringFailed(f"it took more than {ANSWER_LIMIT_S:.0f} s on this response") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            await _end(child)
            raise ScoringFailed(f"its process ended without an answer: {_how(child.returncode)}") from None
        except BaseException:
            # What it was asked is on its way.
            await asyncio.shield(_end(child))
            raise
        self._idle.append(child)
        found = pickle.loads(answer)
        if isinstance(found, str):
            raise ScoringFailed(found)
        score: Score = found
        return score


async def _start() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *startup.python("codex_batch.scoring.computing", str(CPU_LIMIT_S), str(MEMORY_LIMIT_BYTES)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd="/",
        # A Ctrl-C at the terminal is the batch's to handle.
        start_new_session=True,
    )


async def _exchange(child: asyncio.subprocess.Process, request: bytes) -> bytes:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(len(request).to_bytes(8, "big"))
    child.stdin.write(request)
    await child.stdin.drain()
    size = int.from_bytes(await child.stdout.readexactly(8), "big")
    return await child.stdout.readexactly(size)


async def _end(child: asyncio.subprocess.Process) -> None:
    """End a process that holds nothing of anybody's."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    await child.wait()


def _how(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
