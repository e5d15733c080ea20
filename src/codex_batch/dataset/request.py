"""Requests for a dataset, as they stand on a command line or in a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import hub
from .columns import Columns
from .harbor_tasks import HarborOptions
from .held import Dataset
from .load import AdaptSample, CheckRepository, CheckSample, load
from .sample import DatasetError
from .selection import Filter, Selection
from .shards import Shard
from .sources import path_of
from .template import Template


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`source` is a file, a directory, `-` or `hf://...`; `columns` are fields by column, `FIELD=COLUMN`; `filters` are
    conditions as text; `ignored_keys` and `oracle` are for tasks in
    Harbor's format, as HarborOptions has them; see Selection for the rest.
    """

    source: Path | str
    format: str | None = None
    columns: tuple[str, ...] = ()
    prompt_template: Path | None = None
    filters: tuple[str, ...] = ()
    sample_ids: tuple[str, ...] = ()
    limit: int | None = None
    shuffle: bool = False
    seed: int = 0
    epochs: int = 1
    shard: Shard | None = None
    """Part of the selected samples; None for all of them."""
    ignored_keys: tuple[str, ...] = ()
    oracle: bool = False

    @property
    def path(self) -> Path | None:
        """The file or directory, as a real path; None for standard input and the hub. Raises DatasetError."""
        return path_of(self.source)

    @property
    def caches(self) -> tuple[Path, ...]:
        """Directories in which the libraries of the hub keep the dataset on this machine. Raises DatasetError."""
        return hub.parse(str(self.source)).caches if hub.is_hub(self.source) else ()

    def open(
        self,
        *,
        stdin: IO[bytes] | None = None,
        check_sample: CheckSample | None = None,
        check_repository: CheckRepository | None = None,
        adapt: AdaptSample | None = None,
    ) -> Dataset:
        """The dataset. Raises DatasetError with everything that is wrong, the request's own faults first."""
        problems: list[str] = []
        filters: list[Filter] = []
        for text in self.filters:
            try:
                filters.append(Filter.parse(text))
            except ValueError as error:
                problems.append(str(error))
        if self.format != "harbor":
            problems += ["--oracle: is for --format harbor; expected none"] if self.oracle else []
            problems += ["--ignore-key: is for --format harbor; expected none"] if self.ignored_keys else []
        columns: Columns | None = None
        template: Template | None = None
        try:
            columns = Columns(self.columns) if self.columns else None
        except DatasetError as error:
            # Without them, and without the template, the samples cannot be checked.
            raise DatasetError(problems + error.problems) from None
        if columns is not None and self.prompt_template is not None and {"prompt", "prompts"} & set(columns.names):
            problems.append("--field prompt=...: stands beside --prompt-template; expected one of them")
        if self.prompt_template is not None:
            try:
                template = Template.read(self.prompt_template)
            except DatasetError as error:
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
                shard=self.shard,
                columns=columns,
                template=template,
                format=self.format,
                stdin=stdin,
                check_sample=check_sample,
                check_repository=check_repository,
                harbor=HarborOptions(frozenset(self.ignored_keys), self.oracle),
                adapt=adapt,
            )
        except DatasetError as error:
            raise DatasetError(problems + error.problems) from None
        if problems:
            dataset.close()
            raise DatasetError(problems)
        return dataset
