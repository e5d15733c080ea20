"""Origins of datasets - CSV, Parquet, task folders, standard input - and which of their samples are run."""

from __future__ import annotations

import bz2
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from codex_batch.dataset import Dataset, DatasetError, Filter, Request, Sample, Selection, Template, load


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def lines(path: Path, *values: dict[str, Any]) -> Path:
    return written(path, "".join(json.dumps(value) + "\n" for value in values))


def read(source: Path | str, **options: Any) -> list[Sample]:
    with load(source, **options) as dataset:
        return list(dataset)


def refused(source: Path | str, **options: Any) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        load(source, **options)
    return caught.value.problems


# CSV.


def test_csv_cells_become_fields_and_empty_ones_none(tmp_path: Path) -> None:
    text = (
        "id,prompt,tags,metadata.level,timeout_s,output_schema,target\n"
        'a,"two\nlines","x, y",3,1.5,"{""type"": ""object""}",42\n'
        '\nb,"p, q",,,,,\n'
        'c,r,"[""z""]",,,,\n'
    )
    assert read(written(tmp_path / "d.csv", "\ufeff" + text)) == [
        Sample(
            "a",
            ("two\nlines",),
            tags=("x", "y"),
            metadata={"level": "3"},
            timeout_s=1.5,
            output_schema={"type": "object"},
            target="42",
        ),
        Sample("b", ("p, q",)),
        Sample("c", ("r",), tags=("z",)),
    ]


def test_csv_problems_have_the_line_at_which_the_row_begins(tmp_path: Path) -> None:
    path = written(
        tmp_path / "d.csv",
        'prompt,timeout_s,metadata\n"two\nlines",x,\nfine,,\n,1,\nshort\np,1,{\np,-1,[]\n',
    )
    assert [problem.removeprefix(f"{path}:") for problem in refused(path)] == [
        '2: timeout_s: is "x"; expected a number',
        "5: prompt: is missing; expected a non-empty string",
        "6: has 1 cells; expected 3, as the header has",
        '7: metadata: is "{", which is not JSON: Expecting property name enclosed in double quotes: '
        "line 1 column 2 (char 1); expected JSON",
        "8: timeout_s: is -1.0, a number; expected a number of seconds above 0",
        "8: metadata: is [], a list; expected an object",
    ]


def test_a_header_is_checked_and_so_are_quotes_and_encoding(tmp_path: Path) -> None:
    assert refused(written(tmp_path / "a.csv", "prompt,,prompt\nx,y,z\n")) == [
        f"{tmp_path}/a.csv:1: column 2 has no name; expected one",
        f"{tmp_path}/a.csv:1: prompt: is the name of several columns; expected one",
    ]
    assert "2: not CSV: unexpected end of data" in refused(written(tmp_path / "b.csv", 'prompt\n"x\n'))[0]
    (tmp_path / "c.csv").write_bytes(b"prompt\nx\n\xff\n")
    assert refused(tmp_path / "c.csv") == [
        f"{tmp_path}/c.csv:3: not UTF-8 at byte 1 of the line; expected CSV in UTF-8"
    ]
    assert refused(written(tmp_path / "d.csv", "prompt\n")) == [
        f"{tmp_path}/d.csv: the dataset is empty; expected a header and rows with at least a prompt"
    ]


def test_a_tab_separated_file_and_a_format_that_the_name_does_not_say(tmp_path: Path) -> None:
    assert read(written(tmp_path / "d.tsv", "prompt\tid\np\tx\n")) == [Sample("x", ("p",))]
    assert read(written(tmp_path / "d.txt", "prompt,id\np,x\n"), format="csv") == [Sample("x", ("p",))]


# Parquet.


@pytest.mark.parquet
def test_parquet_columns_become_fields(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"id": "a", "prompt": "p", "tags": ["x"], "metadata": {"n": 1, "m": None}, "target": 1.5},
        {"id": "b", "prompt": "q", "tags": None, "metadata": None, "target": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet") == [
        Sample("a", ("p",), tags=("x",), metadata={"n": 1}, target=1.5),
        Sample("b", ("q",)),
    ]


