"""Many ephemeral prompts: what app-servers keep of finished threads is given back by recycling, without a failed turn.

    python tests/chaos/shows/memory.py [--quick]

Each thread is let go (thread/unsubscribe) after its turn, because a worker that drains keeps one that may be used again
for a minute. The peak of the memory of all app-servers together over the last half must be within 1.3 times that over
the first tenth, and each app-server under the configured bound.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
import time
from pathlib import Path

import common

from codex_app_server import AppServerConfig
from codex_pool import Pool
from codex_pool.demo import demo_home

BOUND_BYTES = 512 * 1024**2
RECYCLE_THREADS = 40
AT_ONCE = 16
ALLOWED = 1.3


def main() -> int:
    options = common.arguments(__doc__, "memory", prompts=(2000, 240, "prompts, each on a thread of its own"))
    problems: list[str] = []
    # (finished prompts, bytes of all app-servers, bytes of the largest)
    samples: list[tuple[int, int, int]] = []
    finished = [0]
    failed: list[str] = []
    done = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="chaos-memory-") as name,
        demo_home(Path(name) / "home", script=None) as home,
    ):
        config = AppServerConfig(env={"CODEX_HOME": str(home)})
        recycling = {"recycle_threads": RECYCLE_THREADS, "recycle_memory_bytes": BOUND_BYTES}
        with Pool(2, config, log_file=Path(name) / "log", **recycling) as pool:

            def sample() -> None:
                assert pool.supervisor_pid is not None
                while not done.wait(0.2):
                    sizes = [
                        common.rss_bytes(p.pid) for p in common.below(pool.supervisor_pid, b"app-server", b"stdio")
                    ]
                    samples.append((finished[0], sum(sizes), max(sizes, default=0)))

            async def run() -> None:
                async with await pool.aconnect() as codex:
                    todo = iter(range(options.prompts))

                    async def work() -> None:
                        for number in todo:
                            thread = await codex.thread_start(ephemeral=True)
                            result = await thread.run(f"[[text deltas=5]] question {number}")
                            if result.final_response is None or f"question {number}" not in result.final_response:
                                failed.append(f"{number}: {result.final_response!r}")
                            # Nobody will have a turn on it any more: its worker may go when it is worn.
                            await codex.client.request("thread/unsubscribe", {"thread_id": thread.id})
                            finished[0] += 1

                    await asyncio.gather(*(work() for _ in range(AT_ONCE)))

            sampler = threading.Thread(target=sample)
            sampler.start()
            began = time.monotonic()
            try:
                asyncio.run(run())
            except Exception as error:
                failed.append(repr(error))
            finally:
                took_s = time.monotonic() - began
                done.set()
                sampler.join()
            with pool.connect() as codex:
                state = common.status(codex)
        log = (Path(name) / "log").read_text()
    first = max((total for count, total, _ in samples if count < options.prompts // 10), default=0)
    last = max((total for count, total, _ in samples if count >= options.prompts // 2), default=0)
    largest = max((size for _, _, size in samples), default=0)
    problems += [f"a prompt failed: {failure}" for failure in failed[:5]]
    # A short run has hardly begun when a tenth of it is over.
    if last > ALLOWED * first and not options.quick:
        problems.append(f"the last half's peak is {last / first:.2f} times that of the first tenth")
    if largest > BOUND_BYTES:
        problems.append(f"an app-server had {largest} bytes, the bound is {BOUND_BYTES}")
    figures = {
        "prompts": finished[0],
        "recycled": log.count("recycling w"),
        "replaced after a death": sum(row["restarts"] for row in state["workers"]),
        "peak MiB, first tenth": first / 1024**2,
        "peak MiB, last half": last / 1024**2,
        "ratio": last / first if first else 0.0,
        "largest app-server MiB": largest / 1024**2,
        "bound MiB": BOUND_BYTES // 1024**2,
        "prompts a second": finished[0] / took_s,
    }
    return common.report("memory of app-servers under recycling", options.out, figures, problems)


if __name__ == "__main__":
    sys.exit(main())
