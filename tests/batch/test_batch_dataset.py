"""Datasets: what is accepted, and that everything wrong is said at once, with file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_app_server.testing.loopback.demo import demo_jsonl
from codex_batch import dataset
from codex_batch.dataset import DatasetError, Sample
from codex_pool.sandbox_modes import SANDBOX_MODES

HERE = Path("/data")


def parse(*lines: Any, is_directory: bool = True) -> list[Sample]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return dataset.parse(text.encode(), "d.jsonl", HERE, is_directory=lambda path: is_directory)


def sample(id: str, prompt: str, **fields: Any) -> Sample:
    return Sample(id, (prompt,), **fields)


def problems(*lines: Any, is_directory: bool = True) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        parse(*lines, is_directory=is_directory)
    return caught.value.problems


def test_only_a_prompt_is_needed_and_the_id_is_the_line_number() -> None:
    assert parse({"prompt": "a"}, "", {"prompt": "b"}) == [Sample("1", ("a",)), Sample("3", ("b",))]


def test_every_field_arrives() -> None:
    line = {
        "id": "x",
        "prompt": "p",
        "cwd": "sub/../repo",
        "model": "m",
        "effort": "low",
        "sandbox": "workspace-write",
        "output_schema": {"type": "object"},
        "timeout_s": 1.5,
        "metadata": {"n": 10**30, "deep": [{"ä": None}]},
    }
    assert parse(line) == [sample(**{**line, "cwd": "/data/repo"})]


def test_an_optional_field_may_be_null_and_a_byte_order_mark_and_carriage_returns_do_not_matter() -> None:
    data = b'\xef\xbb\xbf{"prompt": "a", "cwd": null, "metadata": null}\r\n\r\n{"prompt": "b"}\r\n'
    assert dataset.parse(data, "d", HERE) == [Sample("1", ("a",)), Sample("3", ("b",))]


def test_an_absolute_cwd_stays_and_a_relative_one_begins_at_the_dataset() -> None:
    assert [sample.cwd for sample in parse({"prompt": "a", "cwd": "/else"}, {"prompt": "b", "cwd": "x"})] == [
        "/else",
        "/data/x",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "d.jsonl:1: not JSON: "),
        ('{"prompt": "a"} x', "d.jsonl:1: not JSON: Extra data at column 17"),
        ("[1]", "d.jsonl:row 1: is 1, a number; expected a JSON object"),
        ("null", "d.jsonl:1: the line is null; expected a JSON object"),
        ('{"prompt": "a", "timeout_s": NaN}', "d.jsonl:1: not readable: NaN is not JSON"),
        ("{}", "d.jsonl:1: prompt: is missing; expected a non-empty string"),
        ({"prompt": ""}, 'd.jsonl:1: prompt: is "", a string; expected a non-empty string'),
        ({"prompt": " \n"}, "d.jsonl:1: prompt: is "),
        ({"prompt": None}, "d.jsonl:1: prompt: is null; expected a non-empty string"),
        ({"prompt": 42}, "d.jsonl:1: prompt: is 42, a number; expected a non-empty string"),
        ({"prompt": "a", "id": 5.5}, "d.jsonl:1: id: is 5.5, a number; expected a non-empty string, or a whole number"),
        ({"prompt": "a", "id": ""}, 'd.jsonl:1: id: is "", a string; expected a non-empty string'),
        (
            {"prompt": "a", "effrot": "low"},
            'd.jsonl:1: effrot: is not a field of a sample (did you mean "effort"?); expected one of id, prompt',
        ),
        (
            {"prompt": "a", "sandbox": "none"},
            'd.jsonl:1: sandbox: is "none", a string; expected one of read-only, workspace-write, danger-full-access',
        ),
        ({"prompt": "a", "sandbox": []}, "d.jsonl:1: sandbox: is [], a list"),
        ({"prompt": "a", "timeout_s": "5"}, 'd.jsonl:1: timeout_s: is "5", a string; expected a number of seconds'),
        ({"prompt": "a", "timeout_s": 0}, "d.jsonl:1: timeout_s: is 0, a number"),
        ({"prompt": "a", "timeout_s": True}, "d.jsonl:1: timeout_s: is true, a boolean"),
        ('{"prompt": "a", "timeout_s": 1e999}', "d.jsonl:1: timeout_s: is Infinity, a number"),
        ({"prompt": "a", "output_schema": "s"}, 'd.jsonl:1: output_schema: is "s", a string; expected an object'),
        ({"prompt": "a", "metadata": []}, "d.jsonl:1: metadata: is [], a list; expected an object"),
        ('{"prompt": "a", "metadata": {"x": 1e999}}', "d.jsonl:1: metadata: has a number that no JSON reader can hold"),
        ('{"prompt": "a \\ud800"}', "d.jsonl:1: prompt: has a lone surrogate (\\ud800)"),
        ('{"prompt": "a", "metadata": {"k": ["\\udfff"]}}', "d.jsonl:1: metadata: has a lone surrogate (\\udfff)"),
        ('{"prompt": "a", "\\ud800": 1}', "d.jsonl:1: \\ud800: is not a field"),
        ('{"prompt": "a", "metadata": {"x": ' + "[" * 200 + "]" * 200 + "}}", "is nested more than 100 levels deep"),
        ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "d.jsonl:1: "),
        ('{"prompt": "a", "timeout_s": ' + "9" * 5000 + "}", "d.jsonl:1: "),
        ({"prompt": "a", "cwd": "\0"}, "d.jsonl:1: cwd: "),
    ],
)
def test_what_is_wrong_is_said_with_file_line_and_field(line: Any, problem: str) -> None:
    (said,) = problems(line)
    assert problem in said and len(said) < 500
    said.encode()


def test_a_missing_directory_is_named_with_where_it_was_looked_for() -> None:
    assert problems({"prompt": "a", "cwd": "repo"}, is_directory=False) == [
        'd.jsonl:1: cwd: "repo" is not a directory (looked at /data/repo); expected an existing one'
    ]


def test_everything_wrong_is_said_at_once() -> None:
    said = problems({"prompt": 1, "model": 2}, "{", {"prompt": "fine"}, {"x": 1})
    assert [problem.split(": ")[0:2] for problem in said] == [
        ["d.jsonl:1", "prompt"],
        ["d.jsonl:1", "model"],
        ["d.jsonl:2", "not JSON"],
        ["d.jsonl:4", "prompt"],
        ["d.jsonl:4", "x"],
    ]


def test_an_id_may_stand_once_also_as_a_line_number() -> None:
    assert problems({"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}) == [
        'd.jsonl:2: id: "x" is already the id of line 1; expected one of its own'
    ]
    assert len(problems({"prompt": "a", "id": "2"}, {"prompt": "b"})) == 1


@pytest.mark.parametrize("data", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
def test_an_empty_dataset_is_refused(data: bytes) -> None:
    with pytest.raises(DatasetError, match="the dataset is empty"):
        dataset.parse(data, "d", HERE)


def test_bytes_that_are_not_utf8_are_named_by_line() -> None:
    with pytest.raises(DatasetError, match="d:2: not UTF-8 at byte 13"):
        dataset.parse(b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "d", HERE)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nope\.jsonl: no such file"):
        dataset.read(tmp_path / "nope.jsonl")
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(DatasetError, match="cannot be read: Is a directory"):
        dataset.load(tmp_path / "d.jsonl", format="jsonl")


def test_the_example_is_the_demo_dataset_and_is_right() -> None:
    example = Path(__file__).parents[2] / "examples" / "batch" / "prompts.jsonl"
    from_file = dataset.read(example)
    assert from_file == dataset.parse(demo_jsonl().encode(), "demo", example.parent) and len(from_file) == 26


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\ud8ntrue0.-e promtidcw\n', max_size=200).map(str.encode))
def test_whatever_comes_there_are_samples_or_problems(data: bytes) -> None:
    try:
        samples = dataset.parse(data, "d", HERE)
    except DatasetError as error:
        assert error.problems
        str(error).encode()
    else:
        assert samples and all(sample.prompt.strip() for sample in samples)


_text = st.text(min_size=1, max_size=20).filter(str.strip)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"prompt": _text},
            optional={
                "model": _text,
                "effort": _text,
                "sandbox": st.sampled_from(SANDBOX_MODES),
                "timeout_s": st.floats(min_value=0.001, max_value=1e6),
                "metadata": st.dictionaries(st.text(max_size=5), _json, max_size=3),
            },
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_what_is_written_as_json_lines_is_read_as_it_is(lines: list[dict[str, Any]], ascii_only: bool) -> None:
    data = "".join(json.dumps(line, ensure_ascii=ascii_only) + "\n" for line in lines).encode()
    samples = dataset.parse(data, "d", HERE)
    assert samples == [sample(id=str(number), **line) for number, line in enumerate(lines, 1)]


def test_a_digest_is_of_what_is_asked_and_of_nothing_else() -> None:
    one = Sample("a", ("p",), model="m", timeout_s=1, metadata={"x": 1})
    assert one.digest == Sample("b", ("p",), model="m", timeout_s=2).digest
    assert one.digest != Sample("a", ("p",), model="n").digest
    assert one.digest != Sample("a", ("q",), model="m").digest
