"""Workspaces: private copies without history, set up, compared with a base that the agent cannot touch, removed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from codex_batch.dataset import DatasetError, Sample, load
from codex_batch.workspace import (
    Project,
    Repositories,
    WorkspaceError,
    config_overrides,
    large_files,
    prepare,
    private_of,
    reopen,
    thread_options,
)
from codex_batch.workspace.privacy import Base, base_of
from codex_pool.configuration import Configuration

pytestmark = pytest.mark.git
T = TypeVar("T")


def wait(awaitable: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(awaitable, 30))


def sample(**workspace: Any) -> Sample:
    return Sample("a/ä", ("p",), workspace=workspace, directory="/task")


def git(directory: Path, *arguments: str) -> str:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    names = ("-c", "user.name=n", "-c", "user.email=e@x")
    done = subprocess.run(["git", *names, *arguments], cwd=directory, env=env, check=True, capture_output=True)
    return done.stdout.decode().strip()


@pytest.fixture
def template(tmp_path: Path) -> Path:
    root = tmp_path / "template"
    (root / "sub").mkdir(parents=True)
    (root / "a.py").write_text("x = 1\n")
    (root / "sub" / "run.sh").write_text("echo\n")
    (root / "sub" / "run.sh").chmod(0o755)
    (root / "link").symlink_to("a.py")
    (root / ".git").mkdir()
    (root / ".git" / "later").write_text("the fix")
    return root


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, list[str]]:
    """Three commits; the second is the task, the third its fix."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    commits = []
    for content in ("first", "broken", "the fix"):
        (root / "code.txt").write_text(f"{content}\n")
        (root / ".gitignore").write_text("*.log\n")
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", content)
        commits.append(git(root, "rev-parse", "HEAD"))
    return root, commits


def test_a_template_is_copied_as_it_is_without_history(tmp_path: Path, template: Path) -> None:
    workspace = wait(prepare(sample(template=str(template)), tmp_path / "w"))
    assert workspace.cwd == workspace.path
    assert sorted(path.relative_to(workspace.cwd).as_posix() for path in workspace.cwd.rglob("*")) == [
        "a.py",
        "link",
        "sub",
        "sub/run.sh",
    ]
    assert os.access(workspace.cwd / "sub" / "run.sh", os.X_OK) and os.readlink(workspace.cwd / "link") == "a.py"
    (workspace.cwd / "a.py").write_text("x = 2\n")
    assert (template / "a.py").read_text() == "x = 1\n"


def test_the_diff_holds_changes_new_files_and_deletions_and_nothing_of_the_setup(
    tmp_path: Path, template: Path
) -> None:
    async def go() -> bytes:
        workspace = await prepare(sample(template=str(template), setup=["echo made > made.txt"]), tmp_path / "w")
        assert await workspace.diff() == b""
        (workspace.cwd / "a.py").write_text("x = 2\n")
        (workspace.cwd / "new.txt").write_text("new\n")
        (workspace.cwd / "sub" / "run.sh").unlink()
        (workspace.cwd / "__pycache__").mkdir()
        (workspace.cwd / "__pycache__" / "a.pyc").write_bytes(b"\0")
        assert (workspace.cwd / "made.txt").read_text() == "made\n"
        return await workspace.diff()

    diff = wait(go()).decode()
    assert [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")] == [
        "-x = 1",
        "+x = 2",
        "+new",
        "-echo",
    ]


def test_an_agent_cannot_hide_changes_by_attributes_configuration_or_a_history_of_its_own(
    tmp_path: Path, template: Path
) -> None:
    async def go() -> bytes:
        workspace = await prepare(sample(template=str(template)), tmp_path / "w")
        (workspace.cwd / ".gitattributes").write_text("* -diff filter=hide text=auto\n")
        (workspace.cwd / "a.py").write_text("x = 3\r\n")
        git(workspace.cwd, "init", "-q")
        git(workspace.cwd, "config", "filter.hide.clean", "true")
        git(workspace.cwd, "add", "-A")
        git(workspace.cwd, "commit", "-q", "-m", "mine")
        return await workspace.diff()

    assert b"-x = 1\n+x = 3\r\n" in wait(go())