@pytest.mark.parquet
def test_parquet_problems_have_the_row_and_strange_types_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": "p", "target": b"x", "extra": 1}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    first, second = refused(tmp_path / "d.parquet")
    assert first.startswith(f"{tmp_path}/d.parquet:row 1: target: is ") and "of type bytes; expected a string" in first
    assert second.startswith(f"{tmp_path}/d.parquet:row 1: extra: is not a field")
    assert "is not Parquet" in refused(written(tmp_path / "e.parquet", "no"))[0]


# Task folders.


def test_a_task_folder_has_a_prompt_fields_and_a_workspace(tmp_path: Path) -> None:
    written(tmp_path / "dataset.toml", 'sandbox = "workspace-write"\ntags = ["all"]\n')
    written(tmp_path / "one" / "prompt.md", "Do it.\n")
    written(tmp_path / "one" / "workspace" / "a.py", "x = 1\n")
    written(tmp_path / "one" / "tests" / "hidden.py", "assert x\n")
    written(tmp_path / "two" / "prompt-1.md", "First.")
    written(tmp_path / "two" / "prompt-2.md", "Second.")
    written(tmp_path / "two" / "task.json", '{"id": "zwei", "tags": ["own"], "workspace": {"files": {"b": "c"}}}')
    (tmp_path / "_shared").mkdir()
    one, two = read(tmp_path)
    assert (one.id, one.prompts, one.sandbox, one.tags) == ("one", ("Do it.\n",), "workspace-write", ("all",))
    assert one.workspace is not None and one.workspace["template"] == str(tmp_path / "one" / "workspace")
    assert one.directory == str(tmp_path / "one")
    assert (two.id, two.prompts, two.tags) == ("zwei", ("First.", "Second."), ("own",))
    assert two.workspace == {"files": {"b": "c"}}


def test_what_is_wrong_with_task_folders_is_said_at_once_with_the_lines_of_fields(tmp_path: Path) -> None:
    written(tmp_path / "a" / "prompt.md", "p")
    written(tmp_path / "a" / "task.toml", '# about it\nmodel = "m"\nlimits = { turns = 0 }\n[workspace]\nsetup = 3\n')
    written(tmp_path / "b" / "task.toml", "timeout_s =\n")
    (tmp_path / "c").mkdir()
    written(tmp_path / "d" / "prompt.md", " \n")
    written(tmp_path / "e" / "prompt-2.md", "p")
    written(tmp_path / "f" / "prompt.md", "p")
    written(tmp_path / "f" / "task.json", '{\n "prompt": "q"\n}')
    said = [problem.removeprefix(f"{tmp_path}/") for problem in refused(tmp_path)]
    assert [problem.split(" ")[0] for problem in said] == [
        "a/task.toml:3:",
        "a/task.toml:4:",
        "a/task.toml:4:",
        "b/task.toml:1:",
        "c:",
        "d/prompt.md:1:",
        "e:",
        "f/task.json:",
    ]
    assert "limits.turns: is 0, a number; expected a whole number above 0" in said[0]
    assert "workspace.setup: is 3, a number; expected a shell command" in said[1]


def test_an_empty_directory_is_no_dataset(tmp_path: Path) -> None:
    assert refused(tmp_path) == [f"{tmp_path}: the dataset is empty; expected folders with a prompt.md or a task.toml"]


# Standard input.


def test_standard_input_is_read(tmp_path: Path) -> None:
    assert read("-", stdin=io.BytesIO(b'{"prompt": "p"}\n')) == [Sample("1", ("p",))]
    assert read("-", stdin=io.BytesIO(b"prompt\np\n"), format="csv") == [Sample("2", ("p",))]
    assert refused("-", stdin=io.BytesIO(b"{}")) == ["<stdin>:1: prompt: is missing; expected a non-empty string"]
    assert "cannot be read from standard input" in refused("-", stdin=io.BytesIO(), format="parquet")[0]


# Templates.


