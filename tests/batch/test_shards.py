"""Shards: which samples they have, and what is the same in all of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codex_batch.configuration.settings import Settings
from codex_batch.dataset import Dataset, Request, Shard
from codex_batch.dataset.shards import MAX_SHARDS, shard_of
from codex_batch.run.shard_check import claim_shard
from codex_batch.store import RunDirectory, RunDirectoryError


def opened(path: Path, shard: str | None, **options: object) -> Dataset:
    return Request(source=path, shard=None if shard is None else Shard.parse(shard), **options).open()  # type: ignore[arg-type]


def dataset(path: Path, ids: range) -> Path:
    path.write_text("".join(json.dumps({"id": f"s{n}", "prompt": f"do {n}"}) + "\n" for n in ids))
    return path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0/3", "counted from 1; with an index from 0 add 1 to it: --shard $((INDEX + 1))/3"),
        ("4/3", "there is no shard 4 of 3; expected 1/3 to 3/3"),
        ("1/0", "divides into 0 shards"),
        (f"1/{MAX_SHARDS + 1}", "expected 1 to 100,000"),
        ("1", "is no shard; expected I/N"),
        ("1/3 ", "is no shard"),
        ("-1/3", "is no shard"),
        ("٣/٣", "is no shard"),
    ],
)
def test_what_is_no_shard_is_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        Shard.parse(text)


def test_the_shard_of_an_id_never_changes() -> None:
    # Runs on other machines, and of later versions, must agree.
    assert [shard_of(name, 7) for name in ("a", "django-11099", "größe/1", "\udcff")] == [5, 5, 1, 1]


@settings(max_examples=30)
@given(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=9, unique=True), st.integers(1, 20))
def test_each_sample_is_in_one_shard(ids: list[str], count: int) -> None:
    shards = [Shard(index, count) for index in range(1, count + 1)]
    assert all(sum(shard.takes(name) for shard in shards) == 1 for name in ids)


def test_shards_are_about_equal() -> None:
    sizes = Counter(shard_of(f"task-{n}", 10) for n in range(10_000))
    assert len(sizes) == 10 and all(900 < size < 1100 for size in sizes.values())


def test_shards_divide_the_selection_with_all_epochs_and_keep_places_and_fingerprint(tmp_path: Path) -> None:
    path = dataset(tmp_path / "d.jsonl", range(40))
    selected = {"limit": 30, "shuffle": True, "seed": 3, "epochs": 2}
    with opened(path, None, **selected) as whole:
        wanted = [(place, sample.id, sample.epoch) for place, sample in enumerate(whole)]
        fingerprint, content = whole.fingerprint, whole.content
    found = []
    for index in (1, 2, 3):
        with opened(path, f"{index}/3", **selected) as part:
            rows = [(place, sample.id, sample.epoch) for place, sample in part.placed()]
            assert len(part) == len(rows) and (part.fingerprint, part.content) == (fingerprint, content)
            assert {shard_of(sample.id, 3) for sample in part} == {index}
            found += rows
    assert sorted(found) == wanted


def test_a_sample_stays_in_its_shard_when_others_are_added(tmp_path: Path) -> None:
    with opened(dataset(tmp_path / "few.jsonl", range(10, 20)), "2/3") as few:
        before = {sample.id for sample in few}
    with opened(dataset(tmp_path / "many.jsonl", range(40)), "2/3") as many:
        after = {sample.id for sample in many}
    assert before == {name for name in after if 10 <= int(name[1:]) < 20}


def test_the_content_of_a_dataset_has_its_targets_and_no_directories(tmp_path: Path) -> None:
    contents = []
    for place, target in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / place).mkdir()
        path = tmp_path / place / "d.jsonl"
        path.write_text(json.dumps({"id": "x", "prompt": "hi", "target": target}) + "\n")
        with opened(path, "1/1") as found:
            contents.append((found.fingerprint, found.content))
    assert contents[0] == contents[1] and contents[0][0] == contents[2][0] and contents[0][1] != contents[2][1]


@pytest.mark.parametrize(
    ("held", "asked", "problem"),
    [
        ("1/3", "2/3", "holds shard 1/3, and this command names shard 2/3: give --shard 1/3"),
        ("1/3", None, "holds shard 1/3, and this command names no shard"),
        (None, "1/3", "holds a run without shards, and this command names shard 1/3: leave out --shard"),
        ("1/3", "1/4", "names shard 1/4"),
    ],
)
def test_a_directory_is_of_one_shard(tmp_path: Path, held: str | None, asked: str | None, problem: str) -> None:
    def of(shard: str | None) -> Settings:
        request = Request(source="d.jsonl", shard=None if shard is None else Shard.parse(shard))
        return Settings(request=request, output=tmp_path)

    directory = RunDirectory(tmp_path)
    try:
        claim_shard(of(held), directory)
        directory.launch({})
        claim_shard(of(held), directory)
        with pytest.raises(RunDirectoryError, match=re.escape(problem)):
            claim_shard(of(asked), directory)
    finally:
        directory.close()