def test_files_in_a_repository_of_the_agents_are_in_the_diff_as_well(tmp_path: Path) -> None:
    async def go() -> bytes:
        workspace = await prepare(sample(files={"lib/old.txt": "old\n", "b/c.txt": "c\n"}), tmp_path / "w")
        for name in ("lib", "fresh", "b"):
            inner = workspace.cwd / name
            inner.mkdir(exist_ok=True)
            git(inner, "init", "-q")
            (inner / "new.txt").write_text(f"new in {name}\n")
            git(inner, "add", "-A")
            git(inner, "commit", "-q", "-m", "mine")
        (workspace.cwd / "b" / "c.txt").unlink()
        (workspace.cwd / "lib" / "old.txt").write_text("changed\n")
        assert await workspace.diff() == await workspace.diff()
        return await workspace.diff()

    lines = wait(go()).decode().splitlines()
    assert [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")] == [
        "-c",
        "+new in b",
        "+new in fresh",
        "+new in lib",
        "-old",
        "+changed",
    ]
    assert not any("Subproject" in line for line in lines)


def test_large_files_are_told_by_size_and_digest_and_all_else_is_in_the_diff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_files, "FILE_BYTES", 1000)
    names = ("kept", "changed", "gone", "grown", "node_modules/kept")
    files = {name: name * 1000 for name in names if name != "grown"} | {"grown": "small\n", "a.txt": "old\n"}

    async def go() -> tuple[bytes, bytes]:
        workspace = await prepare(sample(files=files), tmp_path / "w")
        untouched = await workspace.diff()
        (workspace.cwd / "gone").unlink()
        for name in ("changed", "grown", "new\nline"):
            (workspace.cwd / name).write_bytes(b"x" * 2000)
        (workspace.cwd / "sparse").touch()
        os.truncate(workspace.cwd / "sparse", 2**40)
        (workspace.cwd / "inner").mkdir()
        git(workspace.cwd / "inner", "init", "-q")
        (workspace.cwd / "inner" / "core").write_bytes(b"x" * 2000)
        (workspace.cwd / "a.txt").write_text("new\n")
        os.mkfifo(workspace.cwd / "pipe")
        diff = await workspace.diff()
        assert await workspace.diff() == diff
        return untouched, diff

    untouched, diff = wait(go())
    lines = diff.decode().splitlines()
    digest = hashlib.sha256(b"x" * 2000).hexdigest()
    assert untouched == b"" and [line for line in lines if line.startswith("#")] == [
        f"# not kept: 2,000 bytes, sha256 {digest}: changed",
        f"# not kept: 2,000 bytes, sha256 {digest}: grown",
        f"# not kept: 2,000 bytes, sha256 {digest}: inner/core",
        f'# not kept: 2,000 bytes, sha256 {digest}: "new\\nline"',
        "# not kept: 1,099,511,627,776 bytes, not read: sparse",
        "# not kept: deleted, 4,000 bytes before: gone",
    ]
    assert [line for line in lines if line.startswith("diff ")] == ["diff --git a/a.txt b/a.txt"]
    assert not large_files.is_whole(diff) and large_files.is_whole(b"") and large_files.is_whole(b"diff --git")


def test_of_too_many_or_too_large_changes_only_the_statistics_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_files, "TOTAL_BYTES", 10_000)
    monkeypatch.setattr(large_files, "TOTAL_FILES", 20)

    async def go() -> tuple[bytes, bytes]:
        workspace = await prepare(sample(files={"a.txt": "old\n"}), tmp_path / "w")
        for number in range(3):
            (workspace.cwd / f"{number}").write_bytes(b"x" * 4000)
        large = await workspace.diff()
        for number in range(3, 30):
            (workspace.cwd / f"{number}").write_bytes(b"y")
            (workspace.cwd / f"{number % 3}").write_bytes(b"y")
        return large, await workspace.diff()

    large, many = (diff.decode().splitlines() for diff in wait(go()))
    assert large[0].endswith("only counted: 3 files, 12,000 bytes; the largest:") and large[1].split() == ["4,000", "2"]
    assert many[0].endswith("only counted: 30 files, 30 bytes; the largest:")


def test_directories_deeper_than_a_path_may_be_long_cost_nothing(tmp_path: Path) -> None:
    async def go() -> bytes:
        workspace = await prepare(sample(files={"a.txt": "old\n"}), tmp_path / "w")
        (workspace.cwd / "a.txt").write_text("new\n")
        script = "import os\nfor _ in range(2200):\n os.mkdir('d'); os.chdir('d')\nopen('deep', 'w').write('x')"
        subprocess.run([sys.executable, "-c", script], cwd=workspace.cwd, check=True, timeout=30)
        diff = await workspace.diff()
        await workspace.remove()
        return diff

    try:
        assert b"+new\n" in wait(go())
        assert list(tmp_path.iterdir()) == []
    finally:
        # What a failure leaves is too deep for pytest to remove.
        subprocess.run(["rm", "-rf", str(tmp_path / "w")], check=True, timeout=60)


