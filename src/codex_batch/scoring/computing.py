"""The process in which scorers run that only compute: one request after the other, bounded in CPU time and memory.

    python -m codex_batch.scoring.computing CPU_LIMIT_S MEMORY_LIMIT_BYTES

Started by `process_pool`; the CPU time is that of each request. On stdin and stdout: eight bytes of length, then that
many of a pickle; both ends are this package. A request is (scorer, context), an answer a Score, or a text with the
reason why there is none. Ends with its stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import resource
import signal
import sys
from typing import BinaryIO

from .scorer import Score, ScoreContext, Scorer, ScoringFailed


def main(cpu_limit_s: int, memory_limit_bytes: int) -> None:
    """Answer requests until stdin ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = memory_limit_bytes if hard == resource.RLIM_INFINITY else min(hard, memory_limit_bytes)
    # Not every system has such a limit.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (bound, hard))

    def out_of_time(*_: object) -> None:
        raise ScoringFailed(f"it took more than {cpu_limit_s} s of CPU time on this response")

    signal.signal(signal.SIGXCPU, out_of_time)
    loop = asyncio.new_event_loop()
    _allow(cpu_limit_s)
    while (request := _receive(requests)) is not None:
        answer = pickle.dumps(_answer(loop, request, memory_limit_bytes), protocol=5)
        del request
        answers.write(len(answer).to_bytes(8, "big") + answer)
        answers.flush()
        _allow(cpu_limit_s)


def _receive(stream: BinaryIO) -> bytes | None:
    head = stream.read(8)
    if len(head) < 8:
        return None
    size = int.from_bytes(head, "big")
    data = stream.read(size)
    return data if len(data) == size else None


def _allow(cpu_s: int) -> None:
    """Have SIGXCPU come when so much more CPU time is used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit_s = int(used.ru_utime + used.ru_stime) + 1 + cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s if hard == resource.RLIM_INFINITY else min(limit_s, hard), hard))


def _answer(loop: asyncio.AbstractEventLoop, request: bytes, memory_limit_bytes: int) -> Score | str:
    try:
        scorer: Scorer
        context: ScoreContext
        scorer, context = pickle.loads(request)
        return loop.run_until_complete(scorer.score(context))
    except ScoringFailed as error:
        return str(error)
    except MemoryError:
        return f"it took more than {memory_limit_bytes >> 20:,} MiB of memory on this response"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
