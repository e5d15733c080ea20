"""`hf://ORG/NAME[/CONFIG]:SPLIT[@REVISION]`: datasets of the Hugging Face hub, through the library `datasets`.

`hf:///DIRECTORY[/CONFIG]:SPLIT` is a local directory that the library can load. Code of a dataset is never run. The
revision is looked up first, so that a name that moves, as `main`, is recorded as the commit that was read.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codex_app_server._runtime.text import cut

from .arrow import BATCH_ROWS, rows_of
from .fields import printable
from .row import DatasetRow
from .sample import DatasetError

SCHEME = "hf://"
EXPECTED = "expected hf://ORG/NAME[/CONFIG]:SPLIT[@REVISION], as in hf://openai/gsm8k/main:test"
LOOKUP_LIMIT_S = 20.0
_SPLIT = r"(?P<split>[\w.+-]+(?:\[[^\]@]*\])?)"
_LOCAL = re.compile(rf"hf://(?P<directory>/.+):{_SPLIT}", re.ASCII)
_HUB = re.compile(
    rf"hf://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:/(?P<config>[\w.-]+))?:{_SPLIT}(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A split of a dataset. `name` is that on the hub, or an absolute directory."""

    text: str
    name: str
    config: str | None
    split: str
    revision: str | None

    @property
    def directory(self) -> Path | None:
        """The directory of the dataset, if it is a local one."""
        return Path(self.name) if self.name.startswith("/") else None

    @property
    def caches(self) -> tuple[Path, ...]:
        """Directories of the libraries in which it is kept, as far as they are there."""
        if self.directory is not None:
            return ()
        environ = os.environ
        cache = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        home = Path(environ.get("HF_HOME") or Path(cache, "huggingface")).expanduser()
        hub = Path(environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub").expanduser()
        tables = Path(environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
        # The library writes the names of tables in another case, with further underscores.
        name = _letters(self.name.replace("/", ""))
        found = [path for path in tables.glob("*") if _letters(path.name) == name]
        return (*(path for path in (hub / f"datasets--{self.name.replace('/', '--')}", *found) if path.is_dir()),)


def _letters(name: str) -> str:
    return name.replace("_", "").lower()


def is_hub(source: Path | str) -> bool:
    return isinstance(source, str) and source.startswith(SCHEME)


def parse(text: str) -> HubSource:
    """Raises DatasetError."""
    local = _LOCAL.fullmatch(text)
    if local is not None:
        directory, config = Path(local["directory"]), None
        if not directory.is_dir() and directory.parent.is_dir():
            directory, config = directory.parent, directory.name
        if not directory.is_dir():
            raise DatasetError([f"{printable(text)}: {printable(str(directory))} is not a directory; {EXPECTED}"])
        return HubSource(text, str(directory), config, local["split"], None)
    found = _HUB.fullmatch(text)
    if found is None:
        raise DatasetError([f"{printable(text)}: is no dataset of the hub; {EXPECTED}"])
    return HubSource(text, found["name"], found["config"], found["split"], found["revision"])


@dataclass(frozen=True, slots=True)
class HubRows:
    """A split that is loaded: its rows, and the commit it is of, None if that is not known."""

    rows: Iterator[DatasetRow]
    commit: str | None


def load(source: HubSource, stack: ExitStack) -> HubRows:
    """Load a split; what it needs meanwhile goes on `stack`. Raises DatasetError."""
    try:
        import datasets
        import huggingface_hub
        import tqdm
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise DatasetError(
            [f"{source.text}: reading it needs the package datasets; install it: pip install 'codex-pool[hf]'"]
        ) from None
    datasets.utils.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity(logging.ERROR)
    # Otherwise a thread that watches its bars stays for good.
    tqdm.tqdm.monitor_interval = 0
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        disable_progress_bars()
    commit, unreachable = (None, None) if source.directory is not None else _commit_of(source)
    # What is made of a local directory is not kept. A name of the hub is never a directory below the current one.
    cache = None if source.directory is None else stack.enter_context(tempfile.TemporaryDirectory(prefix="codex-pool-"))
    place = source.name if source.directory is not None else f"{SCHEME}datasets/{source.name}"
    was_offline = datasets.config.HF_HUB_OFFLINE
    try:
        # The library would try to reach the hub once more, for half a minute, before it takes what is kept.
        datasets.config.HF_HUB_OFFLINE = was_offline or unreachable is not None
        split = datasets.load_dataset(
            place, source.config, split=source.split, revision=commit or source.revision, cache_dir=cache
        )
    # Of the hub, of HTTP, of Arrow, of the file system: the libraries have no common one.
    except Exception as error:
        if unreachable is not None and isinstance(error, ConnectionError):
            kept = "no copy is kept on this machine; expected a network, or one"
            raise DatasetError([f"{source.text}: the hub cannot be reached ({unreachable}), and {kept}"]) from None
        raise DatasetError([f"{source.text}: cannot be loaded: {_said(error)}"]) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
    read = None if source.directory is not None else _commit_read(split)
    wanted = commit or source.revision
    # The library takes what is kept on this machine, of whatever commit, where it cannot reach the hub.
    if source.revision is not None and read != wanted:
        raise DatasetError(
            [
                f"{source.text}: what is kept on this machine is of the commit {read or '(not known)'}, and the hub "
                f"cannot be asked for {source.revision}; expected that one: name its full commit, or try with a network"
            ]
        )
    tables = split.with_format("arrow").iter(batch_size=BATCH_ROWS)
    return HubRows(_readable(rows_of(tables, source.text, split.column_names), source), read)


def _commit_of(source: HubSource) -> tuple[str | None, str | None]:
    """The full commit of the revision, or why the hub cannot be asked. Raises DatasetError if there is none such."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        found = huggingface_hub.HfApi().dataset_info(source.name, revision=source.revision, timeout=LOOKUP_LIMIT_S)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError) as error:
        raise DatasetError([f"{source.text}: cannot be loaded: {_said(error)}"]) from None
    except Exception as error:
        # There may be a copy on this machine.
        return None, _said(error)
    return found.sha, None


def _commit_read(split: Any) -> str | None:
    """The commit that a split was made of, as the directory of its files is called; None if it is not known."""
    names = {Path(file["filename"]).parent.name for file in split.cache_files}
    name = names.pop() if len(names) == 1 else ""
    return name if _COMMIT.fullmatch(name) else None


def _readable(rows: Iterator[DatasetRow], source: HubSource) -> Iterator[DatasetRow]:
    try:
        yield from rows
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError([f"{source.text}: cannot be read: {_said(error)}"]) from None


def _said(error: BaseException) -> str:
    """Return what an exception of the libraries says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {cut(printable(' '.join(lines[:3])), 300)}" if lines else type(error).__name__
