"""Options of the thread of a sample: how AGENTS.md of a directory, and that of a variant, reach its agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from codex_batch.configuration.defaults import Defaults
from codex_batch.configuration.variants import Variant
from codex_batch.dataset import Sample
from codex_batch.run.thread_options import CODEX, DEVELOPER_INSTRUCTIONS, ThreadOptions
from codex_batch.scoring import Scorers
from codex_batch.workspace import LinkTargets
from codex_pool.configuration import UNKNOWN

VARIANTS = (
    Variant(name="own"),
    Variant(name="terse", agents_md="Be terse."),
    Variant(name="none", agents_md="\n"),
    Variant(name="told", agents_md="Be kind.", config={"developer_instructions": "Of the variant.", "tools.x": 1}),
)


def project_of(
    tmp_path: Path, variant: str, *, trusting: bool = False, workspace: bool = False, cwd: bool = False
) -> tuple[dict[str, Any], str | None]:
    """The options of a sample; its directory has an AGENTS.md if it is a workspace or a cwd."""
    directory = tmp_path / "directory"
    directory.mkdir()
    if workspace or cwd:
        (directory / "AGENTS.md").write_text("Of the directory.")
    options = ThreadOptions(
        tmp_path / "run",
        shared={},
        defaults=Defaults(variants=VARIANTS),
        configuration=msgspec.structs.replace(UNKNOWN, developer_instructions="Of the configuration."),
        scorers=Scorers(()),
        guarded=False,
        trusting=trusting,
        private=(),
        linked=(),
        targets=LinkTargets(),
    )
    spec = {"files": {"AGENTS.md": "x"}} if workspace else None
    sample = Sample("a", ("p",), workspace=spec, cwd=str(directory) if cwd else None, variant=variant)
    made, _ = options.of(sample, None, str(directory))
    return options.with_project(sample, made)


def given(options: dict[str, Any]) -> list[str]:
    """The instructions, without the words around AGENTS.md."""
    text = options.get("developer_instructions", "")
    return [line for line in text.splitlines() if line and not line.startswith(("#", "<"))]


@pytest.mark.parametrize("cwd", [False, True])
def test_without_a_workspace_the_text_of_the_variant_is_given(tmp_path: Path, cwd: bool) -> None:
    options, how = project_of(tmp_path, "terse", cwd=cwd)
    assert how == DEVELOPER_INSTRUCTIONS and given(options) == ["Of the configuration.", "Be terse."]
    assert options["developer_instructions"].count(f"# AGENTS.md instructions for {tmp_path}/directory") == 1
    assert options["config"]["project_doc_max_bytes"] == 0 and options["config"]["projects"]


def test_an_empty_text_takes_the_place_of_that_of_the_directory(tmp_path: Path) -> None:
    options, how = project_of(tmp_path, "none", cwd=True)
    assert how is None and "developer_instructions" not in options


def test_a_variant_without_one_leaves_that_of_the_directory(tmp_path: Path) -> None:
    options, how = project_of(tmp_path, "own", cwd=True)
    assert how == DEVELOPER_INSTRUCTIONS and given(options) == ["Of the configuration.", "Of the directory."]


def test_a_workspace_has_it_already(tmp_path: Path) -> None:
    options, how = project_of(tmp_path, "terse", workspace=True)
    assert how == DEVELOPER_INSTRUCTIONS and given(options) == ["Of the configuration.", "Of the directory."]


def test_instructions_of_the_variant_stand_before_its_agents_md(tmp_path: Path) -> None:
    options, how = project_of(tmp_path, "told")
    assert how == DEVELOPER_INSTRUCTIONS and given(options) == ["Of the variant.", "Be kind."]
    assert options["config"]["tools.x"] == 1


def test_codex_reads_those_of_directories_that_it_trusts(tmp_path: Path) -> None:
    for name in ("w", "c", "t"):
        (tmp_path / name).mkdir()
    options, how = project_of(tmp_path / "w", "terse", trusting=True, workspace=True)
    assert how == CODEX and not given(options) and "project_doc_max_bytes" not in options.get("config", {})
    assert project_of(tmp_path / "c", "own", trusting=True, cwd=True)[1] == CODEX
    # One beside that of the variant would be a second one.
    options, how = project_of(tmp_path / "t", "terse", trusting=True, cwd=True)
    assert how == DEVELOPER_INSTRUCTIONS and given(options) == ["Of the configuration.", "Be terse."]
    assert options["config"]["project_doc_max_bytes"] == 0 and "projects" not in options["config"]
