"""Rows of a run without the secrets that are known. Pure: each function returns what may be written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from ..redaction.redactor import Redactor
from .layout import SampleKey
from .rows import Entry, RecordRow


def entries(redactor: Redactor, given: Iterable[Entry], changed: dict[SampleKey, dict[str, Any]]) -> Iterator[Entry]:
    """Samples; what is asked of those that hold a secret goes into `changed`. `digest` is of what is asked."""
    for entry in given:
        spec, tags = redactor.value(entry.spec), entry.tags
        if tags:
            tags = tuple(redactor.value(list(tags)))
        if spec is not entry.spec:
            changed[entry.id, entry.epoch, entry.variant] = dict(entry.spec)
        is_same = spec is entry.spec and tags == entry.tags
        yield entry if is_same else msgspec.structs.replace(entry, spec=spec, tags=tags)


def end(redactor: Redactor, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Redact the end of an attempt."""
    error = given.get("error")
    return given if error is None else {**given, "error": redactor.value(error)}


def record(redactor: Redactor, row: RecordRow) -> RecordRow:
    """Redact the record of a sample."""
    response = None if row.final_response is None else redactor.text(row.final_response)
    if response is row.final_response and row.error is None and len(row.responses) < 2:
        return row
    responses = tuple(None if each is None else redactor.text(each) for each in row.responses)
    return msgspec.structs.replace(row, final_response=response, error=redactor.value(row.error), responses=responses)


def scores(redactor: Redactor, given: Sequence[Any]) -> Sequence[Any]:
    """Scores of a sample."""
    if not redactor:
        return given
    return [
        replace(
            score,
            answer=redactor.value(score.answer),
            explanation=redactor.value(score.explanation),
            metadata=redactor.value(score.metadata),
            error=redactor.value(score.error),
        )
        for score in given
    ]
