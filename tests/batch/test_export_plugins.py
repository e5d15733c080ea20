"""Formats of an export by name: those of plug-ins, and directories."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from plugin_distributions import write_distribution
from runs import make_run

from codex_batch.dataset import Sample
from codex_batch.export import FORMATS, ExportError, Format, export
from codex_batch.store import open_run
from codex_pool_cli.verbs import verbs

GROUP = "codex_pool.exporters"
MODULE = """
def ids(run, file):
    for record in run.records():
        events = sum(1 for _ in run.events(record))
        file.write(f"{record['id']} {events} {run.path.name} {run.variant} {run.info['state']}\\n".encode())

def half(run, file):
    file.write(b"half")
    raise RuntimeError("no more")

def leaves(run, file):
    raise SystemExit(3)
"""
EVENTS = [{"method": "turn/started", "params": {}}]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", [(Sample("a", ("p",)), "yes"), (Sample("b", ("p",)), "no")], events={"a": EVENTS})


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    points = {
        "ids": "exporting:ids",
        "half": "exporting:half",
        "leaves": "exporting:leaves",
        "gone": "not_there:write",
        "value": "exporting:GROUPS_OF_NOTHING",
        "csv": "exporting:ids",
    }
    site = write_distribution(tmp_path / "site", "more-formats", {GROUP: points}, {"exporting": MODULE})
    monkeypatch.syspath_prepend(str(site))
    return site


def test_a_plug_in_writes_a_run_by_its_name(run: Path, installed: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(verbs, ["runs", "export", str(run), "--format", "ids"])
    assert shown.output == "a 1 run None finished\nb 0 run None finished\n", shown.output
    path = tmp_path / "out.txt"
    assert CliRunner().invoke(verbs, ["runs", "export", str(run), "--format", "ids", "-o", str(path)]).exit_code == 0
    assert path.read_text() == shown.output


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("half", "in more-formats 1.0 failed: RuntimeError: no more; ask its authors"),
        ("leaves", "in more-formats 1.0 failed: SystemExit: 3; ask its authors"),
        ("gone", "in more-formats 1.0 cannot be imported from not_there:write: ModuleNotFoundError"),
        ("value", "in more-formats 1.0 cannot be imported from exporting:GROUPS_OF_NOTHING: AttributeError"),
        ("other", "no format 'other'; expected one of jsonl, csv, parquet, inspect"),
    ],
)
def test_a_plug_in_that_fails_is_named_and_the_file_stays(
    run: Path, installed: Path, tmp_path: Path, name: str, words: str
) -> None:
    path = tmp_path / "out.txt"
    path.write_text("before")
    done = CliRunner().invoke(verbs, ["runs", "export", str(run), "--format", name, "-o", str(path)])
    assert done.exit_code == 2 and words in done.output, done.output
    assert path.read_text() == "before"


def test_a_plug_in_takes_no_built_in_name(run: Path, installed: Path, tmp_path: Path) -> None:
    with open_run(run) as store:
        export(store, tmp_path / "x.csv", "csv")
    assert (tmp_path / "x.csv").read_text().startswith("id,epoch,")


def test_a_directory_is_written_whole_or_not_at_all(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(store: object, directory: Path, variant: str | None) -> None:
        (directory / "one").write_text("1")
        if failing:
            raise ExportError("no")

    failing = True
    monkeypatch.setitem(FORMATS, "folder", Format("folder", write_directory=write))
    path = tmp_path / "out"
    with open_run(run) as store:
        with pytest.raises(ExportError, match=r"^no$"):
            export(store, path, "folder")
        assert not path.exists()
        failing = False
        assert export(store, path, "folder") == [path]
        assert [file.name for file in path.iterdir()] == ["one"]
        with pytest.raises(ExportError, match="is no empty directory; name another one for folder"):
            export(store, path, "folder")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "run"]
    done = CliRunner().invoke(verbs, ["runs", "export", str(run), "--format", "folder"])
    assert done.exit_code == 2 and "folder is not for stdout; name a file with -o" in done.output


def test_help_names_all_formats_that_are_built_in() -> None:
    shown = " ".join(CliRunner().invoke(verbs, ["runs", "export", "--help"]).output.split())
    assert all(name in shown for name in FORMATS)
