"""Stages the two packages of a release: the SDK by itself, and the codex runtime of one platform.

A staged directory is a source package that any PEP 517 front end builds. Standard library only (tomli on 3.10), so that
a release runner needs this repository and Python, and not the runtime that it is about to publish.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from _schema import SchemaError, binary_version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
SDK_TEMPLATE = ROOT / "scripts" / "sdk_template"
RUNTIME_TEMPLATE = ROOT / "scripts" / "runtime_template"
SDK = ROOT / "src" / "codex_app_server"
RUNTIME_PACKAGE = "openai-codex-cli-bin"
# What codex_app_server itself imports; which versions of it the project's pyproject says.
SDK_DEPENDENCIES = ("pydantic", "msgspec")
STAGED = "# Staged by scripts/update_sdk_artifacts.py {command}; do not edit.\n"


class Platform(NamedTuple):
    """One platform that codex is released for."""

    system: str
    """As in `sys.platform`."""
    machine: str
    """As in `platform.machine()`, in lower case."""
    target: str
    """Its name in codex's releases."""


PLATFORMS = {
    "macosx_11_0_arm64": Platform("darwin", "arm64", "aarch64-apple-darwin"),
    "macosx_10_9_x86_64": Platform("darwin", "x86_64", "x86_64-apple-darwin"),
    "musllinux_1_1_aarch64": Platform("linux", "aarch64", "aarch64-unknown-linux-musl"),
    "musllinux_1_1_x86_64": Platform("linux", "x86_64", "x86_64-unknown-linux-musl"),
    "win_arm64": Platform("win32", "arm64", "aarch64-pc-windows-msvc"),
    "win_amd64": Platform("win32", "amd64", "x86_64-pc-windows-msvc"),
}
# Where codex looks for what it is released with; anything else it expects beside itself.
PLACES = {
    "rg": "codex-path",
    "bwrap": "codex-resources",
    "codex-command-runner": "codex-resources",
    "codex-windows-sandbox-setup": "codex-resources",
}


class StagingError(Exception):
    """Something cannot be staged; the message says what came, what was expected, and the remedy."""


class Version(NamedTuple):
    """A codex version in both spellings."""

    package: str
    """As Python packages write it: 0.163.0a1."""
    release: str
    """As codex writes it: 0.163.0-alpha.1."""


def parse_version(text: str) -> Version:
    """Reads a release tag, `rust-v0.163.0-alpha.1`, or a package version, `0.163.0a1`. Raises StagingError."""
    number = r"(?:0|[1-9]\d*)"
    stages = rf"-(?P<long>alpha|beta|rc)\.(?P<of_long>{number})|(?P<short>a|b|rc)(?P<of_short>{number})"
    found = re.fullmatch(rf"(?:(?:rust-)?v)?(?P<base>{number}\.{number}\.{number})(?:{stages})?", text, re.ASCII)
    if found is None:
        raise StagingError(
            f"codex version {text!r}: expected a release tag such as rust-v0.163.0 or rust-v0.163.0-alpha.1, "
            "or the same as a package version, 0.163.0 or 0.163.0a1"
        )
    base, serial = found["base"], found["of_long"] or found["of_short"]
    if serial is None:
        return Version(base, base)
    long = found["long"] or {"a": "alpha", "b": "beta"}.get(found["short"], "rc")
    short = found["short"] or {"alpha": "a", "beta": "b"}.get(found["long"], "rc")
    return Version(f"{base}{short}{serial}", f"{base}-{long}.{serial}")


def stage_sdk(directory: Path, codex_version: str) -> None:
    """Makes the source package of codex_app_server alone. Raises StagingError before anything is written."""
    version = parse_version(codex_version)
    routing = SDK / "generated" / "routing.py"
    made_for = re.search(r'^RUNTIME_VERSION = "(.+)"$', routing.read_text(encoding="utf-8"), re.MULTILINE)
    if made_for is None or parse_version(made_for[1]) != version:
        raise StagingError(
            f"codex version {codex_version}: the generated types are those of {made_for and made_for[1]}; "
            "run generate-types with the codex of that version first, or name the version they are made for"
        )
    requirements = [f"{RUNTIME_PACKAGE}=={version.package}", *sdk_requirements()]
    values = {"dependencies = []": f"dependencies = {json.dumps(requirements)}"}
    _begin(directory, SDK_TEMPLATE, "stage-sdk", version, values, inputs=())
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SDK, directory / "src" / SDK.name, ignore=ignored)


