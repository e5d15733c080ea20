"""Runs made up for tests of the report: as many samples as wanted, the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from codex_batch.store import AttemptRow, RecordRow, SampleRow, ScoreRow

BEGIN_S = 1_790_000_000.0
TASKS = ("parse dates", "fix the rounding", "sort by two keys", "read the CSV", "close the file", "escape the query")
ERRORS = (
    ("overload", "Server overloaded; retry later."),
    ("sandbox", "the command could not be started in the sandbox"),
)
WORDS = "the function takes a list of rows and returns them grouped by month keeping the order of the input"
LOST = {"kind": "worker_died", "message": "the worker of this turn died"}
LOREM = tuple(WORDS.split())


class InventedRun:
    """A run that a report can be made of."""

    def __init__(
        self,
        samples: int,
        *,
        name: str = "monday",
        seed: int = 1,
        skill: float = 0.7,
        epochs: int = 1,
        commands: int = 4,
        output_lines: int = 12,
        workers: int = 4,
    ) -> None:
        self.name, self.seed, self.skill, self.epochs = name, seed, skill, epochs
        self.count, self.commands, self.output_lines, self.workers = samples, commands, output_lines, workers
        self._free_at = [BEGIN_S] * (workers * 2)
        self._rows = [self._row(n) for n in range(samples)]
        self._by_key = {(row.id, row.epoch): row for row in self._rows}

    def info(self) -> Mapping[str, Any]:
        config = {"dataset": "tasks.jsonl", "model": "mock-model", "workers": self.workers, "retries": 1}
        return {
            "path": f"/runs/{self.name}",
            "state": "finished",
            "created_at": BEGIN_S,
            "launches": [{}],
            "config": {**config, "currency": "USD", "versions": {"codex": "0.163.0"}},
        }

    def samples(self) -> Iterator[SampleRow]:
        return iter(self._rows)

    def sample(self, sample_id: str, epoch: int = 1) -> SampleRow:
        return self._by_key[sample_id, epoch]

    def attempts(self, n: int) -> list[AttemptRow]:
        record = self._rows[n].record
        if record is None:
            return []
        assert record.started_at is not None and record.ended_at is not None
        return [
            AttemptRow(
                n,
                attempt,
                key=f"key-{n}-{attempt}",
                digest="d",
                thread_id=record.thread_id,
                status=record.status if attempt == record.attempts else "lost",
                error=record.error if attempt == record.attempts else LOST,
                usage=record.usage,
                cost=record.cost,
                worker=record.worker,
                turn_id=record.turn_id,
                queued_ms=record.queued_ms,
                duration_ms=record.duration_ms if attempt == record.attempts else 30,
                started_at=record.started_at - 0.04 * (record.attempts - attempt),
                ended_at=record.ended_at if attempt == record.attempts else record.started_at - 0.01,
                safe_to_retry=None,
                note=None,
                has_events=True,
            )
            for attempt in range(1, record.attempts + 1)
        ]

    def events(self, n: int, attempt: int) -> Iterator[Mapping[str, Any]]:
        row, record = self._rows[n], self._rows[n].record
        assert record is not None
        draw = random.Random(f"{self.seed} events {n} {attempt}")

        def item(**values: Any) -> dict[str, Any]:
            return {"method": "item/completed", "params": {"threadId": "t", "turnId": "u", "item": values}}

        yield item(type="userMessage", id="0", content=[{"type": "text", "text": row.spec["prompts"][0]}])
        yield item(type="reasoning", id="1", summary=["I look at the tests first."], content=[])
        for index in range(record.tool_calls or 0):
            lines = (
                f"tests/test_{draw.randrange(99)}.py: {' '.join(draw.choices(LOREM, k=9))} {draw.random()}"
                for _ in range(self.output_lines)
            )
            yield item(
                type="commandExecution",
                id=f"c{index}",
                command=f"python -m pytest -q tests/test_{draw.randrange(9)}.py",
                cwd="/w",
                commandActions=[],
                aggregatedOutput="\n".join(lines),
                exitCode=draw.choice((0, 0, 1)),
                durationMs=draw.randrange(20, 4000),
                status="completed",
            )
        change = {
            "path": "src/rows.py",
            "kind": {"type": "update"},
            "diff": "@@ -1,2 +1,2 @@\n-def old():\n+def new():\n",
        }
        yield item(type="fileChange", id="f", status="completed", changes=[change])
        if record.final_response is not None:
            yield item(type="agentMessage", id="a", text=record.final_response, phase="final_answer")
        turn = {"id": "u", "status": "completed" if record.status == "completed" else "failed"}
        yield {"method": "turn/completed", "params": {"threadId": "t", "turn": turn}}

    def artifact(self, n: int, name: str) -> bytes:
        assert name == "diff.patch"
        return (
            b"diff --git a/src/rows.py b/src/rows.py\nindex 1f..2a 100644\n--- a/src/rows.py\n+++ b/src/rows.py\n"
            b"@@ -1,4 +1,5 @@\n import csv\n-def rows(path):\n-    return list(csv.reader(open(path)))\n"
            b"+def rows(path):\n+    with open(path, newline='') as file:\n+        return list(csv.reader(file))\n"
        )

    def _row(self, n: int) -> SampleRow:
        draw, same = random.Random(f"{self.seed} {n}"), random.Random(f"task {n // self.epochs}")
        task = same.choice(TASKS)
        hard = same.random()
        status = draw.choices(("completed", "limit", "failed", "stalled", "lost"), (92, 3, 3, 1, 1))[0]
        attempts = 1 + (draw.random() < 0.04)
        duration_ms = int(draw.lognormvariate(9.3, 0.7))
        place = min(range(len(self._free_at)), key=self._free_at.__getitem__)
        started_at = self._free_at[place] + 0.05
        self._free_at[place] = started_at + duration_ms / 1000
        tokens_in, tokens_out = int(draw.lognormvariate(9.5, 0.5)), int(draw.lognormvariate(6.5, 0.6))
        scores: tuple[ScoreRow, ...] = ()
        if status in ("completed", "limit"):
            right = draw.random() < self.skill + 0.5 - hard
            quality = min(1.0, max(0.0, draw.gauss(0.75 if right else 0.35, 0.15)))
            broken = draw.random() < 0.01
            said = None if broken else f"The change does what the task asks: {task}. " * 2
            trouble = "the judge gave no number" if broken else None
            answer = "12 passed" if right else "2 failed, 10 passed"
            scores = (
                ScoreRow("tests", float(right), right, answer, None, None, None, 812, BEGIN_S),
                ScoreRow("judge", None if broken else quality, None, None, said, None, trouble, 90, BEGIN_S),
            )
        kind, message = draw.choice(ERRORS)
        completed = status == "completed"
        record = RecordRow(
            status=status,
            attempts=attempts,
            limit="tokens" if status == "limit" else None,
            final_response=f"I changed src/rows.py: {' '.join(draw.choices(LOREM, k=24))}." if completed else None,
            error=None if status in ("completed", "limit") else {"kind": kind, "message": message},
            usage={
                "input_tokens": tokens_in,
                "cached_input_tokens": tokens_in // 3,
                "output_tokens": tokens_out,
                "total_tokens": tokens_in + tokens_out,
            },
            cost=tokens_in * 1.25e-6 + tokens_out * 1e-5,
            thread_id=f"thread-{n}",
            turn_id=f"turn-{n}",
            worker=f"worker-{place % self.workers}",
            turns=1,
            tool_calls=draw.randrange(self.commands + 1),
            queued_ms=int(draw.random() * 400),
            duration_ms=duration_ms,
            started_at=started_at,
            ended_at=self._free_at[place],
            artifacts=("diff.patch",) if completed else (),
        )
        prompt = f"In this repository, {task} in the module {same.choice(LOREM)}, so that its tests pass."
        return SampleRow(
            n=n,
            id=f"{task.replace(' ', '-')}-{n // self.epochs:04}",
            epoch=n % self.epochs + 1,
            digest=f"{n // self.epochs}",
            spec={"prompts": [prompt], "target": "12 passed", "sandbox": "workspace-write"},
            tags=(task.split()[0], "hard" if hard > 0.6 else "easy"),
            state="done",
            selected=True,
            position=n,
            record=record,
            scores=scores,
        )
