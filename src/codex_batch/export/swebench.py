"""A run as predictions of SWE-bench: JSON lines with the diff of each sample, as its harness reads them."""

from __future__ import annotations

from typing import IO

from ..store import RunStore, SampleRow, layout
from ..store.export import encode
from .errors import ExportError
from .recorded import Missing
from .table import finished

NO_MODEL = "codex"


def write_swebench(store: RunStore, file: IO[bytes], variant: str | None = None) -> None:
    """Write the prediction of each finished sample; in a run with variants, name one.

    The harness takes one prediction of an instance: of several epochs that is the first. Raises ExportError.
    """
    names = store.variant_names()
    if names and variant is None:
        raise ExportError(f"predictions are of one variant: name one of {', '.join(names)} with --variant")
    further = Missing("left out, as an instance has one prediction", "only the first epoch is written")
    without = Missing("the patch is empty, as no diff is kept, of", "their attempts failed, or had no workspace")
    for row in finished(store, variant):
        if row.epoch > 1:
            further.add(row)
            continue
        patch = _patch(store, row)
        if patch is None:
            without.add(row)
        file.write(encode(prediction(row, patch or "")))
    further.report()
    without.report()


def prediction(row: SampleRow, patch: str) -> dict[str, str]:
    """Return the prediction of a sample that has a record."""
    assert row.record is not None
    model = row.record.model or NO_MODEL
    return {
        "instance_id": row.id,
        "model_name_or_path": f"{model}@{row.variant}" if row.variant else model,
        "model_patch": patch,
    }


def _patch(store: RunStore, row: SampleRow) -> str | None:
    try:
        return store.artifact(row.n, layout.DIFF).decode("utf-8", "replace")
    except KeyError:
        return None
