"""Merges the run directories of shards into one that is as that of one run.

What is written is written in one transaction, after the artifacts that it names: a merge that was killed is repeated.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codex_app_server._runtime.files import write_atomic
from codex_app_server._runtime.text import plural

from ..display import summary
from ..exit_codes import OK, SOME_FAILED
from ..store import RunDirectory, RunDirectoryError, RunStore, SampleKey, layout, open_run, shown_name
from ..store.directory import Append
from ..store.reader import MERGED, SHARD, VARIANTS
from ..store.rows import VALID, from_json, to_json
from .choose import Choice, ConflictError, Prefer, SampleState, choose
from .copy import Copy
from .facts import Facts, missing_of, problems
from .source import MERGE_PID, Source

SHOWN = 5
JUDGED = "judged"


class MergeError(ValueError):
    """Runs that cannot become one; `problems` holds everything that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged run: numbers of its `shards` and of those of `of` that are `missing`, its samples by status.

    `taken` counts the samples that this merge has changed, `ended` attempts that were under way when a shard died.
    """

    path: Path
    of: int
    shards: tuple[int, ...]
    missing: tuple[int, ...]
    taken: int
    ended: int
    counts: dict[str, int]
    command: tuple[str, ...]


def merge(
    directories: Sequence[Path], output: Path, *, allow_missing: bool = False, prefer: Prefer | None = None
) -> Merged:
    """Merge the run directories of shards into `output`, which may be an earlier merge that they are added to.

    Raises MergeError with all that is wrong, RunDirectoryError; nothing is changed then.
    """
    paths = list(dict.fromkeys(Path(os.path.realpath(path)) for path in directories))
    output = Path(os.path.realpath(output))
    if output in paths:
        raise MergeError([f"{output} is one of the shards, which are not changed; name another directory with -o"])
    with ExitStack() as stack:
        is_there = _is_merged(output)
        directory = stack.enter_context(closing(RunDirectory(output))) if is_there else None
        target = stack.enter_context(closing(Source(0, output, is_held=True))) if is_there else None
        sources = _opened(paths, 0 if target is None else 1, stack)
        of_target, of_sources = None if target is None else target.facts, [source.facts for source in sources]
        wrong = problems(of_sources, of_target, allow_missing=allow_missing)
        if wrong:
            raise MergeError(wrong)
        known = [*([] if target is None else [target]), *sources]
        choices = _choices(known, prefer)
        changed = [each for each in choices if target is None or each.others or each.taken.source != target.place]
        changed.sort(key=lambda choice: choice.taken.position)
        _check_files(known, changed, target)
        if directory is None:
            directory = stack.enter_context(closing(RunDirectory(output)))
        merging = _Merging(directory, sources, target, of_sources, changed)
        merging.write()
        facts = [*([] if of_target is None else [of_target]), *of_sources]
        return merging.merged(missing_of(facts))


class _Merging:
    """One merge that has nothing against it."""

    def __init__(
        self,
        directory: RunDirectory,
        sources: Sequence[Source],
        target: Source | None,
        facts: Sequence[Facts],
        changed: Sequence[Choice],
    ) -> None:
        self._directory, self._sources, self._target = directory, sources, target
        self._known = [*([] if target is None else [target]), *sources]
        self._facts, self._changed = facts, changed
        self._before: dict[str, Any] = {} if target is None else target.notes[MERGED]
        runs = {
            source.identity: {
                "path": str(source.path),
                "shard": source.notes[SHARD],
                "launches": len(source.launches),
                "judged": source.notes.get(JUDGED),
            }
            for source in sources
        }
        shards = {index for each in facts for index in each.shards}.union(self._before.get("shards", ()))
        self._note: dict[str, Any] = {
            "of": facts[0].count,
            "shards": sorted(shards),
            "runs": {**self._before.get("runs", {}), **runs},
        }

    def write(self) -> None:
        """Copy what is new, and write the files that are made of the tables."""
        _copy_artifacts(self._known, self._changed, self._target, self._directory.path)
        if self._changed or self._note != self._before:
            self._directory.merge(self._change)
        info = self._directory.store.info()
        last = info["launches"][-1]
        text = json.dumps({"launch": last["number"], **info["config"]}, indent=2) + "\n"
        write_atomic(self._directory.file(layout.CONFIG), text.encode(), is_synced=True)

    def merged(self, missing: Sequence[int]) -> Merged:
        store = self._directory.store
        ended = sum(len(choice.taken.attempts) - choice.taken.ended for choice in self._changed)
        return Merged(
            path=self._directory.path,
            of=self._note["of"],
            shards=tuple(self._note["shards"]),
            missing=tuple(missing),
            taken=len(self._changed),
            ended=ended,
            counts=summary.count(store.counts()),
            command=tuple(store.info()["config"].get("command", ())),
        )

    def _change(self, db: sqlite3.Connection, store: RunStore, append: Append, append_rollout: Append) -> None:
        copy = Copy(db, self._known, self._target, append, append_rollout)
        copy.launches()
        for choice in self._changed:
            copy.sample(choice)
        self._put_notes(db)
        counts = store.counts()
        total = counts["total"]
        is_whole = len(self._note["shards"]) == self._note["of"]
        is_complete = is_whole and sum(counts.get(status, 0) for status in VALID) == total
        outcome: dict[str, Any] = {
            "problem": None,
            "exit_code": OK if is_complete else SOME_FAILED,
            "counts": summary.count(counts),
            "not_valid": store.not_valid(),
            "gates": [],
        }
        db.execute("DELETE FROM launches WHERE pid = ?", (MERGE_PID,))
        db.execute(
            "INSERT INTO launches (pid, started_at, ended_at, state, config, outcome) "
            "SELECT ?, max(coalesce(ended_at, started_at)), max(coalesce(ended_at, started_at)), 'finished', ?, ? "
            "FROM launches",
            (MERGE_PID, to_json(self._config(total)), to_json(outcome)),
        )

    def _put_notes(self, db: sqlite3.Connection) -> None:
        found: dict[str, Any] = {}
        for source in self._known:
            for key, value in source.notes.items():
                if key == VARIANTS:
                    known = {each["name"] for each in found.get(VARIANTS, ())}
                    value = [*found.get(VARIANTS, ()), *(each for each in value if each["name"] not in known)]
                    found[key] = value
                elif key not in (SHARD, MERGED, JUDGED):
                    found.setdefault(key, value)
        found[MERGED] = self._note
        judged = self._judged()
        if judged:
            found[JUDGED] = judged
        db.executemany(
            "INSERT OR REPLACE INTO run VALUES (?, ?)", [(key, to_json(value)) for key, value in found.items()]
        )

    def _judged(self) -> dict[str, Any]:
        """Return the pay of judges: in the shards, as far as they are known by now, and in the merged run itself."""
        total: Counter[str] = Counter()
        for note, sign in ((self._before, -1), (self._note, 1)):
            for run in note.get("runs", {}).values():
                for name, value in (run["judged"] or {}).items():
                    total[name] += sign * value
        for name, value in ({} if self._target is None else self._target.notes.get(JUDGED) or {}).items():
            total[name] += value
        return dict(total)

    def _config(self, samples: int) -> dict[str, Any]:
        """The configuration of the merged run: that of its first shard, as one command for all would have had it."""
        ordered = sorted(zip(self._facts, self._sources, strict=True), key=lambda pair: pair[0].shards)
        configs = [from_json(launch["config"]) for _, source in ordered for launch in reversed(source.launches)]
        config = next((each for each in configs if "effective" in each or "variants" in each), configs[0])
        config.pop("shard", None)
        output = str(self._directory.path)
        config["merged"] = f"{len(self._note['shards'])} of {plural(self._note['of'], 'shard')}"
        config["command"] = _command(config.get("command", []), output)
        config["dataset"] = {**config["dataset"], "samples": samples}
        config["arguments"] = {**config.get("arguments", {}), "output": output}
        return dict(config)


def _is_merged(output: Path) -> bool:
    """Return True for an earlier merge, False for what is to be made. Raises MergeError for the run of a command."""
    if not (output / layout.DATABASE).exists():
        return False
    with open_run(output) as store:
        info = store.info()
    if MERGED in info:
        return True
    if info["launches"] or info.get(SHARD) is not None:
        raise MergeError([f"{output} is a run that was not merged, and is not changed; name another directory with -o"])
    return False


def _opened(paths: Sequence[Path], begin: int, stack: ExitStack) -> list[Source]:
    """Open the sources, numbered from `begin`. Raises MergeError with all that cannot be."""
    found, wrong = [], []
    for place, path in enumerate(paths, begin):
        try:
            found.append(stack.enter_context(closing(Source(place, path))))
        except RunDirectoryError as error:
            wrong.append(str(error))
    if wrong:
        raise MergeError(wrong)
    return found


def _choices(sources: Sequence[Source], prefer: Prefer | None) -> list[Choice]:
    """Choose a state of each sample. Raises MergeError with the samples that have different answers."""
    states: dict[SampleKey, list[SampleState]] = {}
    for source in sources:
        for key, state in source.states():
            states.setdefault(key, []).append(state)
    found: list[Choice] = []
    conflicts: dict[tuple[int, int], list[SampleKey]] = {}
    for key, each in states.items():
        try:
            found.append(choose(each, prefer))
        except ConflictError as error:
            conflicts.setdefault((error.first.source, error.second.source), []).append(key)
    paths = {source.place: source.path for source in sources}
    wrong = []
    for (first, second), keys in conflicts.items():
        names = ", ".join(repr(shown_name(*key)) for key in keys[:SHOWN])
        more = f" and {len(keys) - SHOWN:,} more" if len(keys) > SHOWN else ""
        wrong.append(
            f"{paths[first]} and {paths[second]} have different answers to {plural(len(keys), 'sample')}: "
            f"{names}{more}; leave one of them out, or take those of the first or the last directory with --prefer"
        )
    if wrong:
        raise MergeError(wrong)
    return found


# Files.


def _artifacts(source: Source, state: SampleState) -> tuple[str, list[str]]:
    """The name of a sample's directory, and the artifacts that its record names."""
    (sample,) = source.rows("samples", state.n)
    name = layout.directory_name(sample["id"], sample["epoch"], sample["variant"])
    records = source.rows("records", state.n)
    return name, list(from_json(records[0]["artifacts"])) if records else []


