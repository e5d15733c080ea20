"""Parquet files and datasets of the hub: types of columns, a local directory, what is kept on this machine."""

from __future__ import annotations

import datetime as dt
import decimal
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import environment

from codex_batch.dataset import Columns, DatasetError, Request, Sample, hub, load

COMMIT = "c30699e8356da336a370243923dbaf21066bb9fe"
MMLU = [
    {"question": f"Q{n}", "subject": "anatomy", "choices": [f"{n}{c}" for c in "wxyz"], "answer": n % 4}
    for n in range(2500)
]
PROMPT = "prompt={{ question }} {{ choices[0] }}"


def parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, **options), path)
    return path


def read(source: Path | str, *columns: str) -> list[Sample]:
    with load(source, columns=Columns(columns)) as dataset:
        return list(dataset)


# Parquet.


@pytest.mark.parquet
def test_columns_of_published_sets_have_the_types_that_they_have(tmp_path: Path) -> None:
    samples = read(parquet(tmp_path / "d.parquet", MMLU), "target={{ answer | letter }}", "tags=subject", PROMPT)
    assert len(samples) == 2500
    assert samples[2] == Sample(
        "3",
        ("Q2 2w",),
        target="C",
        tags=("anatomy",),
        metadata={
            "question": "Q2",
            "choices": ["2w", "2x", "2y", "2z"],
        },
    )


@pytest.mark.parquet
def test_every_type_of_a_column_is_json_in_metadata_and_binary_ones_are_left_out(tmp_path: Path) -> None:
    import pyarrow as pa

    row = {
        "id": 7,
        "q": "p",
        "at": dt.datetime(2024, 5, 6, 7, 8, 9),
        "day": dt.date(2024, 5, 6),
        "took": dt.timedelta(milliseconds=1500),
        "price": decimal.Decimal("1.10"),
        "image": {"bytes": b"x", "path": "a.png"},
        "raw": b"x",
        "nested": [{"a": [1, None], "b": None}],
        "big": 2**63 - 1,
    }
    (sample,) = read(parquet(tmp_path / "d.parquet", [row]), "prompt=q", "target=price")
    assert (sample.id, sample.target) == ("7", "1.10") and sample.metadata == {
        "at": "2024-05-06T07:08:09",
        "day": "2024-05-06",
        "took": 1.5,
        "image": {"path": "a.png"},
        "nested": [{"a": [1, None]}],
        "big": 2**63 - 1,
    }
    schema = pa.schema([("q", pa.dictionary(pa.int8(), pa.string())), ("m", pa.map_(pa.string(), pa.int8()))])
    (sample,) = read(parquet(tmp_path / "e.parquet", [{"q": "p", "m": {"a": 1}}], schema=schema), "prompt=q")
    assert sample.prompts == ("p",) and sample.metadata == {"m": [["a", 1]]}


@pytest.mark.parquet
def test_a_row_that_python_cannot_hold_is_a_problem_of_its_own(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    far = pa.array([0, 2**62, 0], pa.int64()).cast(pa.timestamp("ms"))
    text = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"b", b"\xff"]).buffers())
    pq.write_table(pa.table({"prompt": text, "at": far}), tmp_path / "d.parquet")
    with pytest.raises(DatasetError) as caught:
        read(tmp_path / "d.parquet", "metadata.at=at")
    second, third = caught.value.problems
    assert f"{tmp_path}/d.parquet:row 2: cannot be read: " in second and "row 3: cannot be read: 'utf-8'" in third


# The hub.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf://", "is no dataset of the hub; expected hf://ORG/NAME[/CONFIG]:SPLIT[@REVISION]"),
        ("hf://openai/gsm8k", "is no dataset of the hub"),
        ("hf://openai/gsm8k/main/x:test", "is no dataset of the hub"),
        ("hf://../gsm8k:test@", "is no dataset of the hub"),
        ("hf:///nowhere/at/all:test", "/nowhere/at/all is not a directory"),
        ("hf:///tmp:test@main", "is no dataset of the hub"),
    ],
)
def test_what_names_no_dataset_of_the_hub_is_refused(text: str, said: str) -> None:
    with pytest.raises(DatasetError) as caught:
        hub.parse(text)
    assert said in str(caught.value)


def test_a_dataset_of_the_hub_has_a_name_a_configuration_a_split_and_a_revision(tmp_path: Path) -> None:
    def parts(text: str) -> tuple[str, str | None, str, str | None]:
        source = hub.parse(text)
        return source.name, source.config, source.split, source.revision

    assert parts("hf://openai/gsm8k/main:test") == ("openai/gsm8k", "main", "test", None)
    assert parts("hf://squad:train[:10%]@refs/pr/1") == ("squad", None, "train[:10%]", "refs/pr/1")
    assert parts(f"hf://cais/mmlu/all:test@{COMMIT}") == ("cais/mmlu", "all", "test", COMMIT)
    assert parts(f"hf://{tmp_path}:test") == (str(tmp_path), None, "test", None)
    assert parts(f"hf://{tmp_path}/main:test") == (str(tmp_path), "main", "test", None)
    assert hub.is_hub("hf://x/y:z") and not hub.is_hub("x.jsonl") and not hub.is_hub(Path("hf://x/y:z"))


def test_what_the_libraries_keep_is_known_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    kept = (tmp_path / "hub" / "datasets--TIGER-Lab--MMLU-Pro", tmp_path / "datasets" / "TIGER-Lab___mmlu-pro")
    for path in (*kept, tmp_path / "datasets" / "TIGER-Lab___mmlu-pro-2", tmp_path / "hub" / "datasets--x--y"):
        path.mkdir(parents=True)
    request = Request(source="hf://TIGER-Lab/MMLU-Pro:test")
    assert request.caches == kept and request.path is None
    assert Request(source=tmp_path / "x").caches == () and Request(source="-").path is None
    local = Request(source=f"hf://{tmp_path}:test")
    assert local.caches == () and local.path == tmp_path


