"""Kills over threads that are sandboxed otherwise than the home's default: each answers elsewhere as it was.

    python tests/chaos/shows/threads.py [--quick]

`workspace-write` threads with a name and a model of their own, in a home whose default is danger-full-access; half of
the kills hit app-servers and half workers, half idle ones and half in mid-turn.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import common

from codex_app_server import AppServerConfig, Codex, Thread, TurnFailedError
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool


def main() -> int:
    options = common.arguments(__doc__, "threads", kills=(50, 4, "rounds, one kill each"))
    good: Counter[str] = Counter()
    problems: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-threads-", dir="/var/tmp") as name, LoopbackModel() as model:
        root = Path(name)
        (root / "work").mkdir()
        write_loopback_home(root / "home", model.base_url, sandbox_mode="danger-full-access")
        config = AppServerConfig(cwd=root / "work", env={"CODEX_HOME": str(root / "home")})
        with Pool(2, config, log_file=root / "log") as pool, pool.connect() as codex:
            for number in range(options.kills):
                victim = ("app-server", "worker")[number % 2]
                phase = ("idle", "mid-turn")[number // 2 % 2]
                try:
                    round_of(codex, model, root, victim, phase)
                    good[f"{victim}, {phase}"] += 1
                except AssertionError as error:
                    problems.append(f"kill {number + 1}, {victim}, {phase}: {error}")
                    problems.append((root / "log").read_text()[-1500:])
            if pool.failure is not None:
                problems.append(f"the pool has ended: {pool.failure}")
    figures = {
        "kills": options.kills,
        "answered elsewhere as they were": sum(good.values()),
        **{f"  {kind}": count for kind, count in sorted(good.items())},
        "seconds": time.monotonic() - began,
    }
    title = "kills over workspace-write threads in a home without a sandbox"
    return common.report(title, options.out, figures, problems)


def round_of(codex: Codex, model: LoopbackModel, root: Path, victim: str, phase: str) -> None:
    """One thread, one kill, and the thread afterwards. Raises AssertionError."""
    history, name = f"history-{secrets.token_hex(6)}", f"name-{secrets.token_hex(3)}"
    thread = codex.thread_start(sandbox="workspace-write", model="other-model")
    worker = next(n.params["worker"] for n in thread.turn(f'[[text "{history}"]]').stream() if "worker" in n.params)
    common.wait_until(lambda: common.status(codex)["turns"]["running"] == 0, "the turn is over")
    thread.set_name(name)
    row = next(row for row in common.status(codex)["workers"] if row.get("worker") == worker)
    turn = None
    if phase == "mid-turn":
        mark = secrets.token_hex(6)
        turn = thread.turn(f"{mark} [[hang 2]]")
        model.wait_for(lambda record: mark in record.prompt and record.outcome == "hanging", 30)
    os.kill(row["appServerPid" if victim == "app-server" else "pid"], signal.SIGKILL)
    if turn is not None:
        try:
            turn.run(timeout=30)
            raise AssertionError("the turn that was killed has ended well")
        except TurnFailedError as error:
            assert error.kind == "lost", error
    common.wait_until(
        lambda: worker not in {r.get("worker") for r in common.status(codex)["workers"]}, "the death is known"
    )
    as_it_was(thread, model, root, history, name, worker)
    common.wait_until(
        lambda: all(r["state"] == "ready" for r in common.status(codex)["workers"]), "all workers are ready again"
    )


def as_it_was(thread: Thread, model: LoopbackModel, root: Path, history: str, name: str, worker: str) -> None:
    inside, outside = root / "work" / secrets.token_hex(6), root / secrets.token_hex(6)
    command = f"echo in > {inside.name}; echo out > {outside}"
    turn = thread.turn(f'[[tool_call "{command}"]] [[text "done"]]')
    elsewhere = [n.params["worker"] for n in turn.stream() if n.method == "pool/turn/assigned"]
    assert elsewhere and elsewhere[0] != worker, f"it was answered by {elsewhere}"
    record = model.wait_for(lambda record: command in record.prompt, 30)
    assert any(history in text for text in record.user_texts), "its history is gone"
    assert record.model == "other-model", f"its model is {record.model}"
    assert inside.exists(), "it may not write into its workspace"
    assert not outside.exists(), "its sandbox is wider than it was"
    read = thread.read(include_turns=True).thread
    assert read.name == name, f"its name is {read.name!r}"
    assert history in read.model_dump_json(), "its stored history is gone"


if __name__ == "__main__":
    sys.exit(main())