def _check_files(sources: Sequence[Source], changed: Sequence[Choice], target: Source | None) -> None:
    """Raises MergeError when files are missing that records and attempts name."""
    wrong = []
    by_place = {source.place: source for source in sources}
    for choice in changed:
        for state in {choice.taken, *choice.others}:
            source = by_place[state.source]
            if source is target:
                continue
            name, artifacts = _artifacts(source, state) if state is choice.taken else ("", [])
            missing = [source.path / layout.ARTIFACTS / name / each for each in artifacts]
            missing = [path for path in missing if not os.path.lexists(path)]
            missing += source.missing_logs(state.n)
            wrong += [f"{path} is missing or cut off: copy the run directory as a whole" for path in missing]
        if len(wrong) > SHOWN:
            break
    if wrong:
        raise MergeError(list(dict.fromkeys(wrong)))


def _copy_artifacts(sources: Sequence[Source], changed: Sequence[Choice], target: Source | None, output: Path) -> None:
    """Put the directories of artifacts of taken samples in the place of those that are there."""
    by_place = {source.place: source for source in sources}
    for choice in changed:
        source = by_place[choice.taken.source]
        if source is target:
            continue
        name, _ = _artifacts(source, choice.taken)
        given, put = source.path / layout.ARTIFACTS / name, output / layout.ARTIFACTS / name
        made = layout.partial(put)
        shutil.rmtree(made, ignore_errors=True)
        if given.is_dir():
            shutil.copytree(given, made, symlinks=True, copy_function=_copy_synced)
        if put.is_dir():
            shutil.rmtree(put)
        if made.is_dir():
            os.rename(made, put)


def _copy_synced(given: str, put: str) -> None:
    shutil.copy2(given, put, follow_symlinks=False)
    if not os.path.islink(put):
        descriptor = os.open(put, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _command(command: Sequence[str], output: str) -> list[str]:
    """The command of a shard as that of the merged run: without --shard and what is for one start, with its output."""
    found: list[str] = []
    words = iter(command)
    for word in words:
        option, _, value = word.partition("=")
        if option in ("--shard", "-o", "--output"):
            if not value:
                next(words, None)
        elif option not in ("--fresh", "--detach") and not (word.startswith("-o") and len(word) > 2):
            found.append(word)
    return [*found, "-o", output]


__all__ = ["MergeError", "Merged", "merge"]
