"""Options of `serve` on their way to the pool, and what status makes of a slot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from codex_app_server import InvalidInputError
from codex_pool import Pool
from codex_pool.daemon import lifecycle, status_text
from codex_pool.daemon.config import DaemonConfig
from codex_pool.homes import daemon_home
from codex_pool.options import PoolOptions
from codex_pool_cli.serve import serve

OPTIONS = (
    "recycle_turns",
    "recycle_threads",
    "recycle_age_s",
    "recycle_memory_bytes",
    "recycle_descendants",
    "turn_idle_limit_s",
    "turn_wall_limit_s",
)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[DaemonConfig]:
    """The configurations of daemons that `serve` would have run."""
    found: list[DaemonConfig] = []
    monkeypatch.setattr(lifecycle, "run_daemon", lambda config, *_: found.append(config))
    return found


def test_limits_have_defaults_and_0_is_none(served: list[DaemonConfig]) -> None:
    assert CliRunner().invoke(serve, []).exit_code == 0
    none = ["--recycle-memory-bytes", "0", "--recycle-descendants", "0", "--turn-idle-limit-s", "0"]
    assert CliRunner().invoke(serve, none).exit_code == 0
    values = [[getattr(config.options, name) for name in OPTIONS] for config in served]
    assert values == [[None] * 3 + [3 * 1024**3 // 2, 32, 600.0, None], [None] * 7]


def test_limits_reach_the_pool(served: list[DaemonConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        *("--recycle-turns", "1", "--recycle-threads", "2", "--recycle-age-s", "3.5", "--recycle-memory-bytes", "4"),
        *("--recycle-descendants", "7", "--turn-idle-limit-s", "5", "--turn-wall-limit-s", "6"),
    ]
    assert CliRunner().invoke(serve, arguments).exit_code == 0
    given: dict[str, Any] = {}
    monkeypatch.setattr(Pool, "__init__", lambda self, *args, **options: given.update(options))
    (config,) = served
    with config.pool():
        pass
    assert [given[name] for name in OPTIONS] == [1, 2, 3.5, 4, 7, 5.0, 6.0]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_limit_that_makes_no_sense_is_refused_by_name(name: str) -> None:
    for value in (0, -1):
        with pytest.raises(InvalidInputError, match=rf"^{name} is {value}; expected a .*, or None for no limit$"):
            Pool(1, **{name: value})  # type: ignore[arg-type]
    flag = f"--{name.replace('_', '-')}"
    done = CliRunner().invoke(serve, [flag, "-1"])
    assert done.exit_code == 2 and re.search(
        rf"{flag} is -1(\.0)?; expected a .*, or 0 for no limit$", done.output, re.MULTILINE
    )


def test_status_shows_a_slot_that_is_recycled() -> None:
    row = {"slot": 0, "state": "ready", "restarts": 0, "worker": "w0.2", "appServerPid": 7, "recycling": "9 turns"}
    found = status_text.rows({"turnsPerWorker": 8, "workers": [row, {**row, "slot": 1, "recycling": ""}]})
    assert [cells[:2] for cells in found] == [("0", "ready, recycling"), ("1", "ready")]


def test_status_shows_workers_that_drain_beside_those_of_their_slots() -> None:
    row = {"slot": 0, "state": "ready", "restarts": 0, "worker": "w0.2"}
    draining = [{"slot": 0, "state": "draining", "worker": "w0.1", "turns": 1}]
    found = status_text.rows({"turnsPerWorker": 8, "workers": [row], "draining": draining})
    assert [(cells[1], cells[2], cells[6]) for cells in found] == [
        ("ready", "0/8", "w0.2"),
        ("draining", "1/8", "w0.1"),
    ]
    assert (
        len(status_text.rows({"turnsPerWorker": 8, "workers": [draining[0] | {"restarts": 0}], "draining": draining}))
        == 1
    )


def test_status_says_which_slot_cannot_start_a_worker_and_why() -> None:
    fine = {"slot": 0, "state": "ready", "failedStarts": 0, "problem": "", "retryInMs": None}
    kept = {**fine, "slot": 1, "worker": "w1.1", "failedStarts": 3, "problem": "exit code 1", "retryInMs": 42_000}
    empty = {**kept, "slot": 2, "failedStarts": 1, "retryInMs": 0}
    del empty["worker"]
    first, second = status_text.problems({"workers": [fine, kept, empty]})
    assert first == (
        "slot 1: 3 starts in a row have failed, the next in 42 s; worker w1.1 goes on meanwhile; "
        "the last one: exit code 1"
    )
    assert second.startswith("slot 2: 1 start has failed, the next one is under way; it has no worker meanwhile; ")


def test_status_shows_memory_and_processes_of_trees_and_what_is_not_known() -> None:
    row = {"slot": 0, "state": "ready", "restarts": 0}
    known = {"memoryBytes": 300 << 20, "memoryIs": "pss", "descendants": 4, "toolCommands": 2}
    workers = [row, row | known, row | known | {"memoryIs": "rss"}]
    found = status_text.rows({"turnsPerWorker": 8, "workers": workers})
    assert [cells[-3:] for cells in found] == [("-", "-", "-"), ("300 MiB", "4", "2"), ("300 MiB RSS", "4", "2")]
    assert {len(cells) for cells in found} == {len(status_text.HEADER)}


def test_status_says_that_threads_wait_for_room() -> None:
    turns = dict.fromkeys(("running", "queued", "completed", "failed", "interrupted", "lost"), 0)
    found = {"turns": turns, "workers": [], "clients": [], "uptimeMs": 0}
    assert status_text.summary(found | {"threadsWaiting": 0}) == status_text.summary(found)
    assert status_text.summary(found | {"threadsWaiting": 1}).endswith("; 1 thread waits for room")
    assert status_text.summary(found | {"threadsWaiting": 2}).endswith("; 2 threads wait for room")
    gateway = {"state": "ready", "pid": 7, "restarts": 0, "sessions": 1}
    assert status_text.summary(found | {"gateway": gateway}).endswith("; gateway ready, 1 session")
    gateway |= {"state": "waiting", "restarts": 2}
    assert status_text.summary(found | {"gateway": gateway}).endswith("; gateway waiting, 1 session, 2 restarts")


def test_an_error_about_the_daemons_copy_of_a_configuration_names_the_users_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    endpoint, user = f"ipc://{tmp_path}/e.sock", tmp_path / "user"
    copied = daemon_home(endpoint) / "config.toml"
    env = {"CODEX_HOME": str(user)}
    for home, said in (("own", f"{user}/config.toml (copied to {copied}:1:2): bad"), ("user", f"{copied}:1:2: bad")):
        assert DaemonConfig(PoolOptions(endpoint=endpoint), home=home, env=env).named(f"{copied}:1:2: bad") == said
