"""Files of datasets as they are published: JSON arrays, gzip, and files that are cut, wrong or hostile."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codex_batch.dataset import DatasetError, Sample, json_array, load, readers, unpacked
from codex_batch.dataset.json_array import elements
from codex_batch.dataset.unpacked import UnreadableError

# Of the longest row, in tests that have such rows.
LIMIT_BYTES = 1 << 20
LONG = LIMIT_BYTES + 1000
ROWS = [{"id": "a", "prompt": "p"}, {"id": "ü", "prompt": 'q\n"'}]
TOO_LONG = "is longer than 64 MiB; expected a sample of ordinary size"


def read(source: Path | str, **options: Any) -> list[Sample]:
    with load(source, **options) as dataset:
        return list(dataset)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refused(path: Path, data: bytes, **options: Any) -> list[str]:
    path.write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        load(path, **options)
    return [problem.removeprefix(f"{path}") for problem in caught.value.problems]


# Of their names and forms.

JSON_LINES = b"".join(json.dumps(row).encode() + b"\r\n" for row in ROWS)
ARRAY = b"\xef\xbb\xbf\n " + json.dumps(ROWS, indent=1, ensure_ascii=False).encode().replace(b"\n", b"\r\n")
CSV = '\ufeffid,prompt\r\na,p\r\nü,"q\n"""\r\n'.encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("d.json", ARRAY),
        ("d.jsonl", ARRAY),
        ("d.json", JSON_LINES),
        ("d.json", json.dumps(ROWS).encode()),
        ("d.csv", CSV),
        ("d.tsv", CSV.replace(b",", b"\t")),
    ],
)
def test_a_file_is_read_by_what_is_in_it_compressed_or_not(name: str, data: bytes, tmp_path: Path) -> None:
    expected = [Sample("a", ("p",)), Sample("ü", ('q\n"',))]
    assert read(written(tmp_path / name, data)) == expected
    assert read(written(tmp_path / f"{name}.gz", gzip.compress(data))) == expected
    # Unpacked on the way, or packed by somebody else; in two parts.
    assert read(written(tmp_path / f"{name}.GZ", data)) == expected
    assert read(written(tmp_path / name, gzip.compress(data[:7]) + gzip.compress(data[7:]))) == expected
    kind = "jsonl" if "json" in name else name[2:]
    assert read("-", stdin=io.BytesIO(gzip.compress(data)), format=kind) == expected
    assert read(written(tmp_path / "data", data), format=kind) == expected


def test_rows_of_an_array_are_called_by_their_number_and_all_problems_are_said(tmp_path: Path) -> None:
    data = b'[{"prompt": 1},\n 5, {"prompt": "p", "target": NaN}, [], {"prompt": "p", "metadata": {"x": "\\ud800"}}]'
    assert refused(tmp_path / "d.json", data) == [
        ":row 1: prompt: is 1, a number; expected a non-empty string",
        ":row 2: is 5, a number; expected a JSON object",
        ":row 3: target: has a number that no JSON reader can hold; expected finite numbers",
        ":row 4: is [], a list; expected a JSON object",
        ":row 5: metadata: has a lone surrogate (\\ud800), which UTF-8 cannot carry; expected Unicode text",
    ]
    assert refused(tmp_path / "e.json", b" [ ] ") == [
        ": the dataset is empty; expected an array of JSON objects, with at least a prompt"
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'[{"prompt": "a"},\n {"prompt" "b"}]' + b" " * 50, "Expecting ':' delimiter at line 2, column 12"),
        (b'[{"prompt": "a"}\n\n{}]', "no comma follows at line 3, column 1; expected , or ]"),
        (b'[{"prompt": "a"},', "the file ends before the array does"),
        (b'[{"prompt": "a"}', "the file ends before the array does"),
        (b'[{"prompt": "a"}, {"prompt": "b', "the file ends before the array does: Unterminated string"),
        (b'[{"prompt": "a"}, {"prompt": nope}]', "not JSON: Expecting value at line 1, column 30"),
        (b'[{"prompt": "a"}, ]', "not JSON: Expecting value"),
        (b'[{"prompt": "a"}] {"prompt": "b"}', "more follows the array at line 1, column 19"),
        (b'[{"prompt": "a"}, "\xff"]', "not UTF-8, behind line 1, column 1"),
        (b'[{"prompt": "a"}, ' + b"[" * 200_000, "nested too deeply, at line 1, column 19"),
        (b'[{"prompt": "a"}, ' + b"9" * 5000 + b"]", "not readable: Exceeds the limit"),
    ],
    ids=range(11),
)
def test_an_array_that_cannot_be_read_further_is_refused_with_the_place(data: bytes, said: str, tmp_path: Path) -> None:
    (problem,) = refused(tmp_path / "d.json", data)
    assert problem.startswith(":row 2: " if "\\xff" not in str(data) else ":row 1: ") and said in problem


