"""One row a sample: JSON lines as in results.jsonl, and the same flat, as CSV and Parquet.

Flat, each scorer has columns of its own, `score.NAME` and `passed.NAME`; what is no text or number is JSON.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

from ..store import RunStore, SampleRow
from ..store.export import line_of
from ..store.rows import is_valid
from .errors import ExportError

ROWS_AT_ONCE = 1_000
_TEXT, _WHOLE, _REAL, _FLAG = "string", "int64", "double", "bool"
# Column -> its type.
COLUMNS: dict[str, str] = {
    "id": _TEXT,
    "epoch": _WHOLE,
    "variant": _TEXT,
    "status": _TEXT,
    "valid": _FLAG,
    "limit": _TEXT,
    "final_response": _TEXT,
    "error_kind": _TEXT,
    "error_message": _TEXT,
    "input_tokens": _WHOLE,
    "cached_input_tokens": _WHOLE,
    "output_tokens": _WHOLE,
    "reasoning_output_tokens": _WHOLE,
    "total_tokens": _WHOLE,
    "cost": _REAL,
    "attempts": _WHOLE,
    "turns": _WHOLE,
    "tool_calls": _WHOLE,
    "queued_ms": _WHOLE,
    "duration_ms": _WHOLE,
    "started_at": _REAL,
    "ended_at": _REAL,
    "worker": _TEXT,
    "thread_id": _TEXT,
    "turn_id": _TEXT,
    "agents_md": _TEXT,
    "model": _TEXT,
    "effort": _TEXT,
    "provider": _TEXT,
    "codex_version": _TEXT,
    "rerouted_from": _TEXT,
    "fingerprint": _TEXT,
    "launch": _WHOLE,
    "tags": _TEXT,
    "target": _TEXT,
    "prompts": _TEXT,
    "metadata": _TEXT,
}


_OF_SAMPLE = ("id", "epoch", "variant", "tags")


def finished(store: RunStore, variant: str | None = None) -> Iterator[SampleRow]:
    """Iterate over the samples that have a record, in the order of the dataset; of one variant if it is named."""
    return (row for row in store.samples(state="done", variant=variant) if row.record is not None)


def write_jsonl(store: RunStore, file: IO[bytes], variant: str | None = None) -> None:
    for row in finished(store, variant):
        file.write(line_of(row))


def write_csv(store: RunStore, file: IO[bytes], variant: str | None = None) -> None:
    columns = list(_columns(store, variant))
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
    try:
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        for row in finished(store, variant):
            writer.writerow(flat(row))
    finally:
        text.detach()


def write_parquet(store: RunStore, file: IO[bytes], variant: str | None = None) -> None:
    """Raises ExportError without pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ExportError("parquet needs the package pyarrow; pip install 'codex-pool[parquet]'") from None
    columns = _columns(store, variant)
    schema = pa.schema([(name, getattr(pa, _ARROW[kind])()) for name, kind in columns.items()])
    rows = finished(store, variant)
    with pq.ParquetWriter(file, schema) as writer:
        while batch := [flat(row) for row in islice(rows, ROWS_AT_ONCE)]:
            values = {name: [_clean(row.get(name)) for row in batch] for name in columns}
            writer.write_table(pa.table(values, schema=schema))


_ARROW = {_TEXT: "string", _WHOLE: "int64", _REAL: "float64", _FLAG: "bool_"}


def _columns(store: RunStore, variant: str | None) -> dict[str, str]:
    """The columns of a file: that of the variant only in a run with variants, and those of the scorers that scored."""
    scorers = dict.fromkeys(score.scorer for row in finished(store, variant) for score in row.scores)
    has_variants = bool(store.variant_names())
    columns = {name: kind for name, kind in COLUMNS.items() if has_variants or name != "variant"}
    of_scores = {f"{what}.{name}": kind for name in scorers for what, kind in (("score", _REAL), ("passed", _FLAG))}
    return columns | of_scores


def flat(row: SampleRow) -> dict[str, Any]:
    """The columns of a sample that has a record. Those of a scorer that failed are empty."""
    record = row.record
    assert record is not None
    error, usage = record.error or {}, record.usage or {}
    values: dict[str, Any] = {
        name: getattr(record, name, usage.get(name))
        for name in COLUMNS
        if name not in ("id", "epoch", "variant", "tags")
    }
    values |= {
        "id": row.id,
        "epoch": row.epoch,
        **({"variant": row.variant} if row.variant else {}),
        "valid": is_valid(record.status),
        "error_kind": error.get("kind"),
        "error_message": error.get("message"),
        "tags": ",".join(row.tags),
        "target": _text(row.spec.get("target")),
        "prompts": _text(row.spec.get("prompts")),
        "metadata": _text(row.spec.get("metadata")),
    }
    for score in row.scores:
        if score.error is None:
            values |= {f"score.{score.scorer}": score.value, f"passed.{score.scorer}": score.passed}
    return values


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _clean(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
