"""Run directories for tests, as a batch leaves them, without a batch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codex_pool.batch.dataset import Sample
from codex_pool.batch.scoring import Score
from codex_pool.batch.store import Entry, EventLog, RecordRow, RunDirectory


def make_run(
    path: Path,
    samples: Sequence[tuple[Sample, str | None]],
    *,
    scorers: Sequence[Any] = (),
    scores: Mapping[str, Sequence[Score]] | None = None,
    events: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    **of_record: Any,
) -> Path:
    """A run over `samples`, each with its final response, or failed with None. `scores` and `events` by sample id."""
    directory = RunDirectory(path)
    directory.launch(
        {
            "scorers": list(scorers),
            "dataset": {"name": "d.jsonl", "git": {"commit": "4f2a91c", "branch": "main", "changed": True}},
            "versions": {"codex_pool": "0.1.0"},
        }
    )
    directory.load([Entry(s.id, s.epoch, s.digest, s.to_json(), s.tags) for s, _ in samples], "d.jsonl")
    for sample, response in samples:
        n = directory.store.sample(sample.id, sample.epoch).n
        start = directory.start_attempt(n, "key", "thread").result(5)
        failed = {"status": "failed", "error": {"kind": "other", "message": "no"}}
        ends: dict[str, Any] = {"status": "completed"} if response is not None else failed
        record = RecordRow(
            **{**ends, "attempts": 1, "final_response": response, "artifacts": ("diff.patch",), **of_record}
        )
        log = EventLog()
        for notification in (events or {}).get(sample.id, ()):
            log.add(json.dumps(notification).encode())
        directory.finish(start, record, ends, events=log.member()).result(5)
        if scores is not None and sample.id in scores:
            directory.replace_scores(n, scores[sample.id])
    directory.outcome("finished", {})
    directory.close()
    return path
