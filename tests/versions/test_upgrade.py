"""`update_sdk_artifacts.py upgrade`, in a copy of the checkout, to versions before and after that of the types."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from codex_versions import ROOT, UPGRADED, runtime


class Checkout:
    """A copy of the files that git knows, with the programs run in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        known = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
        for name in filter(None, known.split("\0")):
            if (ROOT / name).is_file():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, path / name)

    def python(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Python on the packages of the copy."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": str(self.path / "src"), "PYTHONDONTWRITEBYTECODE": "1", **environ},
            capture_output=True,
            text=True,
            timeout=400,
        )

    def upgrade(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("scripts/update_sdk_artifacts.py", "upgrade", "--no-tests", *arguments)

    def text(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")

    def contents(self) -> dict[str, bytes]:
        """All files but those that are put in out/."""
        files = (path for path in self.path.rglob("*") if path.is_file())
        relative = {path.relative_to(self.path).as_posix(): path for path in files}
        return {name: path.read_bytes() for name, path in relative.items() if not name.startswith("out/")}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout")


@pytest.mark.parametrize("version", UPGRADED)
def test_one_command_takes_on_another_version(checkout: Checkout, version: str) -> None:
    binary = runtime(version)
    done = checkout.upgrade("--codex-bin", str(binary), "--accept")
    assert done.returncode == 0, done.stderr
    assert "done: docs/reference/methods.md" in done.stdout, done.stdout
    routing = checkout.text("src/codex_app_server/generated/routing.py")
    assert f'RUNTIME_VERSION = "{version}"' in routing and 'scope="unassigned"' not in routing
    assert f"stable requests of codex {version}." in checkout.text("docs/reference/methods.md")
    assert f"The types are those of {version}." in checkout.text("docs/compatibility.md")
    assert f"codex runtime that it is made for ({version})" in checkout.text("README.md")
    report = checkout.text(f"out/upgrade/{version}.md")
    assert report.startswith(f"# The protocol of codex {version} against ") and "\n## Fields (" in report
    if version == UPGRADED[0]:
        # Again there is nothing to decide, and the same comes out.
        before = checkout.contents()
        assert checkout.upgrade("--codex-bin", str(binary)).returncode == 0
        assert {name for name, content in checkout.contents().items() if before.get(name) != content} == set()
    # Every type can be built, and the SDK with these types runs turns on that version.
    built = checkout.python("-c", "from codex_app_server.generated import models as m; [*map(m.adapter, m.MODULES)]")
    assert built.returncode == 0, built.stderr
    tests = ("tests/versions/test_range.py", "-k", "turns_of_the_sdk or refused_by_name")
    command = ("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "versions", *tests)
    turns = checkout.python(*command, VERSIONS=f"{version}={binary}")
    assert turns.returncode == 0, turns.stdout
    assert "2 passed" in turns.stdout or turns.stdout.startswith(".."), turns.stdout


def test_what_is_undecided_is_named_at_once_and_nothing_is_changed(checkout: Checkout) -> None:
    before = checkout.contents()
    done = checkout.upgrade("--codex-bin", str(runtime("0.171.0")))
    assert done.returncode == 1
    assert "accountSession/list: AccountSessionsResponse | " in done.stderr
    for file, method in (
        ("results.toml", "account/securitySetup/read"),
        ("scopes.toml", "modelProvider/config/write: refused | any"),
        ("access.toml", "thread/sample: refused | own"),
    ):
        assert method in done.stderr.partition(f"undecided in scripts/{file}")[2]
    assert checkout.contents() == before
    report = checkout.text("out/upgrade/0.171.0.md")
    for row in (
        "added: `modelProvider/list`",
        "added: `thread/sample` (experimental)",
        "removed: `currentTime/read`",
        "removed: 'detached' of `ReviewDelivery`",
        "changed: `ImageGenerationThreadItem.result`: string, required -> string or null (received)",
        "`TurnStartParams.responsesapiClientMetadataPatch`",
    ):
        assert row in report, row
