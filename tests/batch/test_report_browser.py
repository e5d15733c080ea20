"""The report in a real browser, opened from the disk: clicked, and driven by keys."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from report_runs import InventedRun
from test_report import HOSTILE, OneSample

from codex_batch.report import units, write
from codex_batch.report.leaderboard.results import RunResult
from codex_batch.report.leaderboard.table import table_of
from codex_batch.report.leaderboard.write import write_page
from codex_pool.runtime import processes

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(60)]

Open = Callable[[Path], "Page"]
WAIT_MS = 10_000


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """One browser serves all tests here; that nothing of it is left is seen at its end."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a network."""
    from playwright.sync_api import sync_playwright

    name = os.environ.get("CHROMIUM", "chromium")
    executable = shutil.which(name)
    assert executable is not None, f"no {name} on the PATH; install it (Debian: apt-get install chromium)"
    before = set(processes.descendants(os.getpid()))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=[
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ],
        )
        yield browser
        browser.close()
    deadline = time.monotonic() + 10
    while left := set(processes.descendants(os.getpid())) - before:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.02)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a report from the disk. At the end no script has failed and nothing but the disk was asked for anything."""
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    context.set_default_timeout(WAIT_MS)
    problems: list[str] = []

    def open_page(path: Path, ready: str = "html[data-ready]") -> Page:
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "blob:")) else problems.append(request.url),
        )
        page.on("popup", lambda popup: problems.append(f"popup {popup.url}"))
        page.goto(path.as_uri())
        page.wait_for_selector(ready, state="attached")
        return page

    yield open_page
    context.close()
    assert problems == []


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ten") / "report.html"
    write.write_run_report(InventedRun(10), path)
    return path


@pytest.fixture(scope="module")
def thousands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("thousands") / "monday night.html"
    write.write_run_report(InventedRun(5_000), path)
    return path


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compared") / "compared.html"
    write.write_comparison(InventedRun(60), InventedRun(62, seed=2, skill=0.9, name="tuesday"), path)
    return path


def lines(page: Page) -> Locator:
    return page.locator("#rows tbody tr")


def ids(page: Page) -> list[str]:
    return page.locator("#rows tbody .id").all_inner_texts()


def heading(page: Page, name: str) -> Locator:
    return page.locator("#rows thead button", has_text=re.compile(f"^{name}"))


def column(page: Page, name: str) -> list[str]:
    names = [text.rstrip(" ▲▼") for text in page.locator("#rows thead th").all_inner_texts()]
    return page.locator(f"#rows tbody tr > :nth-child({names.index(name) + 1})").all_inner_texts()


def figures(texts: list[str]) -> list[float]:
    return [float(text.replace(",", "")) for text in texts]


def test_headings_sort(open_page: Open, ten: Path) -> None:
    page = open_page(ten)
    order = ids(page)
    assert len(order) == 10
    heading(page, "Tokens").click()
    assert figures(column(page, "Tokens")) == sorted(figures(column(page, "Tokens")), reverse=True)
    assert page.locator("#rows th[aria-sort]").get_attribute("aria-sort") == "descending"
    heading(page, "Tokens").click()
    assert figures(column(page, "Tokens")) == sorted(figures(column(page, "Tokens")))
    assert page.locator("#rows th[aria-sort]").get_attribute("aria-sort") == "ascending"
    heading(page, "Tokens").click()
    assert ids(page) == order and page.locator("#rows th[aria-sort]").count() == 0
    heading(page, "Sample").click()
    assert ids(page) == sorted(order)
    # What has no score stands last, whichever way.
    for _ in range(2):
        heading(page, "judge").click()
        assert column(page, "judge")[-1] == units.NOTHING


def test_filters_and_search_narrow_the_table(open_page: Open, ten: Path) -> None:
    page = open_page(ten)
    run = InventedRun(10)
    records = [row.record for row in run.samples()]
    failed = sum(record.status == "failed" for record in records)
    page.select_option("#filter-status", "failed")
    assert lines(page).count() == failed and set(column(page, "Status")) == {"failed"}
    assert page.inner_text("#shown") == f"{failed} of 10 samples"
    page.get_by_role("button", name="Show all").click()
    assert lines(page).count() == 10
    page.select_option("#filter-score-0", "passed")
    assert set(column(page, "tests")) == {"✓ passed"}
    page.get_by_role("button", name="Show all").click()
    page.fill("#search", "CLOSE file")
    closing = [row.id for row in run.samples() if row.id.startswith("close")]
    page.locator("#shown", has_text=f"{len(closing)} of 10 samples").wait_for()
    assert ids(page) == closing != []
    page.fill("#search", "no such thing")
    page.locator("#shown", has_text="0 of 10 samples").wait_for()
    assert ids(page) == []
    page.get_by_role("button", name="Show all").click()
    # A status in the totals does the same as the form.
    page.locator("button[data-filter=status]", has_text="completed").click()
    assert set(column(page, "Status")) == {"completed"} and page.input_value("#filter-status") == "completed"


def test_a_sample_shows_its_transcript_diff_and_scores(open_page: Open, ten: Path) -> None:
    page = open_page(ten)
    place, row = next(
        (place, row)
        for place, row in enumerate(InventedRun(10).samples())
        if row.record is not None and row.record.tool_calls and row.scores
    )
    lines(page).nth(place).click()
    dialog = page.get_by_role("dialog")
    dialog.locator(".entry").first.wait_for()
    assert dialog.get_by_role("heading", level=2).inner_text() == row.id
    shown = dialog.inner_text()
    assert row.spec["prompts"][0] in shown and row.record is not None and str(row.record.final_response) in shown
    assert "12 passed" in shown and "judge" in shown
    assert dialog.locator(".e-command").count() == row.record.tool_calls
    assert "$ python -m pytest" in dialog.locator(".e-command pre").first.inner_text()
    assert dialog.locator(".diff .d-add").first.inner_text().startswith("+def rows(path):")
    assert f"1 file, +3 {units.MINUS}2" in shown
    assert page.evaluate("location.hash") == f"#sample-{place}"
    dialog.get_by_role("button", name="Close").click()
    dialog.wait_for(state="hidden")
    assert page.evaluate("location.hash") == ""


def test_everything_can_be_done_with_keys(open_page: Open, ten: Path) -> None:
    page = open_page(ten)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the samples"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "search"
    heading(page, "Time").focus()
    page.keyboard.press("Enter")
    assert page.locator("#rows th[aria-sort]").inner_text().startswith("Time")
    order = ids(page)
    lines(page).nth(0).locator("button").focus()
    page.keyboard.press("Enter")
    title = page.locator("#sample-title")
    page.locator("#sample .content section").first.wait_for()
    assert title.inner_text() == order[0]
    assert page.evaluate("document.querySelector('dialog').contains(document.activeElement)")
    for key, place in (("j", 1), ("j", 2), ("k", 1)):
        page.keyboard.press(key)
        page.locator("#sample-title", has_text=order[place]).wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="hidden")
    # One is back where one was, once the dialog has told that it is closed.
    page.wait_for_function("place => document.activeElement.textContent === place", arg=order[1], timeout=WAIT_MS)


def test_a_link_to_a_sample_opens_it(open_page: Open, ten: Path) -> None:
    page = open_page(ten)
    page.evaluate("location.hash = '#sample-4'")
    page.locator("#sample .content section").first.wait_for()
    assert page.inner_text("#sample-title") == list(InventedRun(10).samples())[4].id
    page.keyboard.press("Escape")
    # And so does a bar of the timeline.
    page.locator("rect[data-n='7']").click()
    page.locator("#sample .content section").first.wait_for()
    assert page.inner_text("#sample-title") == list(InventedRun(10).samples())[7].id


def test_colours_follow_the_system_or_the_button(open_page: Open, ten: Path) -> None:
    page = open_page(ten)

    def lightness() -> int:
        return int(page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"))

    page.emulate_media(color_scheme="light")
    assert lightness() > 200
    page.emulate_media(color_scheme="dark")
    assert lightness() < 60
    button = page.locator("#theme")
    button.click()
    assert button.inner_text() == "Colours: light" and lightness() > 200
    button.click()
    page.emulate_media(color_scheme="light")
    assert button.inner_text() == "Colours: dark" and lightness() < 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(open_page: Open, ten: Path, compared: Path, scheme: str) -> None:
    for path in (ten, compared):
        page = open_page(path)
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        lines(page).nth(0).locator("button").click()
        page.locator("#sample .content section").first.wait_for()
        assert page.evaluate(TOO_FAINT) == []


TOO_FAINT = """() => {
  const read = (color) => (color.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = read(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility() || node.closest("svg, noscript, :disabled, .skip")) continue;
    const [a, b] = [light(read(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(`${node.className}: ${node.textContent.slice(0, 30)}`);
  }
  return found;
}"""


@pytest.mark.parametrize("said", [HOSTILE[0], "".join(HOSTILE)])
def test_what_samples_contain_does_nothing(open_page: Open, tmp_path: Path, said: str) -> None:
    path = tmp_path / "report.html"
    write.write_run_report(OneSample(said), path)
    page = open_page(path)
    lines(page).nth(0).locator("button").click()
    page.locator("#sample .entry").first.wait_for()
    assert page.locator("#sample .boxed").first.evaluate("node => node.textContent") == said
    # Its own two elements of the packed data and its script; nothing was added to them.
    assert page.locator("script").count() == 4
    assert page.locator("img, iframe, object, embed, a[href]:not([href='#samples'])").count() == 0
    for button in page.locator("#sample summary").all():
        button.click()
    write.write_comparison(OneSample(said), OneSample(said), path)
    page = open_page(path)
    lines(page).nth(0).locator("button").click()
    page.locator("#sample .entry").first.wait_for()
    assert page.locator("script").count() == 4


def test_the_policy_would_stop_a_script(open_page: Open, ten: Path, tmp_path: Path) -> None:
    """The second wall: were something taken for markup, it would not run."""
    source = ten.read_text().replace("<main>", '<main><img src=x onerror="window.ran = 1"><script>ran = 1</script>')
    path = tmp_path / "broken.html"
    path.write_text(source)
    page = open_page(path)
    assert page.evaluate("window.ran") is None


def test_five_thousand_samples_open_fast(open_page: Open, thousands: Path) -> None:
    assert thousands.stat().st_size < 10_000_000
    began = time.monotonic()
    page = open_page(thousands)
    assert page.inner_text("#shown") == "5,000 samples, 1 to 100 here"
    took_s = time.monotonic() - began
    assert took_s < 3, took_s
    heading(page, "Tokens").click()
    values = figures(column(page, "Tokens"))
    assert len(values) == 100 and values == sorted(values, reverse=True)
    page.get_by_role("button", name="Page 50 of 50").click()
    assert page.inner_text("#shown").endswith("4,901 to 5,000 here")
    assert figures(column(page, "Tokens"))[0] <= values[-1]
    page.get_by_role("button", name="Previous").click()
    lines(page).nth(50).locator("button").click()
    page.locator("#sample .entry").first.wait_for()
    rows = {row.id: row for row in InventedRun(5_000).samples()}
    row = rows[page.inner_text("#sample-title")]
    assert row.record is not None and str(row.record.thread_id) in page.locator("#sample .facts").inner_text()


def test_a_segment_that_is_missing_or_of_another_report_is_said(
    open_page: Open, thousands: Path, tmp_path: Path
) -> None:
    path = tmp_path / thousands.name
    shutil.copy(thousands, path)
    page = open_page(path)
    lines(page).nth(0).locator("button").click()
    problem = page.locator("#sample .problem")
    problem.wait_for()
    assert "monday night.segments/000000.js is not beside this file" in problem.inner_text()
    page.keyboard.press("Escape")
    segments = tmp_path / "monday night.segments"
    segments.mkdir()
    (segments / "000000.js").write_text('codexPoolSegment("another",0,"");\n')
    lines(page).nth(0).locator("button").click()
    page.locator("#sample .problem", has_text="belongs to another report").wait_for()
    page.keyboard.press("Escape")
    shutil.copy(thousands.with_name("monday night.segments") / "000000.js", segments)
    lines(page).nth(0).locator("button").click()
    page.locator("#sample .entry").first.wait_for()


def test_a_comparison_shows_who_got_better_and_who_got_worse(open_page: Open, compared: Path) -> None:
    page = open_page(compared)
    a, b = InventedRun(60), InventedRun(62, seed=2, skill=0.9)
    values = []
    for run in (a, b):
        values.append({row.id: score.value for row in run.samples() for score in row.scores if score.scorer == "tests"})
    both = values[0].keys() & values[1].keys()
    better = {name for name in both if values[1][name] > values[0][name]}
    worse = {name for name in both if values[1][name] < values[0][name]}
    for way, expected in (("better", better), ("worse", worse)):
        button = page.locator(f"button[data-filter=change][data-value='0:{way}']:not([data-tag])")
        assert button.inner_text().split()[-1] == str(len(expected))
        button.click()
        assert set(ids(page)) == expected
    page.get_by_role("button", name="Show all").click()
    page.select_option("#filter-status", "only in B")
    assert lines(page).count() == 2
    lines(page).nth(0).locator("button").click()
    halves = page.locator("#sample .half")
    halves.nth(1).locator(".entry").first.wait_for()
    assert "This run has no such sample." in halves.nth(0).inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Show all").click()
    lines(page).nth(0).locator("button").click()
    halves.nth(1).locator(".entry").first.wait_for()
    assert [half.split("\n")[0] for half in halves.all_inner_texts()] == ["Amonday", "Btuesday"]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("board") / "leaderboard.html"
    results = []
    for seed in range(4):
        run = InventedRun(40, name=f"run-{seed}-with-a-name-that-is-long", seed=seed, skill=0.4 + seed / 10)
        results.append(RunResult(run.name, run.info()))
        for row in run.samples():
            results[-1].add(row)
    write_page(table_of(results, 1), path)
    return path


def ranks(page: Page) -> list[str]:
    return page.locator(".of-scorer:not([hidden]) table >> nth=0 >> tbody .rank").all_inner_texts()


def test_a_leaderboard_is_sorted_and_shows_one_scorer_at_a_time(open_page: Open, board: Path) -> None:
    page = open_page(board)
    assert ranks(page) == ["1", "2", "3", "4"]
    cells = page.locator(".of-scorer:not([hidden]) table >> nth=0 >> tbody td[data-label=Tokens]")
    tokens = page.locator(".of-scorer:not([hidden]) thead button", has_text="Tokens")
    for down in (False, True):
        tokens.click()
        found = [float(cell.get_attribute("data-value") or "") for cell in cells.all()]
        assert found == sorted(found, reverse=down)
    page.locator(".of-scorer:not([hidden]) thead button", has_text="Cost").click()
    assert page.locator("th[aria-sort]").inner_text().startswith("Cost")
    page.locator(".of-scorer:not([hidden]) thead button", has_text="#").click()
    assert ranks(page) == ["1", "2", "3", "4"]
    page.select_option("#choose-scorer", label="judge")
    assert page.locator(".of-scorer:not([hidden]) h3").first.inner_text() == "judge"
    assert page.locator(".of-scorer:not([hidden])").count() == 1


def test_a_leaderboard_survives_a_narrow_window(open_page: Open, board: Path) -> None:
    page = open_page(board)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Nothing has to be scrolled sideways within the table either, and every figure has its label.
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every((one) => one.scrollWidth <= one.clientWidth)")
    scored = page.locator(".of-scorer:not([hidden]) td[data-label=Scored]").first
    assert scored.evaluate("(cell) => getComputedStyle(cell, '::before').content") == '"Scored"'
    page.select_option("#choose-order", label="Tokens")
    cells = page.locator(".of-scorer:not([hidden]) table >> nth=0 >> tbody td[data-label=Tokens]")
    found = [float(cell.get_attribute("data-value") or "") for cell in cells.all()]
    assert found == sorted(found)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert page.evaluate(TOO_FAINT) == []


def test_it_fits_a_narrow_window(open_page: Open, ten: Path) -> None:
    page = open_page(ten)
    page.set_viewport_size({"width": 420, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
