"""`codex-pool runs view` in a real browser: a run that goes on, its transcripts, the list of runs."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from programs import running
from runs import make_run
from test_report_browser import WAIT_MS, browser, ids, lines, nothing_left

from codex_batch.dataset import Sample
from codex_batch.manage import control
from codex_batch.run.live_transcripts import LiveTranscripts
from codex_batch.scoring import Score
from codex_batch.store import Entry, EventLog, RecordRow, RunDirectory
from codex_batch.view.runs import Runs
from codex_batch.view.server import ViewServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser", "nothing_left"]
pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

HOSTILE = "<img src=x onerror=alert(1)>"
OPEN_LIMIT_S = 3.0
IDLE_S, IDLE_SHARE = 6.0, 0.05

Open = Callable[[Path], "Page"]


@pytest.fixture
def open_view(browser: Browser) -> Iterator[Open]:
    """Opens what the server shows of a directory. At the end no script has failed and nothing else was asked for."""
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    context.set_default_timeout(WAIT_MS)
    problems: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_view(directory: Path) -> Page:
            server = stack.enter_context(ViewServer(Runs([directory])))
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            stack.callback(thread.join, 10)
            stack.callback(server.shutdown)
            page = context.new_page()
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("dialog", lambda dialog: (problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
            page.on(
                "request",
                lambda request: None if request.url.startswith(server.address) else problems.append(request.url),
            )
            page.goto(server.address)
            page.wait_for_selector("html[data-ready]", state="attached")
            return page

        yield open_view
        context.close()
    assert problems == []


def sample(number: int) -> Sample:
    return Sample(f"sample-{number:04}", (f"Prompt {number} {HOSTILE}",), tags=("odd" if number % 2 else "even",))


class Going:
    """A run that goes on as the test wants it to."""

    def __init__(self, path: Path, samples: int) -> None:
        self.directory = RunDirectory(path)
        self.live = LiveTranscripts(path)
        self.directory.launch({"scorers": ["exact"], "dataset": {"name": "d.jsonl"}})
        entries = [Entry(s.id, s.epoch, s.digest, s.to_json(), s.tags) for s in map(sample, range(samples))]
        self.directory.load(entries, "d.jsonl")
        self.numbers = [row.n for row in self.directory.store.samples()]

    def finish(self, places: range) -> None:
        """Let samples end, each with two events."""
        store = self.directory
        starts = [store.start_attempt(self.numbers[place], "key", "thread") for place in places]
        ends: list[Any] = []
        for place, started in zip(places, starts, strict=True):
            log = EventLog()
            for text in ("first", HOSTILE):
                log.add(message(text))
            record = RecordRow(status="completed", attempts=1, final_response=f"Answer {place} {HOSTILE}")
            ends.append(store.finish(started.result(30), record, {"status": "completed"}, events=log.member()))
        for end in ends:
            end.result(30)
        for place in places[:20]:
            store.replace_scores(self.numbers[place], [Score(scorer="exact", value=float(place % 2))])


def message(text: str) -> bytes:
    item = {"type": "agentMessage", "id": f"m-{text[:5]}", "text": text}
    return json.dumps({"method": "item/completed", "params": {"item": item}}).encode()


@pytest.fixture
def going(tmp_path: Path) -> Iterator[Going]:
    going = Going(tmp_path / "runs" / "tonight", 6)
    with contextlib.closing(going.directory):
        yield going


def test_a_page_follows_its_run(going: Going, open_view: Open) -> None:
    page = open_view(going.directory.path.parent)
    page.locator("#live", has_text="running · 0 of 6 samples").wait_for()
    page.fill("#search", "sample-000")
    page.locator("#rows thead button", has_text="Sample").click()
    page.locator("#rows thead button", has_text="Sample").click()
    assert ids(page)[0] == "sample-0005"
    going.finish(range(2))
    page.locator("#live", has_text="2 of 6 samples").wait_for()
    page.locator(".legend", has_text="2 completed").wait_for()
    assert ids(page)[0] == "sample-0005" and page.input_value("#search") == "sample-000", "what was chosen stays"
    page.locator("button[data-filter=status]", has_text="2 completed").click()
    assert ids(page) == ["sample-0001", "sample-0000"]
    assert page.locator("#figures .scores tbody tr").first.inner_text().startswith("exact")
    going.finish(range(2, 3))
    page.locator("#live", has_text="3 of 6 samples").wait_for()
    page.wait_for_function("document.querySelectorAll('#rows tbody tr').length === 3")
    going.directory.outcome("finished", {})
    page.locator("#live", has_text="ended · 3 of 6 samples").wait_for()


def test_the_transcript_of_a_sample_that_runs_is_shown_as_it_comes(going: Going, open_view: Open) -> None:
    start = going.directory.start_attempt(going.numbers[0], "key", "thread").result(10)
    log = EventLog()
    log.add(message("begun"))
    stop = threading.Event()

    def monitor() -> None:
        while not stop.wait(0.05):
            for request in control.requests(going.directory.path):
                going.live.follow(request["follow"])
            going.live.refresh()

    thread = threading.Thread(target=monitor)
    thread.start()
    try:
        with going.live.attempt(going.numbers[0], start.attempt, log):
            page = open_view(going.directory.path)
            page.locator("#rows tbody .id").first.click()
            page.locator("#sample .entries", has_text="begun").wait_for()
            log.add(message(HOSTILE))
            page.locator("#sample .entries", has_text=HOSTILE).wait_for()
            assert page.locator("#sample img").count() == 0
        record = RecordRow(status="completed", attempts=1, final_response="done")
        going.directory.finish(start, record, {"status": "completed"}, events=log.member()).result(10)
        page.locator("#sample", has_text="completed").wait_for()
        page.locator("#sample .prose", has_text="done").wait_for()
    finally:
        stop.set()
        thread.join(10)


def test_the_list_is_searched_and_leads_to_a_run_and_back(tmp_path: Path, open_view: Open) -> None:
    for name in ("monday", "tuesday", f"<b>{'x' * 40}"):
        make_run(tmp_path / name, [(sample(0), "x")])
    page = open_view(tmp_path)
    assert page.locator("#runs tbody tr").count() == 3 and page.locator("#runs b").count() == 0
    page.fill("#search", "tues")
    page.locator("#shown", has_text="1 of 3 runs").wait_for()
    page.locator("#runs a").click()
    page.locator("h1", has_text="tuesday").wait_for()
    page.click("nav a")
    page.locator("h1", has_text="Runs").wait_for()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_command_serves_until_it_is_ended_and_the_page_says_so(going: Going, browser: Browser) -> None:
    context = browser.new_context()
    with contextlib.closing(context), running("runs", "view", str(going.directory.path)) as program:
        page = context.new_page()
        page.goto(program.wait_for_line("http://127.0.0.1:", "stdout"))
        page.wait_for_selector("html[data-ready]", state="attached")
        assert program.end() == 0
        page.locator("#live", has_text="Not connected").wait_for(timeout=WAIT_MS)


def test_five_thousand_samples_open_at_once_and_cost_nothing_idle(tmp_path: Path, open_view: Open) -> None:
    going = Going(tmp_path / "large", 5_000)
    with contextlib.closing(going.directory):
        going.finish(range(5_000))
        going.directory.outcome("finished", {})
        took_s = []
        for _ in range(3):
            began = time.monotonic()
            page = open_view(going.directory.path)
            took_s.append(time.monotonic() - began)
            assert lines(page).count() == 100
        assert min(took_s) < OPEN_LIMIT_S
        cpu_s, began = time.process_time(), time.monotonic()
        page.wait_for_timeout(IDLE_S * 1000)
        share = (time.process_time() - cpu_s) / (time.monotonic() - began)
        assert share < IDLE_SHARE, f"{share:.1%} of a core"