def test_a_commit_is_copied_without_what_came_before_or_after(
    tmp_path: Path, repository: tuple[Path, list[str]]
) -> None:
    root, commits = repository

    async def go() -> bytes:
        workspace = await prepare(sample(git=str(root), commit=commits[1]), tmp_path / "w")
        assert (workspace.cwd / "code.txt").read_text() == "broken\n"
        assert git(workspace.cwd, "log", "--all", "--format=%s") == "Base"
        assert git(workspace.cwd, "remote") == "" == git(workspace.cwd, "status", "--porcelain")
        for commit in commits:
            with pytest.raises(subprocess.CalledProcessError):
                git(workspace.cwd, "cat-file", "-e", commit)
        (workspace.cwd / "code.txt").write_text("mine\n")
        (workspace.cwd / "a.log").write_text("ignored\n")
        return await workspace.diff()

    diff = wait(go())
    assert b"-broken\n+mine\n" in diff and b"a.log" not in diff and b"the fix" not in diff


def test_a_repository_elsewhere_is_fetched_once(tmp_path: Path, repository: tuple[Path, list[str]]) -> None:
    root, commits = repository
    sources, url = Repositories(tmp_path / "cache"), f"file://{root}"
    assert sources.check(url, commits[1]) == commits[1] and sources.check(url, "main") == commits[2]
    root.rename(tmp_path / "gone")
    assert sources.check(url, commits[1]) == commits[1]
    workspace = wait(prepare(sample(git=url, commit=commits[1]), tmp_path / "w", sources=sources))
    assert (workspace.cwd / "code.txt").read_text() == "broken\n"


def test_repositories_and_commits_that_are_not_there_are_refused_at_once(
    tmp_path: Path, repository: tuple[Path, list[str]]
) -> None:
    root, commits = repository
    (tmp_path / "plain").mkdir()
    workspaces = [
        {"git": "repository", "commit": "main"},
        {"git": "repository", "commit": "nope"},
        {"git": "plain", "commit": "main"},
        {"git": "missing", "commit": "main"},
        {"git": f"file://{tmp_path}/none", "commit": "main"},
    ]
    dataset = tmp_path / "d.jsonl"
    dataset.write_text("".join(json.dumps({"prompt": "p", "workspace": one}) + "\n" for one in workspaces))
    check = Repositories(tmp_path / "cache").check
    with pytest.raises(DatasetError) as caught:
        load(dataset, check_repository=check)
    second, third, fourth, fifth = caught.value.problems
    assert second == f"{dataset}:2: workspace: git: {root} has no commit 'nope'"
    unreadable = f"{dataset}:3: workspace: git: {tmp_path}/plain is no git repository that can be read: fatal: "
    assert third.startswith(unreadable) and "\n" not in third
    assert fourth.startswith(f"{dataset}:4: workspace: git: {tmp_path}/missing is no directory")
    assert fifth.startswith(
        f"{dataset}:5: workspace: git: file://{tmp_path}/none: commit 'main' could not be fetched: "
    )
    dataset.write_text(json.dumps({"prompt": "p", "workspace": workspaces[0]}))
    with load(dataset, check_repository=check) as loaded:
        (one,) = loaded
    assert one.workspace == {"git": str(root), "commit": commits[2]}


def test_files_of_the_dataset_are_written_and_cannot_lead_out(tmp_path: Path) -> None:
    workspace = wait(prepare(sample(files={"a/b.txt": "hello"}), tmp_path / "w"))
    assert (workspace.cwd / "a" / "b.txt").read_text() == "hello"
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "out").symlink_to(tmp_path)
    with pytest.raises(WorkspaceError, match="leads out of the workspace"):
        wait(prepare(sample(template=str(tmp_path / "t"), files={"out/x": ""}), tmp_path / "w"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["template", "git", "files"])
def test_the_agents_md_of_a_variant_belongs_to_the_base(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "CLAUDE.md").write_text("linked\n")
    (root / "AGENTS.md").symlink_to("CLAUDE.md")
    (root / "AGENTS.override.md").write_text("overrides\n")
    # Also in place of what a setup brings.
    setup = "test -e .git && git status --porcelain > clean; echo of the setup > AGENTS.override.md"
    spec: dict[str, Any] = {kind: str(root), "setup": setup}
    if kind == "files":
        spec["files"] = {"AGENTS.md": "of the sample\n", "CLAUDE.md": "linked\n"}
    elif kind == "git":
        git(root, "init", "--quiet")
        git(root, "add", ".")
        git(root, "commit", "--quiet", "-m", "all")
        spec["commit"] = git(root, "rev-parse", "HEAD")

    async def go() -> tuple[bytes, bytes, str]:
        one = sample(**spec)
        first, second = [await prepare(one, tmp_path / n, agents_md=f"Be {n}.\n") for n in ("terse", "long")]
        assert Project(str(second.path), own=True).instructions() == "Be long.\n"
        (first.path / "a").write_text("1\n")
        (second.path / "AGENTS.md").write_text("Be anything.\n")
        return await first.diff(), await second.diff(), (first.path / "CLAUDE.md").read_text()

    terse, long, linked = wait(go())
    assert b"AGENTS" not in terse and b"+1\n" in terse
    assert b"-Be long.\n+Be anything.\n" in long and long.count(b"diff --git") == 1
    assert linked == "linked\n"
    if kind == "git":
        # The history that the agent sees begins with it as well.
        assert (tmp_path / "terse" / "workspace" / "clean").read_text().split() == ["??", "clean"]


def test_an_agents_md_in_place_of_a_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "t" / "AGENTS.md").mkdir(parents=True)
    with pytest.raises(WorkspaceError, match=r"could not be made: .*AGENTS.md"):
        wait(prepare(sample(template=str(tmp_path / "t")), tmp_path / "w", agents_md="x"))


