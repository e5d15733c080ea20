"""Accesses that a guard denies, and what is refused because no guard can deny it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codex_app_server import InvalidInputError
from codex_batch.dataset import Sample
from codex_batch.workspace import LinkTargets, base_of, config_overrides, cwd_problem, thread_options
from codex_batch.workspace.privacy import Base
from codex_pool.configuration import Configuration, configuration_of


def _base(configuration: Configuration) -> Base:
    base = base_of(configuration, None)
    assert base is not None
    return base


def _denied(options: dict[str, Any]) -> set[str]:
    rules = options["config"][f"permissions.{options['permissions']}"]["filesystem"]
    return {path for path, rule in rules.items() if rule == "deny"}


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "tasks" / "a"
    path.mkdir(parents=True)
    return path


def test_targets_of_links_are_found_through_links_and_directories(tmp_path: Path, task: Path) -> None:
    elsewhere, far = tmp_path / "elsewhere", tmp_path / "far.txt"
    (elsewhere / "tests").mkdir(parents=True)
    far.write_text("secret")
    (elsewhere / "tests" / "more").symlink_to(far)
    (task / "tests").symlink_to(elsewhere / "tests")
    (task / "inside").symlink_to(task)
    (task / "nowhere").symlink_to(tmp_path / "none")
    (task / "loop").symlink_to("loop")
    (task / "python").symlink_to("/usr/bin/env")
    assert LinkTargets().of([tmp_path / "tasks"]) == [elsewhere / "tests", far]


def test_links_of_repositories_and_virtual_environments_are_no_secrets(tmp_path: Path, task: Path) -> None:
    program = tmp_path / "program"
    program.touch()
    for directory in (task / ".git", task / ".venv" / "bin"):
        directory.mkdir(parents=True)
        (directory / "python").symlink_to(program)
    (task / ".venv" / "pyvenv.cfg").touch()
    assert LinkTargets().of([task]) == []


@pytest.mark.parametrize("target", ["/", "/usr/.."])
def test_a_link_to_what_commands_need_is_refused(target: str, task: Path) -> None:
    (task / "all").symlink_to(target)
    with pytest.raises(InvalidInputError, match=f"{task / 'all'} is private and leads to /, which cannot be denied"):
        LinkTargets().of([task])


def test_links_to_very_many_places_are_refused(tmp_path: Path, task: Path) -> None:
    for number in range(257):
        (tmp_path / str(number)).touch()
        (task / str(number)).symlink_to(tmp_path / str(number))
    with pytest.raises(InvalidInputError, match="lead to 257 places"):
        LinkTargets().of([task])


def test_the_target_of_a_link_is_denied_unless_the_agent_works_there(tmp_path: Path, task: Path) -> None:
    base = _base(Configuration("workspace-write"))
    other = tmp_path / "other"
    other.mkdir()
    assert _denied(thread_options(base, tmp_path / "w", [task], linked=[other])) == {str(task), str(other)}
    assert _denied(thread_options(base, other, [task], linked=[other])) == {str(task)}
    with pytest.raises(InvalidInputError, match=f"would work in {task}, which is private"):
        thread_options(base, task, [task])


@pytest.mark.parametrize(
    ("cwd", "words"),
    [
        ("home", "is in the CODEX_HOME"),
        ("home/sessions/2026", "is in the CODEX_HOME"),
        ("home/worktrees/x", None),
        ("run", "is in the run directory"),
        ("run/work/b", "is in the run directory"),
        ("run/home", "is in the run directory"),
        ("run/project", None),
        ("tasks", "holds what is private of the dataset"),
        ("tasks/a", "holds what is private of the dataset"),
        ("tasks/a/repository", None),
        ("tasks/_shared", None),
        ("checks", "which a scorer keeps from it"),
        ("checks/inner", "which a scorer keeps from it"),
        ("project", None),
        (None, None),
    ],
)
def test_a_cwd_that_is_private_is_refused(cwd: str | None, words: str | None, tmp_path: Path) -> None:
    sample = Sample("s", ("go",), cwd=None if cwd is None else str(tmp_path / cwd))
    places = {name: tmp_path / name for name in ("run", "tasks", "home", "checks")}
    problem = cwd_problem(sample, places["run"], places["tasks"], [places["home"]], [places["checks"]])
    if words is None:
        assert problem is None
    else:
        assert problem is not None and words in problem
        assert f'{sample.cwd} of sample "s"' in problem and problem.endswith("or --unguarded")


@pytest.mark.parametrize("where", ["{private}/login", "~/private/login", "{link}/login"])
def test_a_profile_that_grants_to_write_in_what_is_private_is_refused(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    private, link = tmp_path / "private", tmp_path / "link"
    private.mkdir()
    link.symlink_to(private)
    granted = where.format(private=private, link=link)
    directory, _, name = granted.rpartition("/")
    for rules in ({granted: "write"}, {directory: {name: "write"}}):
        extended = {"mine": {"extends": "base"}, "base": {"extends": ":workspace", "filesystem": rules}}
        for profiles in ({"mine": extended["base"]}, extended):
            configuration = configuration_of({"default_permissions": "mine", "permissions": profiles})
            words = rf"profile 'mine' grants to write .*/login, in {private}"
            with pytest.raises(InvalidInputError, match=words):
                thread_options(_base(configuration), tmp_path / "w", [private])
            with pytest.raises(InvalidInputError, match=words):
                config_overrides(configuration, [private], {})


def test_grants_that_do_no_harm_are_left_alone(tmp_path: Path) -> None:
    private = tmp_path / "private"
    rules = {str(private): "write", str(private / "a"): "read", str(tmp_path): "write", ":root": "read"}
    profiles = {"mine": {"extends": ":workspace", "filesystem": rules}}
    configuration = configuration_of({"default_permissions": "mine", "permissions": profiles})
    assert _denied(thread_options(_base(configuration), tmp_path / "w", [private])) == {str(private)}
    # A profile's own rule wins over that of the one that it extends.
    base = {"filesystem": {str(private / "b"): "write"}}
    mine = {"extends": "base", "filesystem": {str(private / "b"): "deny"}}
    assert configuration_of({"default_permissions": "mine", "permissions": {"mine": mine, "base": base}}).granted == ()


@pytest.mark.parametrize("name", ["codex-pool-configured", "codex-pool-read-only", "codex-pool-workspace-write"])
def test_the_name_of_a_guard_is_none_of_the_users(name: str, tmp_path: Path) -> None:
    profiles = {name: {"extends": ":workspace"}, f"{name}-guard": {"extends": ":workspace"}}
    for default in (name, ":read-only", ":workspace"):
        configuration = configuration_of({"default_permissions": default, "permissions": profiles})
        assert _base(configuration).name not in profiles
        names = [override.partition("=")[0] for override in config_overrides(configuration, [tmp_path], {})]
        assert names and not {f"permissions.{profile}" for profile in profiles} & set(names)
