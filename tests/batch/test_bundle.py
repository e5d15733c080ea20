"""Files that samples need on another machine: named by their content, sent once, laid out as they were."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from codex_batch.dataset import Sample
from codex_batch.hosts.bundle import MARK, Bundle, Laid
from codex_batch.scoring import Scorers


def send(bundle: Bundle, laid: Laid, *trees: str) -> int:
    """Send trees as a run does; return how many files went."""
    count = 0
    for tree in trees:
        manifest = bundle.manifest(tree)
        missing = laid.missing(manifest)
        laid.put({digest: bundle.blob(digest) for digest in missing})
        laid.lay(manifest)
        count += len(missing)
    return count


def test_a_template_arrives_as_it_is_whatever_its_place(tmp_path: Path) -> None:
    template = tmp_path / "here" / "template"
    (template / "empty").mkdir(parents=True)
    (template / "run").write_text("#!/bin/sh\n")
    (template / "run").chmod(0o755)
    (template / "link").symlink_to("run")
    sample = Sample("1", ("go",), workspace={"template": str(template), "setup": "make"}, directory=str(tmp_path))
    bundle, laid = Bundle(), Laid(tmp_path / "there")
    found, trees = bundle.sample(sample, Scorers())
    assert str(tmp_path) not in json.dumps(found) and found["workspace"]["setup"] == "make"
    assert send(bundle, laid, *trees) == 1
    there = Path(laid.resolved(found)["workspace"]["template"])
    assert there.name == "template" and os.access(there / "run", os.X_OK) and (there / "empty").is_dir()
    assert os.readlink(there / "link") == "run" and laid.trees == trees
    # The same content from another place is the same tree, and nothing is sent again.
    shutil.copytree(template, tmp_path / "copy" / "template", symlinks=True)
    again = Bundle()
    moved = Sample("2", ("go",), workspace={"template": str(tmp_path / "copy" / "template")})
    assert again.sample(moved, Scorers())[1] == trees and send(again, laid, *trees) == 0


def test_scorers_take_their_files_and_modules_along_and_nothing_beside_them(tmp_path: Path) -> None:
    (tmp_path / "grade.py").write_text("def grade(sample):\n    return 1.0\n")
    (tmp_path / "private.txt").write_text("not sent")
    (tmp_path / "expected.txt").write_text("42")
    specs = [
        {"type": "python", "function": "grade:grade", "path": str(tmp_path)},
        {"type": "command", "command": "true", "files": {"e": str(tmp_path / "expected.txt")}},
    ]
    bundle, laid = Bundle(), Laid(tmp_path / "there")
    found, trees = bundle.scorers(Scorers([json.dumps(spec) for spec in specs]).run)
    send(bundle, laid, *trees)
    resolved = laid.resolved(found)
    assert [each.name for each in Path(resolved[0]["path"]).iterdir()] == ["grade.py"]
    assert Path(resolved[1]["files"]["e"]).read_text() == "42"
    # What the host makes of them scores as here.
    assert [scorer.name for scorer in Scorers(resolved).run] == ["python", "command"]


def test_a_prompt_is_never_taken_for_a_path() -> None:
    found, trees = Bundle().sample(Sample("1", (f"{MARK}x",)), Scorers())
    assert trees == () and found["prompts"] == [f"{MARK}x"]


def test_a_file_that_was_changed_since_it_was_read_is_refused(tmp_path: Path) -> None:
    template = tmp_path / "t"
    template.mkdir()
    (template / "f").write_text("one")
    bundle, laid = Bundle(), Laid(tmp_path / "there")
    _, (tree,) = bundle.sample(Sample("1", ("go",), workspace={"template": str(template)}), Scorers())
    (template / "f").write_text("two")
    (digest,) = laid.missing(bundle.manifest(tree))
    with pytest.raises(OSError, match="was changed while the run goes on"):
        bundle.blob(digest)
    with pytest.raises(OSError, match="another content"):
        laid.put({digest: b"two"})


@pytest.mark.parametrize("path", ["../outside", "/absolute", "a/../../b"])
def test_a_manifest_reaches_nothing_outside_of_its_tree(tmp_path: Path, path: str) -> None:
    laid = Laid(tmp_path)
    with pytest.raises(OSError, match="no path within a tree"):
        laid.lay(json.dumps([{"path": path, "link": "x"}]).encode())
