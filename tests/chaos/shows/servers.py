"""Many short ephemeral threads with an MCP server each: never more servers are alive than the workers may have.

    python tests/chaos/shows/servers.py [--quick]

An app-server keeps the MCP servers of an ephemeral thread for half an hour after that was let go, so workers are
recycled, and threads wait meanwhile. All servers on the machine are counted every 20 ms, those of workers that drain
included.
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

sys.path.insert(0, str(Path(__file__).parents[2] / "harness"))
from mcp_servers import mcp_config, server_pids

WORKERS = 2
AT_ONCE = 16
RECYCLE_DESCENDANTS = 32


def main() -> int:
    options = common.arguments(__doc__, "servers", threads=(500, 120, "threads, each with a turn and a server"))
    problems: list[str] = []
    counts: list[int] = []
    waits_s: list[float] = []
    failed: list[str] = []
    done = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="chaos-servers-") as name,
        demo_home(Path(name) / "home", script=None) as home,
    ):
        with open(home / "config.toml", "a") as file:
            file.write(mcp_config(Path(name)))
        config = AppServerConfig(env={"CODEX_HOME": str(home)})
        with Pool(WORKERS, config, log_file=Path(name) / "log", recycle_descendants=RECYCLE_DESCENDANTS) as pool:

            def count() -> None:
                while not done.wait(0.02):
                    counts.append(len(server_pids(Path(name))))

            async def run() -> None:
                async with await pool.aconnect() as codex:
                    todo = iter(range(options.threads))

                    async def work() -> None:
                        for number in todo:
                            began = time.monotonic()
                            thread = await codex.thread_start(ephemeral=True)
                            waits_s.append(time.monotonic() - began)
                            result = await thread.run(f"[[text deltas=5]] question {number}")
                            if result.final_response is None or f"question {number}" not in result.final_response:
                                failed.append(f"{number}: {result.final_response!r}")
                            await codex.client.request("thread/unsubscribe", {"thread_id": thread.id})

                    await asyncio.gather(*(work() for _ in range(AT_ONCE)))

            counter = threading.Thread(target=count)
            counter.start()
            began = time.monotonic()
            try:
                asyncio.run(run())
            except Exception as error:
                failed.append(repr(error))
            finally:
                took_s = time.monotonic() - began
                done.set()
                counter.join()
            with pool.connect() as codex:
                state = common.status(codex)
    limit = WORKERS * RECYCLE_DESCENDANTS
    problems += [f"a thread failed: {failure}" for failure in failed[:5]]
    if max(counts, default=0) > limit:
        problems.append(f"{max(counts)} servers were alive at once, the limit is {limit}")
    figures = {
        "threads": len(waits_s),
        "most servers at once": max(counts, default=0),
        "limit": limit,
        "looks": len(counts),
        "recycles": sum(row["recycles"] for row in state["workers"]),
        "replaced after a death": sum(row["restarts"] for row in state["workers"]),
        "longest start of a thread, s": max(waits_s, default=0.0),
        "threads a second": len(waits_s) / took_s,
    }
    return common.report("MCP servers of ephemeral threads", options.out, figures, problems)


if __name__ == "__main__":
    sys.exit(main())