def test_a_template_makes_prompts_of_columns_and_others_do_not_matter(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", {"question": "why", "id": "a", "metadata": {"of": "x"}}, {"question": "how"})
    template = Template("{{ id }}: {{ question }}{% if metadata is defined %} {{ metadata.of }}{% endif %}", "t.md")
    assert [sample.prompt for sample in read(path, template=template)] == ["a: why x", "2: how"]
    assert [sample.metadata for sample in read(path, template=template)] == [{"of": "x"}, None]
    unused = Template("{{ id }}", "t.md")
    assert [sample.prompt for sample in read(path, template=unused)] == ["a", "2"]
    assert [problem.split(": ")[1] for problem in refused(path)] == ["prompt", "question", "prompt", "question"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bz2.compress(b"{}"), "is compressed with bzip2"),
        (lzma.compress(b"{}"), "is compressed with xz"),
        ('{"prompt": "x"}'.encode("utf-16"), "is in UTF-16"),
        (b"PAR1rest", "is a Parquet file; expected text in UTF-8: use --format parquet"),
        (b'{\n "prompt": "x"\n}\n', "1: not JSON: the object takes several lines"),
    ],
    ids=(
        "bzip2",
        "xz",
        "utf-16",
        "parquet",
        "object",
    ),
)
def test_files_of_other_kinds_are_called_by_their_name(data: bytes, said: str, tmp_path: Path) -> None:
    for name in ("d.jsonl", "d.csv"):
        if name == "d.csv" and data[:1] in b"[{":
            continue
        (tmp_path / name).write_bytes(data)
        (problem,) = refused(tmp_path / name)
        assert said in problem


def test_a_number_is_an_id(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", {"id": 7, "prompt": "x"}, {"id": "8", "prompt": "y"})
    assert [sample.id for sample in read(path)] == ["7", "8"]
    assert refused(lines(tmp_path / "e.jsonl", {"id": 7, "prompt": "x"}, {"id": "7", "prompt": "y"}))


def test_a_variable_that_does_not_exist_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", {"question": "why"}, {"question": "how", "x": 1})
    assert refused(path, template=Template("{{ question }} {{ x }}", "t.md")) == [
        f"{path}:1: t.md: 'x' is undefined (variables that do not exist: x; there are id, question)"
    ]
    assert (
        "'dict object' has no attribute 'b'"
        in refused(lines(tmp_path / "e.jsonl", {"metadata": {"a": 1}}), template=Template("{{ metadata.b }}", "t.md"))[
            0
        ]
    )


def test_a_template_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"t\.md:2: not a template: "):
        Template("\n{% if %}", "t.md")
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        Template.read(tmp_path / "none.md")


def test_a_template_that_makes_an_empty_prompt_or_meets_prompts_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", {"q": ""}, {"q": "x", "prompts": ["y"]})
    assert [problem.split(";")[0] for problem in refused(path, template=Template("{{ q }}", "t.md"))] == [
        f'{path}:1: prompt: is "", a string',
        f"{path}:2: prompts: cannot go with a template, which makes one prompt",
    ]


