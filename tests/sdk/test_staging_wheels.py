"""The packages built from what was staged: one wheel a platform, no sdist, and a turn on the two of them alone."""

from __future__ import annotations

import email
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from maintainer import SCRIPT, TAGS, files, program, staged
from packaging.tags import platform_tags

from codex_app_server import __version__ as VERSION

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]
Built = tuple[Message, Message, dict[str, zipfile.ZipInfo]]


@pytest.fixture(scope="module")
def yard() -> Iterator[Path]:
    """A directory for what is large: nothing of it is left when the tests are over."""
    with tempfile.TemporaryDirectory(prefix="codex-staging-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def builder(yard: Path) -> Path:
    """A Python that has the build backend: one for all, where pip would make one for each build."""
    python = new_venv(yard / "builder")
    pip(python, "install", "hatchling>=1.25")
    return python


def new_venv(path: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(path)], check=True, timeout=60)
    return path / "bin" / "python"


def pip(python: Path, *arguments: str | Path) -> None:
    """The pip of this Python, working for another."""
    ours = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
    done = subprocess.run([*ours, *map(str, arguments)], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr


def hatchling(builder: Path, target: str, directory: Path) -> subprocess.CompletedProcess[str]:
    # Not compressed: at the usual level the real binary takes twenty seconds and proves no more.
    build = (
        "import sys, zlib; zlib.Z_DEFAULT_COMPRESSION = 0; from hatchling.cli import hatchling; sys.exit(hatchling())"
    )
    command = [str(builder), "-c", build, "build", "-t", target]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=100, check=False)


def built(builder: Path, directory: Path) -> Path:
    """The wheel of a staged directory."""
    done = hatchling(builder, "wheel", directory)
    assert done.returncode == 0, done.stderr
    (wheel,) = (directory / "dist").iterdir()
    return wheel


def opened(wheel: Path) -> Built:
    """METADATA, WHEEL, and the entries by name."""
    with zipfile.ZipFile(wheel) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        (info,) = {name.partition("/")[0] for name in entries if ".dist-info/" in name}
        metadata, tags = (email.message_from_bytes(archive.read(f"{info}/{name}")) for name in ("METADATA", "WHEEL"))
    return metadata, tags, entries


def test_each_platform_has_a_wheel_of_its_own_and_none_has_an_sdist(builder: Path, tmp_path: Path) -> None:
    # As when one stages inside a repository that ignores build output.
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("bin/\nsrc/\n")
    # A musl build for this machine is run, so that one has to answer.
    ours = program(tmp_path / "given" / "codex", f"#!/bin/sh\necho codex-cli {VERSION}\n")
    foreign = program(tmp_path / "given" / "foreign", "not for this host")
    for tag in sorted(TAGS):
        binary = ours if tag == f"musllinux_1_1_{platform.machine()}" else foreign
        directory = tmp_path / tag
        staged("stage-runtime", directory, binary, "--codex-version", VERSION, "--platform-tag", tag)
        wheel = built(builder, directory)
        assert wheel.name == f"openai_codex_cli_bin-{VERSION}-py3-none-{tag}.whl"
        metadata, tags, entries = opened(wheel)
        assert (metadata["Name"], metadata["Version"]) == ("openai-codex-cli-bin", VERSION)
        assert (metadata["Requires-Python"], metadata.get_all("Requires-Dist")) == (">=3.10", None)
        assert (tags.get_all("Tag"), tags["Root-Is-Purelib"]) == ([f"py3-none-{tag}"], "false")
        name = "codex_cli_bin/bin/codex.exe" if tag.startswith("win") else "codex_cli_bin/bin/codex"
        assert {n for n in entries if n.startswith("codex_cli_bin/bin/")} == {name}
        assert entries[name].external_attr >> 16 & 0o111 == 0o111

    done = hatchling(builder, "sdist", directory)
    assert done.returncode != 0
    assert "target 'sdist' was asked for, expected 'wheel': this package is published as wheels only" in done.stderr
    assert [path.suffix for path in (directory / "dist").iterdir()] == [".whl"]