@settings(max_examples=50)
@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        )
    ),
    st.integers(1, 40),
    st.sampled_from((None, 1)),
    st.booleans(),
)
def test_an_array_in_pieces_is_what_it_is_as_a_whole(
    values: list[Any], size: int, indent: int | None, ascii_only: bool
) -> None:
    data = io.BytesIO(json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace"))
    expected = json.loads(data.getvalue())
    assert list(elements(lambda _: data.read(size))) == expected


@given(st.binary(max_size=60), st.integers(1, 9))
def test_whatever_is_no_array_is_refused(data: bytes, size: int) -> None:
    file = io.BytesIO(b"[" + data)
    try:
        found = list(elements(lambda _: file.read(size)))
    except UnreadableError as error:
        assert str(error)
    else:
        assert found == json.loads(b"[" + data)


# Cut, wrong and hostile files.


def test_a_compressed_file_that_is_cut_or_broken_is_refused_with_what_came_before(tmp_path: Path) -> None:
    rows = b"".join(b'{"prompt": %d}\n' % number for number in range(2000))
    packed = gzip.compress(rows)
    for name, data, said in (
        ("a.jsonl.gz", packed[:-9], "the compressed file ends before its end; expected all of it: copy it again"),
        ("b.jsonl.gz", packed[:-8] + b"\0" * 8, "cannot be unpacked: CRC check failed"),
        ("c.jsonl.gz", packed[:20] + b"\xff" * 50 + packed[70:], "cannot be unpacked: Error -3"),
        ("d.jsonl.gz", packed + b"rest", "cannot be unpacked: Not a gzipped file"),
    ):
        problems = refused(tmp_path / name, data)
        # The first hundred of the rows, and how many more: the last one is that of the file.
        assert said in problems[0] or (":1: prompt: is 0, a number" in problems[0] and problems[-1].startswith("and "))
    (problem,) = refused(tmp_path / "e.csv.gz", gzip.compress(b"prompt\nx\ny\n")[:-4])
    assert ": the compressed file ends before its end" in problem
    (problem,) = refused(tmp_path / "f.json.gz", gzip.compress(b'[{"prompt": "x"}]')[:-4])
    assert ":1: the compressed file ends before its end" in problem
    (problem,) = refused(tmp_path / "g.parquet.gz", gzip.compress(b"PAR1"))
    assert problem == ": Parquet is compressed by itself; expected it without gzip: use gunzip"
    (problem,) = refused(tmp_path / "h.jsonl.gz", gzip.compress(gzip.compress(b"{}")))
    assert problem == ": is compressed with gzip twice; expected text in UTF-8: use gunzip"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl.gz", lambda: b'{"prompt": "x"}\n{"prompt": "' + b"x" * LONG, f":2: the line {TOO_LONG}"),
        ("b.jsonl.gz", lambda: b'{"prompt": "' + b"x" * LONG, f":1: the line {TOO_LONG}"),
        ("c.json.gz", lambda: b'[{"prompt": "x"}, {"prompt": "' + b"x" * 2 * LONG, f":row 2: the element {TOO_LONG}"),
        ("d.csv.gz", lambda: b'prompt\nx\n"' + (b"line " * 2_000 + b"\n") * (LONG // 10_000 + 1), TOO_LONG),
    ],
    ids=("line", "first-line", "element", "row"),
)
def test_what_a_small_file_unpacks_to_is_bounded(
    name: str, data: Callable[[], bytes], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unpacked.MAX_ROW_BYTES == 64 << 20
    for module in (unpacked, json_array, readers):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", LIMIT_BYTES)
    (problem,) = refused(tmp_path / name, gzip.compress(data(), 1))
    assert said in problem


SCRIPT = """
import json, resource, sys, time
from codex_batch.dataset import Request
from codex_batch.scoring import Scorers
scorers = Scorers(["choice"])
resource_before = resource.getrusage(resource.RUSAGE_SELF)
columns = ("target={{ answer | letter }}", "tags=subject", "prompt={{ question }} {{ choices | join(' ') }}")
request = Request(source=sys.argv[1], columns=columns)
with request.open(check_sample=lambda sample, where: list(scorers.problems([sample]))) as dataset:
    samples, last = len(dataset), list(dataset)[-1]
after = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([samples, last.target, after.ru_utime - resource_before.ru_utime,
                  (after.ru_maxrss - resource_before.ru_maxrss) / 1024]))
"""


@pytest.mark.slow
def test_as_many_rows_as_mmlu_has_are_loaded_in_seconds(tmp_path: Path) -> None:
    rows = (
        {"question": f"{n} " + "word " * 60, "subject": "law", "choices": [f"{n} {c}" for c in "wxyz"], "answer": n % 4}
        for n in range(14_042)
    )
    path = written(tmp_path / "mmlu.json.gz", gzip.compress(json.dumps(list(rows)).encode(), 1))
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, timeout=50)
    samples, target, cpu_s, memory_mib = json.loads(done.stdout)
    assert (samples, target) == (14_042, "B") and cpu_s < 15 and memory_mib < 60, done.stdout
