"""Staging of the release packages: what is made, where, and what is refused."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from maintainer import SCRIPT, TAGS, files, program, refused, stage, staged
from packaging.version import Version as PackageVersion

from codex_app_server import __version__ as VERSION

ROOT = SCRIPT.parent.parent
SDK = ROOT / "src" / "codex_app_server"


@pytest.fixture(scope="module")
def staging() -> Iterator[ModuleType]:
    """The module behind the subcommands."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import _staging

        yield _staging
    finally:
        sys.path.remove(str(SCRIPT.parent))


@pytest.fixture
def codex(tmp_path: Path) -> Path:
    """A small program that answers --version as codex does."""
    return program(tmp_path / "given" / "codex", f"#!/bin/sh\necho codex-cli {VERSION}\n")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A small file that no host can run."""
    return program(tmp_path / "given" / "foreign", "not for this host")


# --- versions


@pytest.mark.parametrize(
    ("text", "package", "release"),
    [
        ("rust-v0.163.0", "0.163.0", "0.163.0"),
        ("v0.163.0", "0.163.0", "0.163.0"),
        ("0.163.0", "0.163.0", "0.163.0"),
        ("rust-v0.163.0-alpha.1", "0.163.0a1", "0.163.0-alpha.1"),
        ("0.163.0-alpha.12", "0.163.0a12", "0.163.0-alpha.12"),
        ("0.163.0a1", "0.163.0a1", "0.163.0-alpha.1"),
        ("v1.0.0-beta.2", "1.0.0b2", "1.0.0-beta.2"),
        ("1.0.0b2", "1.0.0b2", "1.0.0-beta.2"),
        ("1.0.0-rc.3", "1.0.0rc3", "1.0.0-rc.3"),
        ("1.0.0rc3", "1.0.0rc3", "1.0.0-rc.3"),
    ],
)
def test_a_version_is_read_in_either_spelling(staging: ModuleType, text: str, package: str, release: str) -> None:
    assert staging.parse_version(text) == (package, release)
    assert str(PackageVersion(release)) == package


@pytest.mark.parametrize(
    "text",
    [
        *("", "latest", "0.163", "0.163.0.1", "rust-0.163.0", "rust-v", "0.163.0-alpha", "0.163.0-alpha.01", "00.1.0"),
        *("0.163.0+local", "0.163.0 ", "0.163.0\n", "0.163.0-gamma.1", "0.163.0-a1", "0.163.0alpha.1", "0.1\u0660.0"),
    ],
)
def test_what_is_no_codex_version_is_refused(staging: ModuleType, text: str) -> None:
    with pytest.raises(staging.StagingError) as caught:
        staging.parse_version(text)
    assert repr(text) in str(caught.value) and "rust-v0.163.0" in str(caught.value)


# --- the SDK


def test_the_staged_sdk_is_codex_app_server_alone(
    staging: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = shutil.copytree(SDK, tmp_path / "used" / SDK.name)
    program(used / "generated" / "__pycache__" / "routing.pyc", "")
    monkeypatch.setattr(staging, "SDK", used)
    staging.stage_sdk(tmp_path / "sdk", f"rust-v{VERSION}")
    sources = {f"src/codex_app_server/{name}" for name in files(SDK) if "__pycache__" not in name}
    assert "src/codex_app_server/py.typed" in sources
    assert files(tmp_path / "sdk") == {"pyproject.toml", "README.md", "LICENSE", *sources}
    for name in sources:
        assert (tmp_path / "sdk" / name).read_bytes() == (ROOT / name).read_bytes()

    made, ours = (staging.tomllib.loads((at / "pyproject.toml").read_text()) for at in (tmp_path / "sdk", ROOT))
    project = made["project"]
    assert (project["name"], project["version"]) == ("openai-codex-app-server-sdk", VERSION)
    shared = [line for line in ours["project"]["dependencies"] if line.startswith(("pydantic", "msgspec"))]
    assert len(shared) == 2
    assert project["dependencies"] == [f"openai-codex-cli-bin=={VERSION}", *shared]
    assert project["requires-python"] == ours["project"]["requires-python"] == ">=3.10"
    assert made["build-system"] == ours["build-system"]
    readme = " ".join((tmp_path / "sdk" / "README.md").read_text().replace("*", "").split())
    assert "Do not install it beside `codex-pool`" in readme


def test_the_sdk_imports_only_what_it_requires(staging: ModuleType) -> None:
    imported = set()
    for path in SDK.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
                imported.add(node.module.partition(".")[0])
    by_pydantic = {"pydantic_core", "typing_extensions"}
    # The fixtures are for those who have pytest.
    others = imported - sys.stdlib_module_names - by_pydantic - {"codex_app_server", "codex_cli_bin", "pytest"}
    assert others == set(staging.SDK_DEPENDENCIES)


def test_another_version_than_that_of_the_generated_types_is_refused(tmp_path: Path) -> None:
    why = refused("stage-sdk", tmp_path / "sdk", "--codex-version", "rust-v0.1.0-alpha.1")
    assert f"rust-v0.1.0-alpha.1: the generated types are those of {VERSION}; run generate-types" in why
    assert not (tmp_path / "sdk").exists()


def test_staging_again_replaces_all_that_was_staged(tmp_path: Path) -> None:
    staged("stage-sdk", tmp_path / "sdk", "--codex-version", VERSION)
    before = files(tmp_path / "sdk")
    program(tmp_path / "sdk" / "src" / "codex_app_server" / "gone.py", "")
    program(tmp_path / "sdk" / "dist" / "old.whl", "")
    (tmp_path / "sdk" / "link").symlink_to(tmp_path)
    staged("stage-sdk", tmp_path / "sdk", "--codex-version", VERSION)
    assert files(tmp_path / "sdk") == before
    assert not (tmp_path / "sdk" / "dist").exists() and tmp_path.is_dir()


def test_how_to_build_is_said_with_a_path_that_pip_cannot_take_for_a_name(tmp_path: Path) -> None:
    done = stage("stage-sdk", "sdk", "--codex-version", VERSION, cwd=tmp_path)
    assert done.stdout.endswith(f"python -m pip wheel --no-deps --wheel-dir dist {tmp_path / 'sdk'}\n")


# --- where to


@pytest.mark.parametrize("command", ["stage-sdk", "stage-runtime"])
def test_a_directory_that_is_not_ours_is_left_alone(command: str, tmp_path: Path, codex: Path) -> None:
    rest = [*([codex] if command == "stage-runtime" else []), "--codex-version", VERSION]
    other = "stage-runtime" if command == "stage-sdk" else "stage-sdk"
    for name, text in (
        ("notes.txt", "mine"),
        ("pyproject.toml", "[project]\nname = 'mine'\n"),
        ("pyproject.toml", f"# Staged by scripts/update_sdk_artifacts.py {other}; do not edit.\n"),
    ):
        directory = tmp_path / "taken"
        directory.mkdir()
        (directory / name).write_text(text)
        why = refused(command, directory, *rest)
        assert f"{directory} is not empty and was not staged by {command}" in why and "name another" in why
        assert files(directory) == {name} and (directory / name).read_text() == text
        shutil.rmtree(directory)
    (tmp_path / "taken").write_text("a file")
    assert "is a file, expected a directory" in refused(command, tmp_path / "taken", *rest)
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_binary_inside_the_directory_is_not_deleted(tmp_path: Path, codex: Path) -> None:
    runtime = tmp_path / "runtime"
    staged("stage-runtime", runtime, codex, "--codex-version", VERSION)
    inside = runtime / "src" / "codex_cli_bin" / "bin" / "codex"
    why = refused("stage-runtime", runtime, inside, "--codex-version", VERSION)
    assert f"{inside} is inside {runtime}" in why
    assert inside.read_bytes() == codex.read_bytes()


# --- the runtime


def test_the_binary_and_its_tools_go_where_codex_looks_for_them(tmp_path: Path, codex: Path) -> None:
    names = ("rg", "bwrap", "codex-code-mode-host")
    tools = [program(tmp_path / "given" / name, name) for name in names]
    extra = [word for tool in tools for word in ("--resource-binary", tool)]
    staged("stage-runtime", tmp_path / "runtime", codex, "--codex-version", f"rust-v{VERSION}", *extra)
    package = tmp_path / "runtime" / "src" / "codex_cli_bin"
    programs = {"bin/codex", "bin/codex-code-mode-host", "codex-path/rg", "codex-resources/bwrap"}
    assert files(package) == {"__init__.py", "codex-package.json", *programs}
    assert all(os.access(package / name, os.X_OK) for name in programs)
    assert (package / "codex-path" / "rg").read_text() == "rg"


def test_a_windows_runtime_has_windows_names_and_needs_no_executable_bit(tmp_path: Path) -> None:
    names = (
        "codex-x86_64-pc-windows-msvc.exe",
        "rg.exe",
        "codex-command-runner.exe",
        "codex-windows-sandbox-setup.exe",
    )
    binary, *tools = (program(tmp_path / "given" / name, name) for name in names)
    binary.chmod(0o644)
    extra = [word for tool in tools for word in ("--resource-binary", tool)]
    said = staged(
        "stage-runtime", tmp_path / "runtime", binary, "--codex-version", VERSION, "--platform-tag", "win_amd64", *extra
    )
    assert said == (
        f"note: the version of {binary} was not checked: it is for x86_64-pc-windows-msvc and cannot be run here\n"
    )
    package = tmp_path / "runtime" / "src" / "codex_cli_bin"
    helpers = {"codex-resources/codex-command-runner.exe", "codex-resources/codex-windows-sandbox-setup.exe"}
    assert files(package) == {"__init__.py", "codex-package.json", "bin/codex.exe", "codex-path/rg.exe", *helpers}
    assert json.loads((package / "codex-package.json").read_text())["entrypoint"] == "bin/codex.exe"


def test_the_runtime_says_where_its_binary_and_its_tools_are(tmp_path: Path, codex: Path) -> None:
    staged("stage-runtime", tmp_path / "runtime", codex, "--codex-version", VERSION)
    package = tmp_path / "runtime" / "src" / "codex_cli_bin"
    spec = importlib.util.spec_from_file_location("staged_runtime", package / "__init__.py")
    assert spec is not None and spec.loader is not None
    runtime = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runtime)
    assert runtime.bundled_codex_path() == package / "bin" / "codex"
    assert runtime.bundled_path_dir() is None
    (package / "codex-path").mkdir()
    assert runtime.bundled_path_dir() == package / "codex-path"
    (package / "bin" / "codex").unlink()
    with pytest.raises(FileNotFoundError, match=r"no codex binary at .*/bin/codex; reinstall openai-codex-cli-bin"):
        runtime.bundled_codex_path()


def test_an_unknown_tag_is_refused_with_the_six_that_are_known(tmp_path: Path, codex: Path) -> None:
    why = refused("stage-runtime", tmp_path / "r", codex, "--codex-version", VERSION, "--platform-tag", "any")
    assert "platform tag 'any' is unknown" in why and all(tag in why for tag in TAGS)
    assert not (tmp_path / "r").exists()


def test_the_known_tags_are_the_six(staging: ModuleType) -> None:
    assert set(staging.PLATFORMS) == TAGS
    assert len(set(staging.PLATFORMS.values())) == 6


def test_a_host_without_a_codex_has_to_name_the_tag(
    staging: ModuleType, tmp_path: Path, codex: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(staging.StagingError, match=r"no codex for this host, linux riscv64; .* --platform-tag"):
        staging.stage_runtime(tmp_path / "r", codex, VERSION)
    assert not (tmp_path / "r").exists()


def test_a_binary_that_is_no_program_is_refused(tmp_path: Path, codex: Path) -> None:
    def why(binary: Path, *more: str | Path) -> str:
        return refused("stage-runtime", tmp_path / "r", binary, "--codex-version", VERSION, *more)

    plain = program(tmp_path / "given" / "plain", "")
    plain.chmod(0o644)
    assert f"{tmp_path / 'none'} is missing, expected an executable file" in why(tmp_path / "none")
    assert f"{tmp_path} is a directory, expected an executable file" in why(tmp_path)
    assert f"{plain} is not executable" in why(plain) and "chmod +x" in why(plain)
    assert f"{plain} is not executable" in why(codex, "--resource-binary", plain)
    assert f"{tmp_path / 'none'} is missing" in why(codex, "--resource-binary", tmp_path / "none")
    assert f"{codex} and {codex} would both become bin/codex" in why(codex, "--resource-binary", codex)
    assert not (tmp_path / "r").exists()


def test_a_binary_of_another_version_is_refused_whatever_its_tag(tmp_path: Path) -> None:
    old = program(tmp_path / "given" / "codex", "#!/bin/sh\necho codex-cli 0.1.0-alpha.2\n")
    for more in ((), ("--platform-tag", "win_arm64")):
        why = refused("stage-runtime", tmp_path / "r", old, "--codex-version", VERSION, *more)
        assert f"{old} says its version is 0.1.0-alpha.2, expected {VERSION}; " in why
    assert not (tmp_path / "r").exists()
    staged("stage-runtime", tmp_path / "r", old, "--codex-version", "0.1.0a2")


def test_a_binary_for_this_host_has_to_run_here(tmp_path: Path, foreign: Path) -> None:
    why = refused("stage-runtime", tmp_path / "r", foreign, "--codex-version", VERSION)
    assert f"{foreign} cannot be run on this host" in why and "--platform-tag" in why
    silent = program(tmp_path / "given" / "silent", "#!/bin/sh\nexit 3\n")
    assert "cannot be run on this host" in refused("stage-runtime", tmp_path / "r", silent, "--codex-version", VERSION)
    assert not (tmp_path / "r").exists()


def test_a_relative_binary_is_not_looked_for_on_path(tmp_path: Path, codex: Path) -> None:
    done = stage("stage-runtime", tmp_path / "r", codex.name, "--codex-version", VERSION, cwd=codex.parent)
    assert done.returncode == 0, done.stderr