# Fields.


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"prompts": []}, "prompts: is [], a list; expected a list of non-empty strings"),
        ({"prompts": ["a"], "prompt": "b"}, "prompts: stands beside prompt"),
        ({"prompt": "p", "tags": "x"}, 'tags: is "x", a string; expected a list of non-empty strings'),
        ({"prompt": "p", "target": True}, "target: is true, a boolean; expected a string, a number"),
        ({"prompt": "p", "scorers": [1]}, "scorers: is [1], a list; expected a list of scorers"),
        ({"prompt": "p", "limits": {"wall": 1}}, "limits.wall: is not a limit; expected some of wall_s, idle_s"),
        ({"prompt": "p", "workspace": {}}, "workspace: says not what is in it"),
        ({"prompt": "p", "workspace": {"template": "nope"}}, 'workspace.template: "nope" is not a directory'),
        ({"prompt": "p", "workspace": {"git": "."}}, "workspace.commit: is missing beside git"),
        ({"prompt": "p", "workspace": {"git": ".", "commit": "-x"}}, 'workspace.commit: is "-x", a string'),
        ({"prompt": "p", "workspace": {"files": {"../x": ""}}}, "workspace.files: is "),
        ({"prompt": "p", "workspace": {"files": {"a": ""}, "up": 1}}, "workspace.up: is not a field of a workspace"),
        ({"prompt": "p", "cwd": ".", "workspace": {"files": {"a": ""}}}, "workspace: stands beside cwd"),
    ],
)
def test_fields_of_evaluations_are_checked(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    (said,) = refused(lines(tmp_path / "d.jsonl", fields))
    assert said.startswith(f"{tmp_path}/d.jsonl:1: {problem}")


def test_scorers_and_repositories_are_checked_with_everything_else(tmp_path: Path) -> None:
    def check_sample(sample: Sample, where: str) -> list[str]:
        return [f"{where}: scorers: no scorer {spec}" for spec in sample.scorers or ()]

    def check_repository(repository: str, revision: str) -> str:
        if revision == "gone":
            raise ValueError(f"git: {repository} has no commit {revision}")
        return "f" * 40

    workspace = {"git": "https://host/r.git", "commit": "gone"}
    path = lines(
        tmp_path / "d.jsonl", {"prompt": "p", "scorers": ["x"]}, {"prompt": "p", "workspace": workspace}, {"prompt": 1}
    )
    assert refused(path, check_sample=check_sample, check_repository=check_repository) == [
        f"{path}:1: scorers: no scorer x",
        f"{path}:2: workspace: git: https://host/r.git has no commit gone",
        f"{path}:3: prompt: is 1, a number; expected a non-empty string",
    ]
    (sample,) = read(
        lines(path, {"prompt": "p", "workspace": {**workspace, "commit": "v1"}}), check_repository=check_repository
    )
    assert sample.workspace == {"git": "https://host/r.git", "commit": "f" * 40}


def test_problems_without_end_are_counted(tmp_path: Path) -> None:
    said = refused(written(tmp_path / "d.jsonl", "{}\n" * 1000))
    assert len(said) == 101 and said[-1] == "and 900 more"


def test_a_digest_follows_what_lies_in_a_template_not_where_it_lies(tmp_path: Path) -> None:
    def digest(where: str, content: str) -> str:
        written(tmp_path / where / "t" / "workspace" / "a", content)
        written(tmp_path / where / "t" / "prompt.md", "p")
        return read(tmp_path / where)[0].digest

    assert digest("one", "x") == digest("two", "x") != digest("three", "y")


def test_neither_target_nor_scorers_nor_limits_are_in_a_digest() -> None:
    one = Sample("a", ("p",), target="x", scorers=("exact",), limits={"turns": 1}, tags=("t",), epoch=2)
    assert one.digest == Sample("a", ("p",)).digest != Sample("a", ("p", "q")).digest


def test_a_sample_is_the_same_after_json(tmp_path: Path) -> None:
    sample = Sample("a", ("p", "q"), epoch=2, tags=("t",), scorers=(), target=["x"], directory="/d")
    again = Sample.from_json(json.loads(json.dumps(sample.to_json())))
    assert again == sample and again.directory == "/d"


# Selection.


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    return lines(
        tmp_path / "ten.jsonl",
        *(
            {"id": f"s{n}", "prompt": "p", "tags": ["even"] if n % 2 == 0 else [], "metadata": {"n": n}}
            for n in range(10)
        ),
    )


def ids(source: Path, *filters: str, **selection: Any) -> list[str]:
    chosen = Selection(filters=tuple(Filter.parse(text) for text in filters), **selection)
    return [sample.id for sample in read(source, selection=chosen)]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("tags=even", "02468"),
        ("tags!=even", "13579"),
        ("tags~^ev", "02468"),
        ("tags!~ev", "13579"),
        ("metadata.n>=8", "89"),
        ("metadata.n < 2", "01"),
        ("metadata.n=3", "3"),
        ("metadata.n!=3", "012456789"),
        ("id~[36]$", "36"),
        ("id>s7", "89"),
        ("metadata.none!=x", "0123456789"),
    ],
)
def test_a_filter_takes_what_it_says(ten: Path, text: str, numbers: str) -> None:
    assert ids(ten, text) == [f"s{number}" for number in numbers]


