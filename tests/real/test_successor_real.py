"""A successor that cannot start ends nothing: the worker that it is to replace, and the others, go on."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import codex_cli_bin
import pytest
from programs import Program, codex_pool, running

import codex_pool as package
from codex_app_server import Codex

pytestmark = pytest.mark.real

LIMIT_S = 30.0


class Link:
    """A path under which codex is found, until it leads elsewhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.to(codex_cli_bin.bundled_codex_path())

    def to(self, target: str | os.PathLike[str]) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.symlink_to(target)
        fresh.replace(self.path)


@pytest.fixture
def link(tmp_path: Path) -> Link:
    return Link(tmp_path / "codex")


def status(codex: Codex) -> dict[str, Any]:
    found: dict[str, Any] = codex.client.request("pool/status")
    return found


def wait_until(codex: Codex, condition: Callable[[list[dict[str, Any]]], bool], what: str) -> list[dict[str, Any]]:
    """The rows of the slots once they are so."""
    deadline = time.monotonic() + LIMIT_S
    while not condition(rows := status(codex)["workers"]):
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}: {rows}"
        time.sleep(0.05)
    return rows


@pytest.fixture
def daemon(home: Path, link: Link) -> Iterator[Program]:
    options = ["--workers", "2", "--codex-bin", str(link.path), "--recycle-turns", "1"]
    with running("serve", *options, home=home) as program:
        program.wait_for_line("stop  Ctrl-C")
        yield program
        assert program.end(signal.SIGTERM) == 0, program.lines


def test_a_pool_whose_codex_was_replaced_by_one_that_does_not_run(daemon: Program, link: Link) -> None:
    with package.connect() as codex:
        before = [row["pid"] for row in status(codex)["workers"]]
        link.to("/bin/false")
        thread = codex.thread_start()
        for text in ("theodolite-41", "alidade-42"):
            assert text in (thread.run(f"Say {text}.").final_response or "")
        rows = wait_until(codex, lambda rows: max(row["failedStarts"] for row in rows) >= 6, "successors fail")
        assert [row["pid"] for row in rows] == before and all(row["state"] == "ready" for row in rows)
        (row,) = [row for row in rows if row["failedStarts"]]
        assert "exit code 1" in row["problem"] and row["restarts"] == row["recycles"] == 0
        said = codex_pool("status").stdout
        assert f"slot {row['slot']}: " in said and "starts in a row have failed" in said and "exit code 1" in said
        assert f"worker {row['worker']} goes on meanwhile" in said
        assert "gnomon-43" in (thread.run("Say gnomon-43.").final_response or "")

        link.to(codex_cli_bin.bundled_codex_path())
        rows = wait_until(codex, lambda rows: bool(rows[row["slot"]]["recycles"]), "it is recycled after all")
        assert rows[row["slot"]]["failedStarts"] == 0 and rows[row["slot"]]["pid"] not in before
        assert "sextant-44" in (thread.run("Say sextant-44.").final_response or "")


def test_a_worker_that_died_and_cannot_be_replaced_leaves_the_others_alone(daemon: Program, link: Link) -> None:
    with package.connect() as codex:
        first, second = status(codex)["workers"]
        link.to("/bin/false")
        os.kill(first["pid"], signal.SIGKILL)
        rows = wait_until(codex, lambda rows: rows[0].get("failedStarts", 0) >= 7, "more than a pool has patience for")
        assert rows[0]["state"] in ("waiting", "starting") and rows[1]["pid"] == second["pid"]
        assert "it has no worker meanwhile" in codex_pool("status").stdout
        assert "gnomon-43" in (codex.thread_start(ephemeral=True).run("Say gnomon-43.").final_response or "")
        link.to(codex_cli_bin.bundled_codex_path())
        rows = wait_until(codex, lambda rows: rows[0]["state"] == "ready", "it comes back")
        assert rows[0]["failedStarts"] == 0 and rows[0]["problem"] == ""


def test_a_pool_that_never_had_a_worker_ends_with_the_reason(home: Path, link: Link) -> None:
    link.to("/bin/false")
    done = codex_pool("serve", "--workers", "2", "--codex-bin", str(link.path), home=home)
    assert done.returncode == 3 and "could not start" in done.stderr and "exit code 1" in done.stderr


def test_a_worker_that_drains_finishes_an_approval_that_waits_and_a_second_recycle_waits(
    home: Path, tmp_path: Path
) -> None:
    """Work that runs when the second recycle is due is finished too; the slot has two workers at most."""
    asked, decide = threading.Event(), threading.Event()

    def handler(method: str, params: Any) -> dict[str, str]:
        asked.set()
        assert decide.wait(LIMIT_S)
        return {"decision": "accept"}

    with running("serve", "--workers", "1", "--recycle-turns", "1", home=home) as daemon:
        daemon.wait_for_line("stop  Ctrl-C")
        with package.connect(approval_handler=handler) as codex, package.connect() as other:
            (row,) = status(codex)["workers"]
            thread = codex.thread_start(approval_policy="untrusted", sandbox="read-only", cwd=str(tmp_path))
            turn = thread.turn('[[tool_call "touch made"]] [[text "after the approval"]]')
            assert asked.wait(LIMIT_S)
            for count in (1, 2):
                # The first one wears the old worker, the second one its successor.
                other.thread_start().run("hello")
                rows = wait_until(other, lambda rows: rows[0]["pid"] != row["pid"], f"recycled after turn {count}")
            found = status(other)
            (draining,) = found["draining"]
            assert draining["pid"] == row["pid"] and draining["turns"] == 1 and rows[0]["recycles"] == 0
            successor = found["workers"][0]["pid"]
            assert f"pid {row['appServerPid']}" in codex_pool("status").stdout
            decide.set()
            assert turn.run().final_response == "after the approval"
            rows = wait_until(other, lambda rows: rows[0]["recycles"] >= 1, "the old worker has ended")
            wait_until(other, lambda rows: rows[0]["pid"] != successor, "the recycle that has waited is done")
        assert daemon.end(signal.SIGTERM) == 0


def test_the_words_of_status_are_json_too(daemon: Program, link: Link) -> None:
    rows = json.loads(codex_pool("status", "--json").stdout)["workers"]
    assert [(row["failedStarts"], row["problem"], row["retryInMs"]) for row in rows] == [(0, "", None)] * 2
