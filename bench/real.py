"""Setups that run real turns side by side: the same codex binary, configuration, threads, prompts and turns at once."""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from measured import PoolProcesses, cpu_s

DELTAS = 20
LIMIT_S = 600.0


@dataclass
class Running:
    """A competitor that is ready. `run` runs so many turns and returns the seconds; `cpu_s` is CPU so far, by room."""

    run: Callable[[int], float]
    cpu_s: Callable[[], dict[str, float]]


def prompt(number: int) -> str:
    return f"[[text deltas={DELTAS}]] Question {number}: what comes next?"


def check(number: int, response: str | None) -> None:
    if response is None or f"Question {number}:" not in response:
        raise AssertionError(f"turn {number} was answered {response!r}")


# As codex comes; the home of the benches has it off.
PLAIN = ("features.shell_snapshot=true",)


def overrides() -> tuple[str, ...]:
    """Return what the pool adds by itself, for everybody."""
    from codex_pool.lean_profile import LEAN_OVERRIDES

    return LEAN_OVERRIDES


def environment(home: Path, sqlite: str) -> dict[str, str]:
    from codex_pool.lean_profile import LEAN_ENVIRON

    (home / sqlite).mkdir(exist_ok=True)
    return {"CODEX_HOME": str(home), "CODEX_SQLITE_HOME": str(home / sqlite), **LEAN_ENVIRON}


@contextmanager
def published(home: Path, app_servers: int, concurrency: int, *, plain: bool = False) -> Iterator[Running]:
    """`openai-codex`, a thread of the caller per turn under way, spread over `app_servers` processes by hand.

    `plain`: without what the pool adds.
    """
    from openai_codex import ApprovalMode, Codex, CodexConfig

    with ExitStack() as stack:
        clients = []
        before = set(app_servers_below(os.getpid()))
        for number in range(app_servers):
            env = environment(home, f"published-{number}")
            settings = PLAIN if plain else overrides()
            clients.append(stack.enter_context(Codex(CodexConfig(env=env, config_overrides=settings))))
        pids = set(app_servers_below(os.getpid())) - before
        assert len(pids) == app_servers

        def run(turns: int) -> float:
            todo: queue.SimpleQueue[int] = queue.SimpleQueue()
            for number in range(turns):
                todo.put(number)
            failures: list[BaseException] = []

            def work(client: Codex) -> None:
                try:
                    while True:
                        number = todo.get_nowait()
                        thread = client.thread_start(ephemeral=True, approval_mode=ApprovalMode.deny_all)
                        check(number, thread.run(prompt(number)).final_response)
                except queue.Empty:
                    return
                except BaseException as error:
                    failures.append(error)

            workers = [
                threading.Thread(target=work, args=(client,))
                for client, _ in zip(itertools.cycle(clients), range(concurrency), strict=False)
            ]
            began = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            took = time.perf_counter() - began
            if failures:
                raise failures[0]
            return took

        yield Running(run, lambda: {"app-servers": sum(map(cpu_s, pids)), "client": time.process_time()})


@contextmanager
def pooled(home: Path, workers: int, concurrency: int) -> Iterator[Running]:
    """`codex_pool`, one asyncio client."""
    from codex_app_server import AppServerConfig
    from codex_pool import Pool

    config = AppServerConfig(env={"CODEX_HOME": str(home)})
    per_worker = -(-concurrency // workers)
    with Pool(workers=workers, config=config, turns_per_worker=per_worker, log_file=os.devnull) as pool:
        assert pool.supervisor_pid is not None
        processes = PoolProcesses(pool.supervisor_pid)
        assert len(processes.workers) == len(processes.app_servers) == workers

        async def run_all(turns: int) -> float:
            async with await pool.aconnect() as codex:
                todo = iter(range(turns))

                async def work() -> None:
                    for number in todo:
                        thread = await codex.thread_start(ephemeral=True, approval_policy="never")
                        check(number, (await thread.run(prompt(number))).final_response)

                began = time.perf_counter()
                await asyncio.gather(*(work() for _ in range(concurrency)))
                return time.perf_counter() - began

        yield Running(
            lambda turns: asyncio.run(run_all(turns)), lambda: {**processes.cpu_s(), "client": time.process_time()}
        )


@contextmanager
def executed(home: Path, concurrency: int, *, plain: bool = False) -> Iterator[Running]:
    """`codex exec` under xargs: a process a turn. `plain`: without what the pool adds."""
    from codex_app_server.config import find_codex

    argv = ["xargs", "-P", str(concurrency), "-I{}", str(find_codex())]
    for override in PLAIN if plain else overrides():
        argv += ["--config", override]
    argv += ["exec", "--skip-git-repo-check", "--ephemeral", prompt(0).replace("Question 0", "Question {}")]
    env = {**os.environ, **environment(home, "executed")}

    def run(turns: int) -> float:
        began = time.perf_counter()
        done = subprocess.run(
            argv,
            input="".join(f"{number}\n" for number in range(turns)),
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=LIMIT_S,
        )
        took = time.perf_counter() - began
        missing = [number for number in range(turns) if f"Question {number}:" not in done.stdout]
        if done.returncode or missing:
            raise AssertionError(f"codex exec under xargs: exit code {done.returncode}, no answers to {missing}")
        return took

    def cpu() -> dict[str, float]:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {"app-servers": used.ru_utime + used.ru_stime}

    # Alone first: several at once on a new SQLite home fail.
    run(1)
    yield Running(run, cpu)


def app_servers_below(pid: int) -> list[int]:
    from codex_pool.runtime import processes

    return [found for found, _ in processes.descendants(pid) if "app-server" in command(found).split()]


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