def test_text_that_is_a_number_is_compared_as_one(tmp_path: Path) -> None:
    path = written(tmp_path / "d.csv", "prompt,metadata.n\np,9\np,10\np,x\n")
    assert ids(path, "metadata.n>=9.5") == ["3", "4"] and ids(path, "metadata.n=10") == ["3"]
    assert ids(lines(tmp_path / "d.jsonl", {"prompt": "p", "metadata": {"n": 10**400}}), "metadata.n!=1") == ["1"]


def test_several_filters_ids_and_a_limit_work_together(ten: Path) -> None:
    assert ids(ten, "tags=even", "metadata.n>2") == ["s4", "s6", "s8"]
    assert ids(ten, "tags=even", sample_ids=("s3", "s[4-9]"), limit=2) == ["s4", "s6"]


def test_one_seed_gives_one_order_and_the_limit_comes_after(ten: Path) -> None:
    order = ids(ten, shuffle=True, seed=7)
    assert sorted(order) == ids(ten) != order
    assert ids(ten, shuffle=True, seed=7, limit=3) == order[:3] and ids(ten, shuffle=True, seed=8) != order


def test_epochs_run_everything_again(ten: Path) -> None:
    with load(ten, selection=Selection(limit=2, epochs=3)) as dataset:
        keys = [sample.key for sample in dataset]
        assert keys == [(name, epoch, "") for epoch in (1, 2, 3) for name in ("s0", "s1")]
        assert len(dataset) == 6 and dataset.found == 10 and list(dataset) == list(dataset)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tags", "is no condition; expected FIELD=VALUE"),
        ("level=3", "level is no field; expected one of "),
        ("id.x=3", "id.x is no field"),
        ("id~(", "'(' is no regular expression"),
    ],
)
def test_a_filter_that_is_none_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        Filter.parse(text)
    assert problem in str(caught.value) and repr(text) in str(caught.value)


def test_ids_that_are_not_there_and_a_selection_of_nothing_are_refused(ten: Path) -> None:
    assert refused(ten, selection=Selection(sample_ids=("s1", "x", "y*"))) == [
        f"--sample-id {wanted}: no sample of {ten} has this id; it has s0, s1, s2, s3, s4, s5, s6, s7, s8, s9"
        for wanted in ("x", "y*")
    ]
    assert refused(ten, selection=Selection(filters=(Filter.parse("id=x"),))) == [
        f"{ten}: --filter 'id=x' leave none of its 10 samples"
    ]


def test_a_dataset_has_a_fingerprint_of_what_is_run(ten: Path) -> None:
    def fingerprint(**selection: Any) -> str:
        dataset: Dataset
        with load(ten, selection=Selection(**selection)) as dataset:
            return dataset.fingerprint

    assert fingerprint() == fingerprint() != fingerprint(limit=9)


def test_what_is_wrong_with_a_request_is_said_with_what_is_wrong_with_its_dataset(tmp_path: Path, ten: Path) -> None:
    def wrong(source: Path, **asked: Any) -> list[str]:
        with pytest.raises(DatasetError) as caught:
            Request(source=source, **asked).open()
        return caught.value.problems

    broken = lines(tmp_path / "broken.jsonl", {})
    first, second, third = wrong(broken, filters=("level=1", "id=x", "id~("))
    assert "level is no field" in first and "no regular expression" in second and "prompt: is missing" in third
    assert len(wrong(ten, filters=("level=1",))) == 1
    assert wrong(broken, prompt_template=tmp_path / "none")[0].endswith("expected a template")
    template = written(tmp_path / "t.md", "{{ id }}!")
    with Request(source=ten, prompt_template=template, filters=("id=s3",), epochs=2).open() as dataset:
        assert [(sample.prompt, sample.epoch) for sample in dataset] == [("s3!", 1), ("s3!", 2)] and dataset.path == ten