def test_the_template_itself_is_not_built(builder: Path, tmp_path: Path) -> None:
    shutil.copytree(SCRIPT.parent / "runtime_template", tmp_path / "template")
    done = hatchling(builder, "wheel", tmp_path / "template")
    assert done.returncode != 0
    assert "codex-package.json is missing, expected a staged runtime: make one with stage-runtime" in done.stderr


@pytest.fixture(scope="module")
def wheels(yard: Path, builder: Path) -> tuple[Path, Path]:
    """SDK and runtime, made from the codex of the installed runtime."""
    import codex_cli_bin

    installed = Path(codex_cli_bin.__file__).parent
    tools = ("codex-path/rg", "codex-resources/bwrap")
    extra = [word for tool in tools for word in ("--resource-binary", installed / tool)]
    codex = codex_cli_bin.bundled_codex_path()
    staged("stage-sdk", yard / "sdk", "--codex-version", f"rust-v{VERSION}")
    staged("stage-runtime", yard / "runtime", codex, "--codex-version", f"rust-v{VERSION}", *extra)
    ours = yard / "runtime" / "src" / "codex_cli_bin"
    assert files(ours) == {name for name in files(installed) if not name.endswith(("-host", ".pyc"))}
    assert json.loads((ours / "codex-package.json").read_text()) == json.loads(
        (installed / "codex-package.json").read_text()
    )
    return built(builder, yard / "sdk"), built(builder, yard / "runtime")


def test_the_sdk_wheel_requires_exactly_its_runtime(wheels: tuple[Path, Path]) -> None:
    assert wheels[0].name == f"openai_codex_app_server_sdk-{VERSION}-py3-none-any.whl"
    metadata, tags, entries = opened(wheels[0])
    assert (metadata["Name"], metadata["Version"]) == ("openai-codex-app-server-sdk", VERSION)
    assert f"openai-codex-cli-bin=={VERSION}" in metadata.get_all("Requires-Dist")
    assert tags.get_all("Tag") == ["py3-none-any"]
    assert "codex_app_server/py.typed" in entries
    assert {name.partition("/")[0] for name in entries if ".dist-info" not in name} == {"codex_app_server"}


def test_without_a_tag_the_wheel_is_for_this_host(wheels: tuple[Path, Path]) -> None:
    tag = wheels[1].stem.rpartition("-")[2]
    assert tag in set(platform_tags()) and not tag.startswith("linux_")


TURN = """
import importlib.metadata, importlib.util, json, sys
import codex_cli_bin
from codex_app_server import AppServerConfig, Codex, __version__

work, prompt = sys.argv[1:]
with Codex(AppServerConfig(cwd=work, config_overrides=("features.shell_snapshot=false",))) as codex:
    answer = codex.thread_start(sandbox="read-only", approval_policy="never").run(prompt).final_response
print(json.dumps({
    "answer": answer,
    "version": __version__,
    "pool": importlib.util.find_spec("codex_pool") is not None,
    "tools": str(codex_cli_bin.bundled_path_dir()),
    "runtime": importlib.metadata.distribution("openai-codex-cli-bin").read_text("direct_url.json"),
}))
"""


def test_installed_by_themselves_they_run_a_turn_with_a_sandboxed_command(
    wheels: tuple[Path, Path], yard: Path, home: Path, work: Path
) -> None:
    python = new_venv(yard / "user")
    pip(python, "install", "--no-compile", *wheels)
    pip(python, "check")
    # Neither ripgrep nor bubblewrap but those that were staged.
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "CODEX_HOME": str(home), "RUST_LOG": "error"}
    prompt = '[[tool_call "command -v rg && rg --version"]] [[text "It said: {output}"]]'
    done = subprocess.run(
        [str(python), "-I", "-c", TURN, str(work), prompt],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert Path(result["tools"]).is_relative_to(yard / "user")
    assert f"{result['tools']}/rg" in result["answer"] and "ripgrep " in result["answer"]
    assert (result["version"], result["pool"]) == (VERSION, False)
    assert wheels[1].as_uri() == json.loads(result["runtime"])["url"]
