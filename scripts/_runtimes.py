"""Codex binaries of other versions: fetched once from the package index, or from npm, and kept in the user's cache.

The cache is `$XDG_CACHE_HOME/codex-pool/runtimes/VERSION` (default `~/.cache`), some 300 MB a version. It may be
removed at any time.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

RUNTIME = "openai-codex-cli-bin"
NPM = "@openai/codex"
FETCH_TIMEOUT_S = 600
# Where `make test-clients` puts the npm package, which need not be fetched twice.
OF_CLIENTS = Path(__file__).resolve().parent.parent / "out" / "clients" / "node_modules"
# The directory of a wheel, and that inside of an npm package, that holds bin/codex and what belongs to it.
_IN_WHEEL = "codex_cli_bin"


class RuntimeFetchError(Exception):
    """A version cannot be fetched; the message names it, both places and what each said."""


def cache_directory() -> Path:
    """The directory with one directory for each version."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codex-pool" / "runtimes"


def fetch_runtime(version: str) -> Path:
    """The path of the codex binary of this version, fetched if it is not in the cache.

    Raises RuntimeFetchError when neither the package index nor npm has it for this platform.
    """
    kept = cache_directory() / version
    binary = kept / "bin" / "codex"
    if binary.is_file():
        return binary
    kept.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    for fetch in (_installed, _of_clients, _from_index, _from_npm):
        with tempfile.TemporaryDirectory(prefix=f".{version}-", dir=kept.parent) as scratch:
            found, problem = fetch(version, Path(scratch))
            if found is None:
                problems.append(problem)
                continue
            if not (found / "bin" / "codex").is_file():
                problems.append(f"{found.name} has no bin/codex")
                continue
            if found.is_relative_to(scratch):
                # Another process may have been faster; what it has put there is the same.
                try:
                    found.rename(kept)
                except OSError:
                    if not binary.is_file():
                        raise
                return binary
            return found / "bin" / "codex"
    raise RuntimeFetchError(
        f"codex {version} cannot be fetched: {'; '.join(problem for problem in problems if problem)}"
    )


def is_from_index(version: str) -> bool:
    """True if the version that was fetched is a wheel of the package index, not a package of npm."""
    return (cache_directory() / version / "__init__.py").is_file() or _installed(version, Path())[0] is not None


_Found = tuple[Path | None, str]


def _installed(version: str, scratch: Path) -> _Found:
    """The wheel of this environment, if it is of this version."""
    from importlib import metadata

    try:
        if metadata.version(RUNTIME) == version:
            import codex_cli_bin

            return Path(codex_cli_bin.bundled_codex_path()).parent.parent, ""
    except (metadata.PackageNotFoundError, ImportError, FileNotFoundError):
        pass
    return None, ""


def _of_clients(version: str, scratch: Path) -> _Found:
    """The npm package of `make test-clients`, if it is of this version."""
    import json

    for package in sorted((OF_CLIENTS / "@openai").glob("codex-*")):
        try:
            said = json.loads((package / "package.json").read_text(encoding="utf-8")).get("version", "")
        except (OSError, ValueError):
            continue
        if said.partition("-")[0] == version:
            for vendor in (package / "vendor").glob("*"):
                return vendor, ""
    return None, ""


def _from_index(version: str, scratch: Path) -> _Found:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += [
        "--disable-pip-version-check",
        "--only-binary",
        ":all:",
        "--dest",
        str(scratch),
        f"{RUNTIME}=={version}",
    ]
    problem = _run(command)
    if problem is not None:
        return None, f"pip: {problem}"
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.filename.startswith(f"{_IN_WHEEL}/") and not member.is_dir():
                path = Path(archive.extract(member, scratch))
                path.chmod((member.external_attr >> 16) & 0o777 or 0o644)
    wheel.unlink()
    # A zip made without modes would leave programs that cannot be executed.
    for path in (scratch / _IN_WHEEL).rglob("bin/*"):
        path.chmod(0o755)
    return scratch / _IN_WHEEL, ""


def _from_npm(version: str, scratch: Path) -> _Found:
    npm = shutil.which("npm")
    if npm is None:
        return None, "npm is not installed, which has versions that the index does not; e.g. apt-get install npm"
    machine = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine().lower())
    package = f"{NPM}@{version}-{sys.platform}-{machine}"
    problem = _run([npm, "pack", "--silent", "--pack-destination", str(scratch), package])
    if problem is not None:
        return None, f"npm: {problem}"
    (archive,) = scratch.glob("*.tgz")
    with tarfile.open(archive) as opened:
        for member in opened.getmembers():
            if member.isfile() or member.isdir():
                opened.extract(member, scratch, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    archive.unlink()
    vendors = list((scratch / "package" / "vendor").glob("*"))
    return (
        (vendors[0], "") if len(vendors) == 1 else (None, f"npm: {package} has {len(vendors)} directories in vendor/")
    )


def _run(command: list[str]) -> str | None:
    """Return the last line of what a command that failed said; None if it succeeded."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=FETCH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"no end within {FETCH_TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"ended with {done.returncode}"


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        print(fetch_runtime(wanted))
