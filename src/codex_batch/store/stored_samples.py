"""The samples of a run as it has stored them, to be run again: their dataset need not be there any more."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from ..dataset import Dataset, DatasetError, Sample
from ..dataset.held import line_of
from ..dataset.load import MAX_PROBLEMS, CheckRepository, CheckSample
from ..dataset.trees import tree_digest
from ..redaction.redactor import is_redacted
from . import open_run


def begun_samples(
    run: Path, name: str, path: Path | None, *, check_sample: CheckSample, check_repository: CheckRepository
) -> Dataset:
    """The samples of a run that were begun and are not done; `name` and `path` are of the dataset they came from.

    Raises DatasetError when they cannot be run as they were, RunDirectoryError when there is no run.
    """
    problems: list[str] = []
    trees: dict[str, str | ValueError] = {}
    offsets, end = array("Q"), 0
    with ExitStack() as closing:
        spool = closing.enter_context(tempfile.TemporaryFile())
        with open_run(run) as store:
            for row in store.samples(begun=True):
                sample = Sample.from_json(row.spec)
                where = f"{run}: {row.shown_name}"
                if is_redacted(json.dumps(row.spec, ensure_ascii=False)):
                    problems.append(
                        f"{where}: it held a secret, which is not kept: run the command of the run again, which takes "
                        "the sample from its dataset"
                    )
                problems += _changed(sample, where, trees, check_repository)
                problems += check_sample(sample, where)
                offsets.append(end)
                end += spool.write(line_of(sample))
        if problems:
            more = len(problems) - MAX_PROBLEMS
            raise DatasetError(problems[:MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else []))
        # From here on the dataset closes it.
        closing.pop_all()
        order = array("L", range(len(offsets)))
        return Dataset(name, path, spool, offsets, order, 1, len(offsets))


def _changed(
    sample: Sample, where: str, trees: dict[str, str | ValueError], check_repository: CheckRepository
) -> Iterator[str]:
    """Yield a problem for each source of its workspace that has changed since it was made."""
    workspace = sample.workspace or {}
    if "git" in workspace:
        try:
            check_repository(workspace["git"], workspace["commit"])
        except ValueError as error:
            yield f"{where}: workspace: {error}"
    template = workspace.get("template")
    if template is None:
        return
    if template not in trees:
        try:
            trees[template] = tree_digest(Path(template)) if Path(template).is_dir() else ValueError("is not there")
        except ValueError as error:
            trees[template] = error
    found = trees[template]
    if isinstance(found, ValueError):
        yield f"{where}: workspace: the template {template} cannot be used: {found}"
    elif found != workspace["tree"]:
        yield (
            f"{where}: workspace: the template {template} is not as it was when the sample was run; "
            "run the command of the run again with --changed rerun"
        )
