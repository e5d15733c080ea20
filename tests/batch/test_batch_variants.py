"""Variants as a dimension of a run: keys, order, the store, resuming, figures and exports."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import make_run

from codex_batch.configuration.defaults import Defaults, restored, stored
from codex_batch.configuration.effective import Effective, OfSample, differences, fingerprint, of_sample
from codex_batch.configuration.fingerprints import Fingerprints
from codex_batch.configuration.resolve import _leaves, _overridden, keys_of, overrides_of
from codex_batch.configuration.settings import Settings, variants_config
from codex_batch.configuration.variants import Variant, VariantsError
from codex_batch.dataset import DatasetError, Sample
from codex_batch.dataset.request import Request
from codex_batch.display import by_variant, snapshot_file
from codex_batch.export import ExportError, export, export_to
from codex_batch.manage.runs import named
from codex_batch.rules import estimate
from codex_batch.rules.progress import Progress
from codex_batch.run.dataset_checks import open_dataset
from codex_batch.run.price_check import Models
from codex_batch.run.sample_queue import SampleQueue
from codex_batch.run.scheduler import entry_of
from codex_batch.run.tools import Tools
from codex_batch.scoring import Score, Scorers
from codex_batch.store import RecordRow, RunDirectory, RunDirectoryError, directory_name, open_run, shown_name
from codex_batch.store.reader import VARIANTS
from codex_batch.store.rows import Spending
from codex_batch.workspace import Repositories
from codex_pool.prices import Price, Prices

LOW, HIGH = Variant(name="low", effort="low"), Variant(name="high", effort="high")
A, B = Sample(id="a", prompts=("p",)), Sample(id="b", prompts=("q",))


# Keys and names.


def test_a_variant_is_part_of_the_key_the_name_and_the_directory_of_a_sample() -> None:
    assert Sample(id="a", prompts=("p",), variant="low").key == ("a", 1, "low")
    assert [shown_name(*key) for key in (("a", 1, ""), ("a", 2, ""), ("a", 1, "low"), ("a", 2, "low"))] == [
        *("a", "a#2", "a@low", "a@low#2")
    ]
    names = [directory_name("a", epoch, variant) for epoch in (1, 2) for variant in ("", "low", "high")]
    assert len(set(names)) == 6 and names[0] == "a"
    # The question is the same in each variant, and its line in the store names the variant.
    in_low = Sample(id="a", prompts=("p",), variant="low")
    assert in_low.digest == A.digest and Sample.from_json(in_low.to_json()) == in_low != A


# Defaults.


def test_each_sample_is_run_in_all_variants_before_the_next_one() -> None:
    defaults = Defaults(variants=(LOW, HIGH))
    assert [sample.key for sample in defaults.products([A, B])] == [
        *(("a", 1, "low"), ("a", 1, "high"), ("b", 1, "low"), ("b", 1, "high"))
    ]
    assert list(Defaults().products([A, B])) == [A, B] and Defaults().names == ("",)


def test_a_sample_is_filled_with_what_it_does_not_name() -> None:
    run = Defaults("m", "low", "read-only")
    filled = run.filled(A)
    assert (filled.model, filled.effort, filled.sandbox) == ("m", "low", "read-only")
    own = Sample(id="a", prompts=("p",), model="x", effort="high", sandbox="workspace-write")
    assert run.filled(own) is own
    variants = Defaults("m", None, None, (LOW, Variant(name="big", model="big")))
    assert variants.filled(Sample(id="a", prompts=("p",), variant="low")).effort == "low"
    assert variants.filled(Sample(id="a", prompts=("p",), variant="big")).model == "big"
    assert Defaults().filled(A) is A


def test_a_sample_of_its_own_model_makes_a_comparison_false(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "p", "effort": "high"}\n{"id": "x", "prompt": "p", "model": "m"}\n')

    def problems(*variants: Variant, **of_run: Any) -> list[str]:
        settings = Settings(request=Request(source=data), output=tmp_path / "out", variants=variants, **of_run)
        scorers = Scorers()
        try:
            open_dataset(settings, scorers, Repositories(tmp_path / "r"), Tools(scorers), Models()).close()
        except DatasetError as error:
            return error.problems
        return []

    (problem,) = problems(LOW, HIGH)
    assert problem.startswith(f"{data}:1: effort: 'high' would be used in place of that of the variants, such as 'low'")
    assert "leave it out of the sample, or the effort out of the variants" in problem
    both = problems(Variant(name="v", model="a", effort="low"), Variant(name="w"))
    assert [each.split(": ")[1] for each in both] == ["effort", "model"]
    # A model or effort of the run alone is only for those that name none.
    assert problems(model="m", effort="low") == problems(Variant(name="v", config={"web_search": "live"})) == []


def test_variants_are_stored_and_made_again() -> None:
    variants = (LOW, Variant(name="x", config={"a.b": [1]}, agents_md="text", codex_bin="/bin/codex"))
    kept = json.loads(json.dumps([stored(each, {"model": "m"}) for each in variants]))
    assert restored(kept) == variants
    with pytest.raises(VariantsError, match="cannot be read"):
        restored([{"nothing": 1}])
    shown = variants_config(Defaults(variants=variants), {"low": {}, "x": {"model": "m"}})
    assert shown[1]["agents_md"] == variants[1].agents_md_digest and shown[1]["effective"] == {"model": "m"}
    unset = {"model": None, "agents_md": None, "codex_bin": None}
    assert shown[0] == {"name": "low", "effort": "low", "config": {}, "effective": {}, **unset}


def test_prices_are_looked_for_of_the_models_of_variants() -> None:
    defaults = Defaults(variants=(Variant(name="x", model="dear"), Variant(name="y", model="dear"), LOW))
    models = Models("configured", defaults)
    models.observe(A, Scorers())
    assert models.without_price(Prices("USD", {"configured": Price(1, 1, 1)})) == [
        "no price of model 'dear', which sample a@x asks for"
    ]


# Configurations.


def test_a_variant_has_a_configuration_and_a_fingerprint_of_its_own() -> None:
    plain, texted = Effective(model="m", effort="low"), Effective(model="m", effort="low", agents_md="digest")
    found = Fingerprints({"low": plain, "texted": texted})
    assert found({"variant": "low"}) == fingerprint(plain) != found({"variant": "texted"})
    assert found({"variant": "gone"}) is None and found({}) is None
    # Its AGENTS.md is in place of what the directory has.
    assert fingerprint(texted, OfSample(instructions="other")) == fingerprint(texted)
    assert differences(plain.to_json(), texted.to_json()) == ["agents md: not set, now digest"]
    # The version of a binary that is compared counts whole; else its class does.
    old, new = (Effective(codex_version=version, binary=version) for version in ("0.147.0", "0.163.0"))
    assert fingerprint(old) != fingerprint(new)
    assert fingerprint(Effective(codex_version="0.147.0")) == fingerprint(Effective(codex_version="0.163.0"))


def test_the_sandbox_of_a_run_is_in_place_of_the_default_of_workspaces() -> None:
    spec = {"workspace": {"files": {}}}
    assert of_sample(spec).sandbox == "workspace-write"
    assert of_sample(spec, sandbox="read-only").sandbox == "read-only"
    assert of_sample({**spec, "sandbox": "danger-full-access"}, sandbox="read-only").sandbox == "danger-full-access"


def test_keys_of_a_variant_count_as_if_they_were_configured() -> None:
    variant = Variant(name="v", effort="high", config={"tools.web_search": True, "features": {"a": True}})
    leaves = dict(_leaves(overrides_of(variant)))
    assert leaves == {
        ("tools", "web_search"): True,
        ("features", "a"): True,
        ("model_reasoning_effort",): "high",
    }
    config = {"features": {"b": False, "c": 1}, "tools": None}
    made = _overridden(config, leaves)
    assert made == {
        "features": {"b": False, "c": 1, "a": True},
        "tools": {"web_search": True},
        "model_reasoning_effort": "high",
    }
    assert config["tools"] is None
    origins = {"features.b": {}, **dict.fromkeys(map(".".join, leaves))}
    found = keys_of(made, origins, None, lambda path: None)
    assert found == {"features": {"a": True, "b": False}, "tools": {"web_search": True}}


# The store.


def load(directory: RunDirectory, *variants: str, samples: tuple[Sample, ...] = (A, B), **options: Any) -> Any:
    defaults = Defaults(variants=[Variant(name=name) for name in variants])
    return directory.load([entry_of(sample) for sample in defaults.products(samples)], "d.jsonl", **options)


def run_all(directory: RunDirectory) -> list[str]:
    names = []
    for row in directory.to_do(100):
        start = directory.start_attempt(row.n, "key", "thread").result(5)
        usage = {"total_tokens": 10}
        record = RecordRow("completed", start.attempt, thread_id="thread", model=f"of {row.variant}", usage=usage)
        directory.finish(start, record, {"status": "completed", "usage": usage, "cost": 0.5}).result(5)
        names.append(row.shown_name)
    return names


def test_a_variant_is_added_later_and_one_that_is_left_out_keeps_its_results(tmp_path: Path) -> None:
    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        load(directory, "low", "high")
        directory.launch({})
        assert run_all(directory) == ["a@low", "a@high", "b@low", "b@high"]
        changes = load(directory, "high", "new")
        assert changes.added == 2 and run_all(directory) == ["a@new", "b@new"]
        store = directory.store
        assert store.counts()["total"] == 4 and store.counts("low")["completed"] == 2
        assert store.variant_names() == ["high", "low", "new"]
        directory.note(VARIANTS, [stored(Variant(name=name)) for name in ("new", "low", "high")]).result(5)
        assert store.variant_names() == ["new", "low", "high"] and "variants" not in store.info()
        assert [row.variant for row in store.samples(selected=False)] == ["low", "low"]
        assert [row.key for row in store.samples(variant="new")] == [("a", 1, "new"), ("b", 1, "new")]
        assert store.spending("new")[:2] == (20, 1.0) and store.spending()[:2] == (60, 3.0)
        assert store.answered("low")["model"] == {"of low": 2}
        assert store.agents_md("low") is None
        assert len({store.artifacts_of(row.n) for row in store.samples()}) == 6
        # All of them again, of fewer samples.
        load(directory, "low", samples=(A,), whole=[(each.id, each.digest) for each in (A, B)])
        assert store.counts()["total"] == 1 and run_all(directory) == []
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert sorted((line["id"], line["variant"]) for line in lines) == [
        (name, variant) for name in "ab" for variant in ("high", "low", "new")
    ]


def test_what_a_dataset_has_no_more_is_refused_also_of_variants_that_are_left_out(tmp_path: Path) -> None:
    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        load(directory, "low", "high")
        run_all(directory)
        with pytest.raises(
            RunDirectoryError, match=r"holds results of other samples, not in d.jsonl: 'b@low', 'b@high'"
        ):
            load(directory, "high", samples=(A,))
        other = Sample(id="b", prompts=("another question",))
        with pytest.raises(RunDirectoryError, match=r"had another prompt or other settings .*'b@low', 'b@high'"):
            load(directory, "high", samples=(A, other))
        assert load(directory, "high", samples=(A, other), rerun_changed=True).rerun == 1
        assert run_all(directory) == ["b@high"]


@pytest.mark.parametrize(("before", "after"), [((), ("low",)), (("low",), ())])
def test_results_with_and_without_variants_do_not_stand_in_one_directory(
    tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        load(directory, *before)
        # Nothing is there yet: either kind may begin.
        load(directory, *after)
        load(directory, *before)
        assert len(run_all(directory)) == 2
        words = "holds results of variants, such as 'low', and" if before else "holds results without variants, and"
        with pytest.raises(RunDirectoryError, match=f"{words} .* or use another directory, or --fresh"):
            load(directory, *after)


def configured(directory: RunDirectory, effective: dict[str, Effective], **options: Any) -> Any:
    load(directory, *effective)
    done = directory.configure(
        Fingerprints(effective),
        differences=lambda before, variant: "; ".join(differences(before, effective[variant].to_json())),
        **options,
    )
    of_variants = [{"name": name, "effective": each.to_json()} for name, each in effective.items()]
    directory.launch({"variants": of_variants})
    return done


def test_a_variant_of_another_definition_is_another_configuration(tmp_path: Path) -> None:
    low, high, other = (Effective(model="m", effort=effort) for effort in ("low", "high", "medium"))
    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        configured(directory, {"x": low, "y": high})
        run_all(directory)
        words = r"another configuration \(variant 'y': effort: high, now medium\): 'a@y', 'b@y'; use another"
        with pytest.raises(RunDirectoryError, match=words):
            configured(directory, {"x": low, "y": other})
        # One that is not named is not compared.
        assert configured(directory, {"x": low}).again == 0
        assert configured(directory, {"x": low, "y": other}, rerun_changed=True).again == 2
        assert run_all(directory) == ["a@y", "b@y"]
        fingerprints = {row.variant: row.record.fingerprint for row in directory.store.samples() if row.record}
        assert fingerprints == {"x": fingerprint(low), "y": fingerprint(other)}


def test_samples_are_named_with_their_variant_whatever_their_ids_are(tmp_path: Path) -> None:
    ids = ("a", "a@low", "a#2", "x@y#3")
    samples = [Sample(id=name, prompts=("p",), epoch=epoch, variant="low") for epoch in (1, 2) for name in ids]
    make_run(tmp_path / "run", [(sample, "r") for sample in samples])
    with open_run(tmp_path / "run") as store:
        for sample in samples:
            assert named(store, shown_name(*sample.key)).key == sample.key
        for wrong in ("a", "a@high", "a@low#3", "low"):
            with pytest.raises(KeyError, match="name one of a variant: ID followed by one of @low"):
                named(store, wrong)


def test_a_queue_gives_samples_of_variants_with_what_these_name(tmp_path: Path) -> None:
    import asyncio

    async def models(defaults: Defaults) -> list[tuple[str, str | None]]:
        queue, found = SampleQueue(directory, None, defaults.filled), []
        while (job := queue.next()) is not None:
            assert "effort" not in job.row.spec
            found.append((job.sample.variant, job.sample.effort))
        return found

    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        load(directory, "low", "high", samples=(A,))
        assert asyncio.run(models(Defaults(variants=(LOW, HIGH)))) == [("low", "low"), ("high", "high")]


# What is run first, and what is shown.


@given(st.lists(st.integers(1, 4), min_size=1, max_size=50), st.integers(1, 20))
def test_canaries_are_run_in_all_variants_that_they_are_to_be_run_in(sizes: list[int], canaries: int) -> None:
    chosen = estimate.choose(sizes, canaries)
    of_sample = [index for index, size in enumerate(sizes) for _ in range(size)]
    samples = {of_sample[position] for position in chosen}
    assert len(samples) == min(len(sizes), canaries)
    assert chosen == [position for position, index in enumerate(of_sample) if index in samples]


def test_an_estimate_of_variants_is_the_sum_of_theirs() -> None:
    cheap, dear = ([estimate.Canary(tokens, cost, 1_000)] * 2 for tokens, cost in ((10, 1.0), (100, 9.0)))
    found = estimate.estimate_all([(cheap, 50), (dear, 50)], 10)
    assert (found.samples, found.canaries, found.tokens.expected) == (100, 4, 5_500)
    assert found.cost is not None and found.cost.expected == 500.0 and found.wall_s.expected == 10.0
    with pytest.raises(ValueError, match="no canary has ended"):
        estimate.estimate_all([(cheap, 50), ([], 50)], 10)


def test_the_work_to_do_is_counted_by_sample(tmp_path: Path) -> None:
    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        load(directory, "low", samples=(A,))
        run_all(directory)
        load(directory, "low", "high", "new")
        assert directory.store.to_do_of_samples() == [2, 3]


def test_what_runs_is_published_with_its_variant(tmp_path: Path) -> None:
    progress = Progress(total=2)
    progress.under_way = {("a", 1, "low"): 3.0, ("b", 2, ""): 4.0}
    snapshot_file.publish(tmp_path, progress, "title", 10.0)
    found = snapshot_file.read(tmp_path, 110.0)
    assert found is not None and found[1].under_way == {("a", 1, "low"): 103.0, ("b", 2, ""): 104.0}


def scored_run(path: Path) -> Path:
    samples = [Sample(id=name, prompts=("p",), variant=variant) for name in "ab" for variant in ("low", "high")]
    run = make_run(path, [(sample, "yes") for sample in samples], model="m", thread_id="t")
    with contextlib.closing(RunDirectory(run)) as directory:
        for row in directory.store.samples():
            value = float(row.variant == "high" or row.id == "a")
            directory.replace_scores(row.n, [Score(scorer="exact", value=value, passed=bool(value))])
        kept = [stored(each, {"model": "of " + each.name}) for each in (LOW, HIGH)]
        directory.note(VARIANTS, kept).result(5)
    return run


def test_figures_are_of_each_variant(tmp_path: Path) -> None:
    with open_run(scored_run(tmp_path / "run")) as store:
        figures = by_variant.by_variant(store, store.variant_names())
    assert [(each.name, each.done, each.failed, each.total) for each in figures] == [
        ("low", 2, 0, 2),
        ("high", 2, 0, 2),
    ]
    assert [each.scored.scorers["exact"].mean for each in figures] == [0.5, 1.0]
    found = by_variant.as_json(figures, None)
    assert list(found) == ["low", "high"] and found["low"]["cost"] is None
    assert found["high"]["metrics"]["exact"]["mean"] == 1.0 and found["high"]["counts"]["completed"] == 2
    header, low, high, about = by_variant.table(figures, None)
    assert header[0] == "variant" and header[1].split() == ["done", "exact", "tokens"]
    assert low[0] == "low" and low[1].startswith("2/2   0.500  ") and high[1].startswith("2/2   1.000  ")
    assert low[1].index("0.5") == header[1].index("exact") and by_variant.table([], None) == []
    assert about == ("", by_variant.MEANS)


def test_the_table_of_variants_counts_a_failure_as_0_and_fits_a_terminal(tmp_path: Path) -> None:
    names = ("gpt-5.1-low", "gpt-5.1-codex-max-high")
    samples = [Sample(id=str(n), prompts=("p",), variant=variant) for n in range(50) for variant in names]
    run = make_run(tmp_path / "run", [(sample, "yes") for sample in samples], model="m", thread_id="t")
    with contextlib.closing(RunDirectory(run)) as directory:
        for row in directory.store.samples():
            if not (row.variant == names[0] and row.id.endswith("9")):
                both = [Score(scorer=scorer, value=1.0, passed=True) for scorer in ("exact", "number")]
                directory.replace_scores(row.n, both)
    with open_run(run) as store:
        figures = by_variant.by_variant(store, names)
    assert [each.scored.scorers["exact"].mean for each in figures] == [1.0, 1.0]
    assert [each.means for each in figures] == [{"exact": 0.9, "number": 0.9}, {"exact": 1.0, "number": 1.0}]
    spent = Spending(261, 0.00072, 5)
    failed = {**dict.fromkeys(figures[0].counts, 0), "completed": 45, "failed": 5}
    shown = [dataclasses.replace(figures[0], counts=failed, spending=spent), figures[1]]
    rows = by_variant.table(shown, "USD")
    assert rows[0][1].split() == ["done", "failed", "exact", "number", "cost"]
    assert rows[1][1].split() == ["45/50", "5", "0.900", "0.900", "≥", "0.00072", "USD"]
    assert max(len(name) for name, _ in rows) + max(len(columns) for _, columns in rows) + 4 <= 80


def test_exports_have_the_variant_and_inspect_a_log_of_each(tmp_path: Path) -> None:
    with open_run(scored_run(tmp_path / "run")) as store:
        out = io.BytesIO()
        export_to(store, out, "csv")
        rows = list(csv.DictReader(io.StringIO(out.getvalue().decode())))
        assert [(row["id"], row["variant"]) for row in rows] == [(name, of) for name in "ab" for of in ("low", "high")]
        assert export(store, tmp_path / "one.jsonl", variant="high") == [tmp_path / "one.jsonl"]
        lines = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
        assert [line["variant"] for line in lines] == ["high", "high"]
        logs = export(store, tmp_path / "log.eval")
        assert logs == [tmp_path / "log-low.eval", tmp_path / "log-high.eval"]
        for path, variant, mean in zip(logs, ("low", "high"), (0.5, 1.0), strict=True):
            with zipfile.ZipFile(path) as archive:
                header = json.loads(archive.read("header.json"))
                names = [name for name in archive.namelist() if name.startswith("samples/")]
            assert names == ["samples/a_epoch_1.json", "samples/b_epoch_1.json"]
            own = header["eval"]["metadata"]["codex_pool"]
            assert (own["variant"], own["effective"]) == (variant, {"model": "of " + variant})
            assert header["eval"]["eval_id"] == f"run-{variant}" and header["eval"]["run_id"] == "run"
            assert header["results"]["scores"][0]["metrics"]["mean"]["value"] == mean
        with pytest.raises(ExportError, match="has no variant 'x'; it has low, high"):
            export(store, tmp_path / "x.csv", variant="x")
