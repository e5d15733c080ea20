"""Fields of samples out of the columns of published datasets: --field FIELD=COLUMN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codex_batch.dataset import Columns, DatasetError, Filter, Request, Sample, Selection, Template, load

MMLU = [
    {"question": "Which?", "subject": "anatomy", "choices": ["0", "1", "2", "3"], "answer": 2},
    {"question": "And?", "subject": "law", "choices": ["w", "x", "y", "z"], "answer": 0},
]


def lines(path: Path, *values: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def read(source: Path, *columns: str, **options: Any) -> list[Sample]:
    with load(source, columns=Columns(columns), **options) as dataset:
        return list(dataset)


def refused(source: Path, *columns: str, **options: Any) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        load(source, columns=Columns(columns), **options)
    return [problem.removeprefix(f"{source}:") for problem in caught.value.problems]


def test_columns_become_fields_and_further_ones_metadata(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "d.jsonl",
        {"task_id": "H/0", "prompt": "p", "entry_point": "f", "answer": {"text": ["x", "y"]}, "tags": ["t"], "id": 7},
    )
    assert read(path, "id=task_id", "target=answer.text.1", "metadata.name=entry_point", "model = entry_point") == [
        Sample("H/0", ("p",), model="f", tags=("t",), target="y", metadata={"name": "f", "id": 7})
    ]


def test_templates_make_fields_and_text_for_other_fields_is_read_as_in_csv(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", *MMLU)
    template = Template("{{ question }}{% for c in choices %} {{ loop.index0 | letter }}) {{ c }}{% endfor %}", "t.md")
    one, two = read(
        path,
        "target={{ answer | letter }}",
        "tags=subject",
        'workspace={"files": {"q.txt": {{ question | tojson }}}}',
        "timeout_s={{ 60 * (answer + 1) }}",
        template=template,
    )
    assert one == Sample(
        "1",
        ("Which? A) 0 B) 1 C) 2 D) 3",),
        target="C",
        tags=("anatomy",),
        timeout_s=180,
        workspace={"files": {"q.txt": "Which?"}},
        # Not the answer: records are passed on.
        metadata={"question": "Which?", "choices": ["0", "1", "2", "3"]},
    )
    assert (two.target, two.tags) == ("A", ("law",))


def test_a_filter_looks_at_the_fields_that_were_made(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", *({**row, "level": level} for level, row in enumerate(MMLU)))
    chosen = Selection(filters=(Filter.parse("metadata.level>0"), Filter.parse("tags=law")))
    assert [sample.id for sample in read(path, "prompt=question", "tags=subject", selection=chosen)] == ["2"]


def test_cells_of_a_table_are_columns_as_well(tmp_path: Path) -> None:
    path = written(
        tmp_path / "d.csv",
        'q,level,choices,tags,metadata.own,answers\nwhy,3,"[""a"", ""b""]","x, y",z,"{""text"": [""t""]}"\nhow,,,,,\n',
    )
    assert read(path, "prompt=q", 'metadata={"choices": {{ choices | default("[]") }}}', "target=answers.text.0") == [
        Sample(
            "2",
            ("why",),
            target="t",
            tags=("x", "y"),
            metadata={"level": "3", "choices": ["a", "b"], "own": "z"},
        )
        if number == 0
        else Sample("3", ("how",), metadata={"choices": []})
        for number in range(2)
    ]


def test_a_wrong_name_of_a_column_is_found_at_once_with_what_was_probably_meant(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", *MMLU)
    first, *others = refused(path, "prompt=qestion", "target=answer")
    assert first == (
        '--field prompt=qestion: no row has "qestion" (did you mean "question"?); '
        "expected one of question, subject, choices, answer"
    )
    assert others == [f"{line}: prompt: is missing; expected a non-empty string" for line in (1, 2)]
    # One row without it is a sample without the field.
    assert [sample.target for sample in read(lines(path, {"q": "a", "t": 1}, {"q": "b"}), "prompt=q", "target=t")] == [
        1,
        None,
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task_id", "is no FIELD=COLUMN; expected one, as in id=task_id"),
        ("=x", "is no FIELD=COLUMN"),
        ("id=", "is no FIELD=COLUMN"),
        ("promt=question", '"promt" is no field of a sample (did you mean "prompt"?); expected one of id, prompt'),
        ("metadata.=x", "names no member"),
        ("target={{ answer", "--field target:1: not a template"),
    ],
)
def test_what_is_no_field_is_refused_before_the_dataset_is_read(text: str, said: str) -> None:
    with pytest.raises(DatasetError) as caught:
        Columns([text, "id=a", "id=b"])
    assert said in caught.value.problems[0]
    assert "--field id=...: stands there several times; expected once" in caught.value.problems


def test_a_request_takes_them_as_text_and_refuses_two_prompts(tmp_path: Path) -> None:
    path, template = lines(tmp_path / "d.jsonl", *MMLU), written(tmp_path / "t.md", "{{ question }}")
    with Request(source=path, columns=("prompt=question",)).open() as dataset:
        assert [sample.prompt for sample in dataset] == ["Which?", "And?"]
    for columns, said in (
        (("prompt=question",), "--field prompt=...: stands beside --prompt-template; expected one of them"),
        (("x=question",), "is no field of a sample"),
    ):
        with pytest.raises(DatasetError) as caught:
            Request(source=path, columns=columns, prompt_template=template).open()
        assert said in str(caught.value)


def test_what_a_row_does_not_allow_is_said_with_its_line_and_field(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "d.jsonl",
        {"q": "a", "n": -1, "m": "{"},
        {"q": "b", "n": "3", "m": "{}", "extra": "\ud800"},
        {"q": ["c"], "n": 26, "m": "[]"},
        {"q": "d", "n": 0, "m": "[]", "target": True},
    )
    assert refused(path, "prompt=q", "tags={{ n | letter }}", "metadata=m") == [
        "1: tags: --field tags: letter: -1 is not the number of a choice; expected a whole number from 0 to 25",
        "2: metadata: has a lone surrogate (\\ud800), which UTF-8 cannot carry; expected Unicode text",
        "3: tags: --field tags: letter: 26 is not the number of a choice; expected a whole number from 0 to 25",
        "4: target: is true, a boolean; expected a string, a number or a list of strings",
        "4: metadata: is [], a list; expected an object",
    ]
    assert refused(path, "prompt=q", "limits=m")[0].startswith('1: limits: is "{", which is not JSON')


def test_json_in_text_is_read_by_templates_that_say_so(tmp_path: Path) -> None:
    path = written(tmp_path / "d.csv", 'q,options\nwhy,"[""a"", ""b""]"\n')
    assert [sample.prompt for sample in read(path, "prompt={{ q }} {{ (options | fromjson)[1] }}")] == ["why b"]
    assert "fromjson: Expecting value" in refused(path, "prompt={{ q | fromjson }}")[0]


def test_numbers_are_ids_exactly_and_one_of_each(tmp_path: Path) -> None:
    big = 2**64 + 1
    path = lines(tmp_path / "d.jsonl", {"n": big, "prompt": "p", "x": big}, {"n": -3, "prompt": "p"})
    one, two = read(path, "id=n", "target=x")
    assert (one.id, two.id, one.target) == (str(big), "-3", big)
    assert refused(
        lines(path, {"n": 1, "prompt": "p"}, {"n": "1", "prompt": "p"}, {"n": 1.0, "prompt": "p"}), "id=n"
    ) == [
        '2: id: "1" is already the id of line 1; expected one of its own',
        "3: id: is 1.0, a number; expected a non-empty string, or a whole number",
    ]


def test_a_name_close_to_a_field_is_asked_about(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", {"promt": "p", "zzz": 1})
    with pytest.raises(DatasetError) as caught:
        load(path)
    _, close, far = caught.value.problems
    assert 'promt: is not a field of a sample (did you mean "prompt"?); expected one of id, prompt' in close
    assert "zzz: is not a field of a sample; expected" in far and "--field prompt=COLUMN" in far
