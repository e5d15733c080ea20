"""What was asked of a dataset, as it stands on a command line or in a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .load import CheckRepository, CheckSample, Dataset, load
from .sample import DatasetError
from .selection import Filter, Selection
from .template import Template


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`source` is a file, a directory or `-`; `filters` are conditions as text; see Selection for the rest."""

    source: Path | str
    format: str | None = None
    prompt_template: Path | None = None
    filters: tuple[str, ...] = ()
    sample_ids: tuple[str, ...] = ()
    limit: int | None = None
    shuffle: bool = False
    seed: int = 0
    epochs: int = 1

    def open(
        self,
        *,
        stdin: IO[bytes] | None = None,
        check_sample: CheckSample | None = None,
        check_repository: CheckRepository | None = None,
    ) -> Dataset:
        """The dataset. Raises DatasetError with everything that is wrong, the request's own faults first."""
        problems: list[str] = []
        filters: list[Filter] = []
        for text in self.filters:
            try:
                filters.append(Filter.parse(text))
            except ValueError as error:
                problems.append(str(error))
        template: Template | None = None
        if self.prompt_template is not None:
            try:
                template = Template.read(self.prompt_template)
            except DatasetError as error:
                # Without it nothing can be said of the samples.
                raise DatasetError(problems + error.problems) from None
        # With a wrong filter only what is wrong with the dataset is looked for.
        selection = Selection(
            filters=() if problems else tuple(filters),
            sample_ids=self.sample_ids,
            limit=self.limit,
            shuffle=self.shuffle,
            seed=self.seed,
            epochs=self.epochs,
        )
        try:
            dataset = load(
                self.source,
                selection=selection,
                template=template,
                format=self.format,
                stdin=stdin,
                check_sample=check_sample,
                check_repository=check_repository,
            )
        except DatasetError as error:
            raise DatasetError(problems + error.problems) from None
        if problems:
            dataset.close()
            raise DatasetError(problems)
        return dataset
