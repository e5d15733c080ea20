"""Variants: the combinations of models and efforts, and the file of variants with all that can be wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_batch.configuration.variants import Variant, VariantsError, check_daemon, variants_of


def names(found: tuple[Variant, ...]) -> list[str]:
    return [variant.name for variant in found]


def problems(*arguments: object) -> list[str]:
    with pytest.raises(VariantsError) as caught:
        variants_of(*arguments)  # type: ignore[arg-type]
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "variants.toml"


# The command line.


@pytest.mark.parametrize("models", [[], ["a"]])
@pytest.mark.parametrize("efforts", [[], ["low"]])
def test_one_configuration_is_no_variant(models: list[str], efforts: list[str]) -> None:
    assert variants_of(models, efforts, None) == ()


def test_a_name_has_what_was_asked_for() -> None:
    assert names(variants_of(["gpt-5.1", "gpt-5"], ["low", "high"], None)) == [
        *("gpt-5.1-low", "gpt-5.1-high", "gpt-5-low", "gpt-5-high")
    ]
    # Also what does not vary: with another model added later, these keep their names.
    assert names(variants_of(["gpt-5.1"], ["low", "high"], None)) == ["gpt-5.1-low", "gpt-5.1-high"]
    assert names(variants_of(["gpt-5.1", "gpt-5"], [], None)) == ["gpt-5.1", "gpt-5"]
    assert names(variants_of([], ["low", "high"], None)) == ["low", "high"]
    with_effort = variants_of(["gpt-5.1", "gpt-5"], ["high"], None)[1]
    assert (with_effort.model, with_effort.effort) == ("gpt-5", "high")


@given(
    st.lists(st.sampled_from(["m1", "m2", "m3", "org/m4"]), unique=True),
    st.lists(st.sampled_from(["low", "medium", "high"]), unique=True),
)
def test_every_model_has_every_effort(models: list[str], efforts: list[str]) -> None:
    found = variants_of(models, efforts, None)
    if len(models) < 2 and len(efforts) < 2:
        assert found == ()
        return
    assert len(set(names(found))) == len(found)
    wanted = [(model, effort) for model in models or [None] for effort in efforts or [None]]
    assert [(variant.model, variant.effort) for variant in found] == wanted


def test_a_model_with_a_slash_has_a_plain_name() -> None:
    assert names(variants_of(["openai/gpt-oss", "qwen:7b"], [], None)) == ["openai-gpt-oss", "qwen-7b"]
    assert problems(["a/b", "a:b"], [], None) == [
        "the name a-b stands for 2 variants: a-b (a/b), a-b (a:b); give each a name of its own in a file"
    ]
    assert "its name is made of" in problems(["a" * 65, "b"], [], None)[0]


def test_models_without_a_plain_name_are_named_in_the_problem() -> None:
    with pytest.raises(
        VariantsError, match=r'variant "" \(日本\): its name is made of .*; name it in a file of variants'
    ):
        variants_of(["日本", "plain"], [], None)


def test_the_same_twice_is_refused() -> None:
    assert problems(["a", "a"], ["x", "y", "x"], None) == ["--model a: is given twice", "--effort x: is given twice"]


# The file.


def test_a_file_with_everything(file: Path) -> None:
    (file.parent / "terse").mkdir()
    (file.parent / "terse" / "AGENTS.md").write_text("Be terse.\n")
    binary = file.parent / "codex"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    file.write_text(
        """
        [defaults]
        model = "gpt-5.1"
        config.model_verbosity = "low"

        [[variant]]
        name = "plain"

        [[variant]]
        name = "terse.2"
        effort = "high"
        agents_md = "terse/AGENTS.md"
        codex_bin = "./codex"
        config = { "features.goals" = true, tools = { view_image = false }, model_verbosity = "high" }
        """
    )
    plain, terse = variants_of([], [], file)
    assert plain == Variant(name="plain", model="gpt-5.1", config={"model_verbosity": "low"})
    assert terse == Variant(
        name="terse.2",
        model="gpt-5.1",
        effort="high",
        agents_md="Be terse.\n",
        codex_bin=str(file.parent / "./codex"),
        config={"model_verbosity": "high", "features.goals": True, "tools.view_image": False},
    )
    assert terse.described() == {
        "name": "terse.2",
        "model": "gpt-5.1",
        "effort": "high",
        "config": terse.config,
        "agents_md": terse.agents_md_digest,
        "codex_bin": terse.codex_bin,
    }
    assert plain.described() == {"name": "plain", "model": "gpt-5.1", "config": {"model_verbosity": "low"}}


def test_binaries_are_found_in_the_home_and_on_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = file.parent / "home"
    home.mkdir()
    for name in ("codex-a", "codex-b"):
        (home / name).write_text("#!/bin/sh\n")
        (home / name).chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(home))
    text = '[[variant]]\nname = "a"\ncodex_bin = "~/codex-a"\n[[variant]]\nname = "b"\ncodex_bin = "codex-b"\n'
    file.write_text(text)
    assert [variant.codex_bin for variant in variants_of([], [], file)] == [
        str(home / "codex-a"),
        str(home / "codex-b"),
    ]


def test_everything_that_is_wrong_is_named_at_once(file: Path) -> None:
    (file.parent / "long.md").write_text("x" * 33_000)
    (file.parent / "latin.md").write_bytes(b"\xe4")
    (file.parent / "plain.txt").write_text("no program")
    file.write_text(
        """
        verions = 1
        [defaults]
        name = "all"
        [[variant]]
        name = "a"
        modle = "x"
        effort = 3
        verbosity = "low"
        [[variant]]
        name = "A"
        agents_md = "missing.md"
        codex_bin = "missing/codex"
        [[variant]]
        name = "no/slash"
        agents_md = "long.md"
        codex_bin = "./plain.txt"
        config = 7
        [[variant]]
        model = ""
        agents_md = "latin.md"
        config.model = "x"
        config.sandbox_mode = "read-only"
        config.permissions.x.y = 1
        config.since = 2024-01-01
        config.nan = [nan]
        """
    )
    there, at = file.parent, f"{file}: "
    assert problems([], [], file) == [
        f"{at}verions: is not known; expected some of variant, defaults",
        f"{at}defaults: name: stands in defaults; expected in each [[variant]]",
        f"{at}variant 1 (a): modle: is not known; did you mean model?",
        f"{at}variant 1 (a): effort: is 3, a number; expected a reasoning effort, such as low or high",
        f"{at}variant 1 (a): verbosity: is not known; expected some of name, model, effort, agents_md, codex_bin, "
        "config; keys of codex's configuration stand in config",
        f"{at}variant 2 (A): name: is that of variant 1 as well; expected another",
        f"{at}variant 2 (A): agents_md: {there}/missing.md cannot be read: No such file or directory; expected a "
        "text file",
        f"{at}variant 2 (A): codex_bin: codex binary not found at {there}/missing/codex; set codex_bin to an existing "
        "file",
        f"{at}variant 3: name: is \"no/slash\", a string; expected letters, digits, '.', '_' and '-', at most 64 "
        "and not '.', '_' or '-' first",
        f"{at}variant 3: agents_md: {there}/long.md has 33,000 bytes; codex reads 32,768 at most: shorten it",
        f"{at}variant 3: codex_bin: codex binary at {there}/plain.txt is not executable; chmod +x it or name another",
        f"{at}variant 3: config: is 7, a number; expected a table of keys of codex's configuration",
        f'{at}variant 4: name: is missing; expected name = "..."',
        f'{at}variant 4: model: is "", a string; expected the name of a model',
        f"{at}variant 4: agents_md: {there}/latin.md is not UTF-8; expected a text file in UTF-8",
        f"{at}variant 4: config.model: cannot be set by a variant: use model beside config",
        f"{at}variant 4: config.sandbox_mode: cannot be set by a variant: a run sets it for each thread: use "
        "--sandbox, or sandbox of a sample",
        f"{at}variant 4: config.permissions.x.y: cannot be set by a variant: a run sets it for each thread",
        f'{at}variant 4: config.since: is "2024-01-01", of type date; expected a string, a finite number, a boolean, '
        "list or table",
        f"{at}variant 4: config.nan: is NaN, a number; expected a string, a finite number, a boolean, list or table",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no variant; expected [[variant]], each with name = ..."),
        ("variant = []", "variant: is an empty list; expected [[variant]], each with name = ..."),
        ('[variant]\nname = "a"', "variant: expected a list of tables: [[variant]], each with name = ..."),
        ("[variants.a]", "variants: is not known; did you mean variant?; write [[variant]] with name = ..."),
        ("[[variant", "not TOML: "),
        ("defaults = 1\n[[variant]]\nname='a'", "defaults: is 1, a number; expected a table: [defaults]"),
        (
            "[[variant]]\nname='a'\nmodel='m'\n[[variant]]\nname='b'\nmodel='m'",
            "variants a and b have the same configuration; for repetitions use --epochs",
        ),
    ],
)
def test_a_file_that_is_not_one_of_variants(file: Path, text: str, problem: str) -> None:
    file.write_text(text)
    (found,) = problems([], [], file)
    assert found.startswith(f"{file}: {problem}")


def test_a_file_that_cannot_be_read(file: Path) -> None:
    assert problems([], [], file) == [
        f"{file}: cannot be read: No such file or directory; expected a file of variants (TOML)"
    ]
    file.write_bytes(b"\xff\xfe")
    assert problems([], [], file) == [f"{file}: not UTF-8; expected a file of variants (TOML)"]


def test_models_are_combined_with_a_file_that_leaves_them_open(file: Path) -> None:
    file.write_text("[[variant]]\nname='short'\nconfig.model_verbosity='low'\n[[variant]]\nname='long'\neffort='high'")
    assert names(variants_of(["a", "b"], [], file)) == ["short-a", "short-b", "long-a", "long-b"]
    one = variants_of(["a"], [], file)
    assert names(one) == ["short-a", "long-a"] and {variant.model for variant in one} == {"a"}
    assert problems([], ["low"], file) == [
        f"--effort: {file} sets effort of long; leave out --effort, or effort in the file, so that each variant has one"
    ]


def test_one_variant_of_a_file_is_one(file: Path) -> None:
    file.write_text("[[variant]]\nname='only'\n")
    assert variants_of([], [], file) == (Variant(name="only"),)


def test_described_has_no_secrets() -> None:
    shown = Variant(
        name="a",
        config={
            "mcp_servers.docs.env.API": "v1",
            "mcp_servers.docs.env.B": "v2",
            "mcp_servers.docs.command": "docs",
            "model_providers.x.experimental_bearer_token": "sk-0123456789abcdef01",
        },
    ).described()
    assert shown["config"] == {"mcp_servers.docs.env": ["API", "B"], "mcp_servers.docs.command": "docs"}


def test_a_daemon_has_its_own_binary() -> None:
    check_daemon([Variant(name="a"), Variant(name="b", model="m")])
    with pytest.raises(VariantsError) as caught:
        check_daemon([Variant(name="a"), Variant(name="b", codex_bin="/x"), Variant(name="c", codex_bin="/y")])
    first, second = caught.value.problems
    assert first.startswith("codex_bin of variant b: cannot go with --connect") and "variant c" in second