def sdk_requirements() -> list[str]:
    """The requirements of codex_app_server, as the project's pyproject has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    by_name = {re.split(r"[^\w.-]", line, maxsplit=1)[0]: line for line in project["dependencies"]}
    missing = [name for name in SDK_DEPENDENCIES if name not in by_name]
    if missing:
        raise StagingError(
            f"pyproject.toml has no dependency on {', '.join(missing)}, expected {', '.join(SDK_DEPENDENCIES)}; "
            "if the SDK no longer imports it, take it out of SDK_DEPENDENCIES in scripts/_staging.py"
        )
    return [by_name[name] for name in SDK_DEPENDENCIES]


def stage_runtime(
    directory: Path, binary: Path, codex_version: str, platform_tag: str | None = None, resources: Sequence[Path] = ()
) -> str | None:
    """Makes the package of `binary` for one platform. Raises StagingError before anything is written.

    Returns why the version of the binary was not checked, None if it was.
    """
    version = parse_version(codex_version)
    meant = _platform(platform_tag)
    suffix = ".exe" if meant.system == "win32" else ""
    for file in (binary, *resources):
        _check_executable(file, meant)
    places = {f"bin/codex{suffix}": binary}
    for file in resources:
        place = f"{PLACES.get(file.name.removesuffix('.exe'), 'bin')}/{file.name}"
        if place in places:
            raise StagingError(f"{places[place]} and {file} would both become {place}; give one of them")
        places[place] = file
    note = _check_version(binary, version, meant)

    values = {'platform-tag = ""': f"platform-tag = {json.dumps(platform_tag or '')}"}
    _begin(directory, RUNTIME_TEMPLATE, "stage-runtime", version, values, inputs=places.values())
    package = directory / "src" / "codex_cli_bin"
    for name in ("hatch_build.py", "src/codex_cli_bin/__init__.py"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(RUNTIME_TEMPLATE / name, directory / name)
    for place, file in places.items():
        (package / place).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, package / place)
        (package / place).chmod(0o755)
    # Last, because the build takes it as the sign that everything is there.
    manifest = {
        "layoutVersion": 1,
        "version": version.release,
        "target": meant.target,
        "variant": "codex",
        "entrypoint": f"bin/codex{suffix}",
        "resourcesDir": "codex-resources",
        "pathDir": "codex-path",
    }
    (package / "codex-package.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8", newline="\n")
    return note


def _platform(tag: str | None) -> Platform:
    """The platform of a tag; without one, that of this host."""
    if tag is not None:
        if tag not in PLATFORMS:
            raise StagingError(
                f"platform tag {tag!r} is unknown; expected one of {', '.join(PLATFORMS)}, or none for this host's own"
            )
        return PLATFORMS[tag]
    for known in PLATFORMS.values():
        if known[:2] == _host():
            return known
    raise StagingError(
        f"there is no codex for this host, {' '.join(_host())}; name the platform of the binary with --platform-tag, "
        f"one of {', '.join(PLATFORMS)}"
    )


def _host() -> tuple[str, str]:
    return sys.platform, platform.machine().lower()


def _check_executable(file: Path, meant: Platform) -> None:
    if not file.is_file():
        raise StagingError(f"{file} is {'a directory' if file.is_dir() else 'missing'}, expected an executable file")
    # Windows programs carry no executable bit, least of all where another system unpacked them.
    if meant.system != "win32" and not os.access(file, os.X_OK):
        raise StagingError(f"{file} is not executable, expected a program for {meant.target}; chmod +x it")


def _check_version(binary: Path, version: Version, meant: Platform) -> str | None:
    try:
        answer = binary_version(binary.absolute())
    except (OSError, SchemaError) as error:
        if meant[:2] == _host():
            raise StagingError(
                f"{binary} cannot be run on this host, expected a codex for {meant.target}: {error}; "
                "name the platform it is for with --platform-tag, or give the binary of this one"
            ) from error
        return f"the version of {binary} was not checked: it is for {meant.target} and cannot be run here"
    if answer not in version:
        raise StagingError(
            f"{binary} says its version is {answer}, expected {version.release}; "
            "give the binary of that release, or the version of this one as --codex-version"
        )
    return None


def _begin(
    directory: Path, template: Path, command: str, version: Version, values: dict[str, str], inputs: Iterable[Path]
) -> None:
    """Empties the directory, if that is ours to do, and writes what stands at the top of both packages."""
    header = STAGED.format(command=command)
    pyproject = directory / "pyproject.toml"
    if directory.exists() and not directory.is_dir():
        raise StagingError(f"{directory} is a file, expected a directory; name another")
    if directory.is_dir() and any(directory.iterdir()):
        staged = pyproject.is_file() and pyproject.read_bytes().startswith(header.encode())
        if not staged:
            raise StagingError(
                f"{directory} is not empty and was not staged by {command}, expected a new or empty directory, "
                f"or one that {command} made; name another or empty it"
            )
    for file in inputs:
        if directory.resolve() in file.resolve().parents:
            raise StagingError(f"{file} is inside {directory}, which staging empties; give a file elsewhere")
    text = (template / "pyproject.toml").read_text(encoding="utf-8")
    for old, new in {'version = "0.0.0"': f"version = {json.dumps(version.package)}", **values}.items():
        if text.count(old) != 1:
            raise StagingError(f"{template}/pyproject.toml has {text.count(old)} times {old!r}, expected once")
        text = text.replace(old, new)

    directory.mkdir(parents=True, exist_ok=True)
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry != pyproject:
            entry.unlink()
    # Written over the old one: were staging cut off here, the directory would still be known as ours.
    pyproject.write_text(header + text, encoding="utf-8", newline="\n")
    shutil.copyfile(template / "README.md", directory / "README.md")
    shutil.copyfile(ROOT / "LICENSE", directory / "LICENSE")