def test_the_extra_that_it_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"needs the package datasets; install it: pip install 'codex-pool\[hf\]'"):
        load(f"hf://{tmp_path}:test")
    with pytest.raises(DatasetError, match="--format csv is for files; expected none with hf://"):
        load(f"hf://{tmp_path}:test", format="csv")


# In processes of their own: the library reads its environment when it is imported.
SCRIPT = """
import json, sys
from codex_batch.dataset import DatasetError, Request
for source in sys.argv[1:]:
    columns = ("target={{ answer | letter }}", "tags=subject", "prompt={{ question }} {{ choices[0] }}")
    try:
        with Request(source=source, columns=columns).open() as dataset:
            print(json.dumps([len(dataset), [sample.to_json() for sample in dataset][2], dataset.commit]))
    except DatasetError as error:
        print(json.dumps(error.problems))
"""
THIRD = {
    "id": "3",
    "prompts": ["Q2 2w"],
    "metadata": {"question": "Q2", "choices": ["2w", "2x", "2y", "2z"]},
    "tags": ["anatomy"],
    "target": "C",
}


def loaded(home: Path, *sources: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *sources],
        # A closed port: nobody answers for the hub.
        env={"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "HOME": str(home), "TMPDIR": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of the hub's libraries that holds one dataset, as they leave it after a download."""
    parquet(tmp_path / "local" / "test-00000-of-00001.parquet", MMLU)
    home = tmp_path / "home"
    home.mkdir()
    script = "import datasets, sys; datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])"
    command = [sys.executable, "-c", script, str(tmp_path / "local"), str(tmp_path / "made")]
    subprocess.run(command, env={"HF_HOME": str(home), "HOME": str(home)}, capture_output=True, timeout=50, check=True)
    (source,) = (path.parent for path in (tmp_path / "made").rglob("*.arrow"))
    kept = home / "datasets" / "cais___mmlu" / "all" / "0.0.0" / COMMIT
    kept.mkdir(parents=True)
    (kept / "mmlu-test.arrow").write_bytes((source / "local-test.arrow").read_bytes())
    info = json.loads((source / "dataset_info.json").read_text())
    (kept / "dataset_info.json").write_text(json.dumps({**info, "config_name": "all", "dataset_name": "mmlu"}))
    return home


@pytest.mark.parquet
@pytest.mark.timeout(120)
def test_a_local_directory_and_what_is_kept_are_read_without_a_network(home: Path, tmp_path: Path) -> None:
    (home / "cais" / "mmlu").mkdir(parents=True)
    other = "d" * 40
    found = loaded(
        home,
        f"hf://{tmp_path}/local:test",
        f"hf://{tmp_path}/local:test[:3]",
        "hf://cais/mmlu/all:test",
        f"hf://cais/mmlu/all:test@{COMMIT}",
        f"hf://cais/mmlu/all:test@{other}",
        "hf://cais/mmlu/all:test@main",
        f"hf://{tmp_path}/local:tset",
        "hf://cais/none:test",
    )
    local = {**THIRD, "directory": str(tmp_path / "local")}
    kept = {**THIRD, "directory": str(home)}
    assert found[:4] == [[2500, local, None], [3, local, None], [2500, kept, COMMIT], [2500, kept, COMMIT]]
    for (problem,), said in zip(
        found[4:],
        (
            f"what is kept on this machine is of the commit {COMMIT}, and the hub cannot be asked for {other}",
            "the hub cannot be asked for main; expected that one: name its full commit",
            "local:tset: cannot be loaded: ValueError: Unknown split \"tset\". Should be one of ['test'].",
            "cais/none:test: the hub cannot be reached (ConnectError: [Errno 111] Connection refused), and no copy",
        ),
        strict=True,
    ):
        assert said in problem and "\n" not in problem
    # What was made of the directory is gone.
    assert [path.name for path in home.iterdir() if path.name.startswith("codex-pool-")] == []


AGENT = """
[[rules]]
contains = "Q"
[rules.answer]
type = "tool_call"
cmd = "ls {kept} || echo DENIED"
[rules.answer.then]
type = "text"
text = "Answer: A"
"""


@pytest.mark.parquet
@pytest.mark.real
@pytest.mark.timeout(120)
def test_a_run_says_which_commit_it_read_and_its_agents_cannot_read_it(home: Path, tmp_path: Path) -> None:
    source, kept = f"hf://cais/mmlu/all:test@{COMMIT}", home / "datasets" / "cais___mmlu"
    script, run = tmp_path / "agent.toml", tmp_path / "run"
    script.write_text(AGENT.format(kept=kept))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "codex_pool_cli", "batch", source, "--limit", "2", "-o", str(run)),
            *("--field", "target={{ answer | letter }}", "--field", "prompt=question", "--scorer", "choice"),
            *("--demo-script", str(script), "--workers", "1"),
        ],
        env={**environment(None), "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    dataset = json.loads((run / "config.json").read_bytes())["dataset"]
    assert (dataset["name"], dataset["commit"], dataset["git"]) == (source, COMMIT, None)
    records = [json.loads(line) for line in (run / "results.jsonl").read_bytes().splitlines()]
    assert [record["scores"]["choice"]["passed"] for record in records] == [True, False]
    # The target is not in them.
    assert [sorted(record["metadata"]) for record in records] == [["choices", "subject"]] * 2
    events = b"".join(gzip.decompress(path.read_bytes()) for path in (run / "events").glob("*.gz"))
    assert events.count(b"Permission denied") >= 2 and b"mmlu-test.arrow" not in events