def test_a_setup_that_fails_or_takes_too_long_is_said_with_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"setup 'echo why >&2; exit 3' failed with exit code 3: why"):
        wait(prepare(sample(files={"a": ""}, setup="echo why >&2; exit 3"), tmp_path / "w"))
    with pytest.raises(WorkspaceError, match=r"setup 'sleep 60' took longer than 0.2 s"):
        wait(prepare(sample(files={"a": ""}, setup="sleep 60", setup_timeout_s=0.2), tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_a_setup_knows_the_sample(tmp_path: Path) -> None:
    command = 'echo "$CODEX_POOL_SAMPLE_ID $CODEX_POOL_EPOCH $CODEX_POOL_TASK $PWD" > said'
    workspace = wait(prepare(sample(files={"a": ""}, setup=command), tmp_path / "w"))
    assert (workspace.cwd / "said").read_text() == f"a/ä 1 /task {workspace.cwd}\n"


def test_preparing_again_begins_afresh_and_removing_leaves_nothing(tmp_path: Path) -> None:
    async def go() -> None:
        one = sample(files={"a": "1"})
        first = await prepare(one, tmp_path / "w")
        (first.cwd / "left").mkdir()
        (first.cwd / "left" / "x").write_text("")
        (first.cwd / "left").chmod(0)
        again = await prepare(one, tmp_path / "w")
        assert sorted(path.name for path in again.cwd.iterdir()) == ["a"]
        await again.remove()

    wait(go())
    assert not (tmp_path / "w").exists()


def test_what_a_run_that_died_had_made_can_be_taken_up_once_it_was_ready(tmp_path: Path) -> None:
    async def go() -> bytes:
        one = sample(files={"a": "1\n"})
        workspace = await prepare(one, tmp_path / "w")
        (workspace.cwd / "a").write_text("2\n")
        again = reopen(one, tmp_path / "w")
        assert again == workspace
        return await again.diff()

    assert b"-1\n+2\n" in wait(go())
    (tmp_path / "w" / "workspace.json").unlink()
    assert reopen(sample(), tmp_path / "w") is None and reopen(sample(), tmp_path / "none") is None


HOOK = """
echo "$CODEX_POOL_HOOK $CODEX_POOL_NAME" >> %s
[ $CODEX_POOL_HOOK = stop ] || echo '{"cwd": "/inside", "thread": {"config": {"x": 1}}}'
"""


def test_a_hook_is_told_of_start_and_stop_and_may_say_where_codex_works(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def go() -> None:
        one, hook = sample(files={"a": ""}), HOOK % log
        workspace = await prepare(one, tmp_path / "w", hook=hook)
        assert workspace.cwd == Path("/inside") and workspace.thread == {"config": {"x": 1}}
        assert workspace.path == tmp_path / "w" / "workspace"
        workspace = await prepare(one, tmp_path / "w", hook=hook)
        await workspace.remove()

    wait(go())
    said = [line.split() for line in log.read_text().splitlines()]
    assert [phase for phase, _ in said] == ["start", "stop", "start", "stop"]
    (name,) = {name for _, name in said}
    assert name.startswith("codex-pool-a-") and name.replace("-", "").isalnum() and name.isascii()


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        ("echo no", "printed 'no'; expected a JSON object of exec_server and cwd"),
        ("echo '{\"where\": 1}'", "expected a JSON object of exec_server and cwd"),
        ("echo '{\"cwd\": 1}'", "expected a JSON object of exec_server and cwd, strings, and thread, an object"),
        ("exit 1", "failed with exit code 1"),
    ],
)
def test_a_hook_that_fails_or_says_something_else_is_named(tmp_path: Path, hook: str, problem: str) -> None:
    with pytest.raises(WorkspaceError, match="the workspace hook") as caught:
        wait(prepare(sample(files={"a": ""}), tmp_path / "w", hook=hook))
    assert problem in str(caught.value)


def test_a_profile_denies_what_is_private_but_never_the_workspace_itself(tmp_path: Path) -> None:
    run = tmp_path / "run"
    cwd = run / "work" / "a"
    for directory in (cwd, run / "work" / "b", run / "home"):
        directory.mkdir(parents=True)

    def filesystem(sandbox: str) -> Any:
        options = thread_options(_base(sandbox), cwd, [run, tmp_path / "d.jsonl"], linked=[cwd])
        assert options["permissions"] == f"codex-pool-{sandbox}" and "sandbox" not in options
        return options["config"][f"permissions.codex-pool-{sandbox}"]["filesystem"]

    assert filesystem("workspace-write") == {
        str(run): "deny",
        str(tmp_path / "d.jsonl"): "deny",
        ":workspace_roots": {".": "write", ".git": "write"},
    }
    assert filesystem("read-only") == dict.fromkeys(
        [str(run / "home"), str(run / "work" / "b"), str(tmp_path / "d.jsonl")], "deny"
    )
    changing = {run: [run / "home", run / "gone"], run / "work": ()}
    options = thread_options(_base("read-only"), cwd, [run], changing)
    assert options["config"]["permissions.codex-pool-read-only"]["filesystem"] == {str(run / "home"): "deny"}
    configured = Configuration("read-only")
    assert config_overrides(configured, [run, tmp_path / "d", run / "home"], {run: [run / "home", run / "gone"]}) == (
        f'permissions.codex-pool-read-only={{"extends"=":read-only","filesystem"={{"{run}/home"="deny"}}}}',
        f'permissions.codex-pool-workspace-write={{"extends"=":workspace","filesystem"={{"{run}"="deny",'
        f'"{tmp_path}/d"="deny",":workspace_roots"={{"."="write",".git"="write"}}}}}}',
    )
    config = thread_options(_base("read-only"), cwd, [run])["config"]
    assert (config["project_root_markers"], config["project_doc_max_bytes"]) == ([], 0)
    assert len(thread_options(_base("read-only"), cwd, [run], own=False)["config"]) == 1
    (cwd / "AGENTS.md").write_text("Be brief.")
    assert "project_doc_max_bytes" not in thread_options(_base("read-only"), cwd, [run])["config"]


def _base(sandbox: str) -> Base:
    base = base_of(Configuration("read-only"), sandbox)
    assert base is not None
    return base


def test_a_guard_extends_what_a_thread_would_have_without_it(tmp_path: Path) -> None:
    own = Configuration(None, "mine", writes_workspace=True)
    assert base_of(own, None) == Base("codex-pool-configured", "mine", True)
    assert base_of(own, "read-only") == base_of(Configuration("read-only"), None) == _base("read-only")
    # Nothing can be denied without a sandbox.
    assert base_of(Configuration("danger-full-access"), None) is base_of(own, "danger-full-access") is None
    assert base_of(Configuration("danger-full-access"), "workspace-write") == _base("workspace-write")

    def profiles(configuration: Configuration) -> list[str]:
        return [override.partition("=")[0] for override in config_overrides(configuration, [tmp_path], {})]

    modes = ["permissions.codex-pool-read-only", "permissions.codex-pool-workspace-write"]
    assert profiles(Configuration("danger-full-access")) == modes
    assert profiles(own) == [*modes, "permissions.codex-pool-configured"]
    # codex refuses a configuration with profiles that names no default one.
    assert profiles(Configuration("read-only", names_default=False)) == [*modes, "default_permissions"]


def test_the_files_of_scorers_and_the_repository_are_private() -> None:
    one = Sample(
        "a",
        ("p",),
        directory="/data",
        scorers=("exact", {"type": "command", "files": {"t.py": "hidden/t.py"}}),
        workspace={"git": "/src/repo", "commit": "f"},
    )
    assert private_of(one) == [Path("/data/hidden/t.py"), Path("/src/repo")]
    assert private_of(Sample("a", ("p",), workspace={"git": "https://x/y", "commit": "f"})) == []
