"""Outcome of an attempt and whether to try again; what displays and reports make of it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from codex_app_server import (
    AppServerError,
    InvalidInputError,
    LineTooLongError,
    RequestTimeoutError,
    TransportClosedError,
    TurnFailedError,
)
from codex_app_server._protocol.rpc_errors import map_jsonrpc_error
from codex_app_server._runtime.text import duration
from codex_app_server.generated.models import Turn
from codex_batch.display import live, summary
from codex_batch.rules import retry
from codex_batch.rules.progress import Progress
from codex_batch.rules.retry import Outcome
from codex_batch.store import RecordRow, SampleRow


def failed_turn(info: Any) -> TurnFailedError:
    error = {"message": "no", "codexErrorInfo": info}
    turn = Turn.model_validate({"id": "t", "items": [], "status": "failed", "error": error})
    return TurnFailedError("no", turn=turn)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (failed_turn("usageLimitExceeded"), "failed", "usageLimitExceeded"),
        (failed_turn({"responseStreamDisconnected": {"httpStatusCode": 502}}), "failed", "responseStreamDisconnected"),
        (failed_turn("somethingNew"), "failed", "somethingNew"),
        (failed_turn(None), "failed", "other"),
        (TurnFailedError("gone", kind="lost"), "lost", "lost"),
        (TurnFailedError("silent", kind="stalled"), "stalled", "stalled"),
        (map_jsonrpc_error(-32010, "thread lost"), "lost", "lost"),
        (map_jsonrpc_error(-32011, "turn lost"), "lost", "lost"),
        (TransportClosedError("gone"), "lost", "lost"),
        (map_jsonrpc_error(-32001, "Server overloaded"), "failed", "serverOverloaded"),
        (map_jsonrpc_error(-32602, "bad"), "failed", "invalidParams"),
        (InvalidInputError("no"), "failed", "invalidInput"),
        (RequestTimeoutError("late"), "failed", "requestTimeout"),
        (LineTooLongError("long"), "failed", "lineTooLong"),
    ],
)
def test_an_exception_has_a_status_and_a_kind(error: AppServerError, status: str, kind: str) -> None:
    found, problem = retry.failure(error)
    assert (found, problem["kind"], problem["message"]) == (status, kind, str(error))
    assert problem.get("http_status") == ("502" if kind == "responseStreamDisconnected" else None)


@pytest.mark.parametrize("status", retry.STATUSES)
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_what_went_wrong_is_tried_again_as_often_as_told(status: retry.Status, retries: int) -> None:
    outcome = Outcome(status, error={"kind": "x", "message": ""})
    tries = 1
    while retry.may_retry(outcome, tries, retries):
        tries += 1
    assert tries - 1 == (retries if status in ("failed", "lost", "stalled") else 0)


def test_what_the_sdk_refuses_is_not_tried_again() -> None:
    assert not retry.may_retry(Outcome("failed", error={"kind": "invalidInput", "message": ""}), 1, 5)


def test_overload_waits_longer_and_longer_up_to_a_limit() -> None:
    busy = Outcome("failed", error={"kind": "serverOverloaded", "message": ""})
    waits = [retry.pause_s(busy, tries, jitter=0.0) for tries in range(1, 60)]
    assert waits[:3] == [0.5, 1.0, 2.0] and waits == sorted(waits) and waits[-1] == 15.0
    assert retry.pause_s(busy, 1, jitter=0.999) < 1.0
    assert retry.pause_s(Outcome("lost", error={"kind": "lost", "message": ""}), 1, jitter=0.999) <= 0.1


def test_progress_counts_and_foretells() -> None:
    progress = Progress(total=30, skipped=10, started_at=100.0)
    assert progress.eta_s(110.0) is None and progress.turns_per_s(100.0) == 0.0
    progress.running, progress.queued = 3, 1
    for _ in range(9):
        progress.turn_ended(Outcome("completed", usage={"total_tokens": 5, "output_tokens": 2}))
        progress.ended["completed"] += 1
    progress.turn_ended(Outcome("failed"))
    progress.ended["failed"] += 1
    assert (progress.done, progress.bad, progress.waiting) == (20, 1, 6)
    assert progress.turns_per_s(110.0) == 1.0 and progress.eta_s(110.0) == 10.0
    assert progress.tokens == {"total_tokens": 45, "output_tokens": 18}


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (7260, "2 h 01 min")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_report_counts_every_sample_once_and_names_the_first_failures() -> None:
    counts = summary.count({"total": 16, "pending": 3, "done": 13, "completed": 1, "failed": 12, "not_run": 3})
    assert counts == {"completed": 1, "failed": 12, "interrupted": 0, "lost": 0, "stalled": 0, "limit": 0, "not_run": 3}
    record = RecordRow("failed", 1, error={"kind": "k", "message": "a\n b"})
    found = [SampleRow(n, str(n), 1, "d", {}, (), "done", True, n, record) for n in range(1, 11)]
    failures = summary.failures(found, 12)
    assert failures[0] == ("1", "failed", "k: a b") and len(failures) == 11 and failures[-1][0] == "and 2 more"
    rows = dict(summary.summary(counts, Progress(total=16), 0.0))
    assert rows["failed"] == "12" and rows["not run"] == "3" and "lost" not in rows


def test_lines_come_when_something_changed_for_a_while_and_at_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    progress = Progress(total=100, started_at=0.0)
    shown = live.PlainDisplay(progress, clock=lambda: now)

    def lines(at: float) -> int:
        nonlocal now
        now = at
        shown.refresh()
        return capsys.readouterr().err.count("\n")

    assert lines(5.0) == 0
    progress.running = 8
    assert lines(6.0) == 1
    assert lines(20.0) == 0
    progress.ended["completed"] = 1
    assert lines(20.1) == 1
    progress.ended["completed"] = 9
    assert lines(20.2) == 0
    progress.ended["completed"] = 10
    assert lines(20.3) == 1


def test_the_live_display_fits_any_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "12")
    progress = Progress(total=50, skipped=5, started_at=0.0, turns_per_worker=8, running=9, retries=1)
    progress.ended["completed"] = 20
    progress.slots = [
        {"slot": n, "state": "ready", "turns": n, "restarts": n, "lastReason": "x" * 99} for n in range(9)
    ]
    shown = live.LiveDisplay(progress)
    shown.start("batch: title [not markup]")
    shown.say("sample [x]: failed")
    shown.refresh()
    shown.finish([("completed", "20"), ("failed", "0")], [("id[1]", "failed", "k: [red]m")])
    shown.stop()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    for words in ("batch: title [not markup]", "sample [x]: failed", "id[1]  failed  k: [red]m"):
        assert words in text
    assert all(len(line) <= 80 for line in text.splitlines())
