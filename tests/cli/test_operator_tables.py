"""Tables of turns, sessions, threads and workers, and the screen of `top`: pure, from values of a daemon."""

from __future__ import annotations

from typing import Any

import click
import pytest

from codex_pool_cli import listing, tables, views
from codex_pool_cli.keyboard import keys_of
from codex_pool_cli.tables import Column, count_text, fitted, ordered, prefix_chars, size_text, time_text
from codex_pool_cli.top_screen import SECTIONS, Screen, Snapshot, _shares

UUID = "01a22a6a-{:04x}-7c13-a96c-4e8709f7e{:03d}"
ENDPOINT = "ipc:///run/user/1000/codex-pool/default.sock"


def turn(number: int, state: str = "running", **given: Any) -> dict[str, Any]:
    has_begun = state in ("running", "waiting")
    return {
        "turnId": UUID.format(number, number) if has_begun else None,
        "threadId": UUID.format(number, 500 + number),
        "rootTurnId": None,
        "principal": "p1",
        "principalName": "alice",
        "session": f"s12-{number:08x}",
        "client": "codex-pool run",
        "followers": 1,
        "state": state,
        "waitsFor": {"waiting": "commandApproval", "queued": "permit"}.get(state),
        "waitedS": None,
        "place": number if state == "queued" else None,
        "worker": "w0.1-aaaaaa",
        "slot": 0,
        "ageS": 60.0 + number,
        "lastEventAgeS": 0.5 if has_begun else None,
        "tokens": {"totalTokens": 1000 * number} if state == "running" else None,
        **given,
    }


def session(number: int, **given: Any) -> dict[str, Any]:
    return {
        "session": f"s12-{number:08x}",
        "principal": "",
        "principalName": "",
        "client": "codex-tui",
        "program": "codex-tui",
        "programVersion": "0.163.0",
        "listener": "unix",
        "state": "connected",
        "awayS": None,
        "priority": "interactive",
        "turns": 1,
        "waiting": 0,
        "queued": 0,
        "ageS": 3700.0,
        **given,
    }


def worker(slot: int, **given: Any) -> dict[str, Any]:
    return {
        "slot": slot,
        "worker": f"w{slot}.1-aaaaaa",
        "state": "ready",
        "turns": 1,
        "turnsPerWorker": 2,
        "waiting": 0,
        "queued": 0,
        "threads": 3,
        "memoryBytes": 200 << 20,
        "descendants": 0,
        "toolCommands": 0,
        "ageS": 90_000.0,
        "restarts": 0,
        "codexVersion": "0.163.0",
        "appServerPid": 4711,
        **given,
    }


def snapshot(
    turns: int = 3, sessions: int = 2, workers: int = 3, at: float = 100.0, completed: int = 0, **status: Any
) -> Snapshot:
    rows = [worker(slot) for slot in range(workers)]
    lists = {
        "turns": [turn(1, "waiting"), *map(turn, range(2, turns)), turn(turns, "queued")][:turns],
        "sessions": list(map(session, range(sessions))),
        "workers": rows,
    }
    found = {
        "uptimeMs": 3_700_000,
        "workers": rows,
        "turns": {"running": turns - 1, "waiting": 1, "queued": 1, "completed": completed},
        "sessions": lists["sessions"],
        "threads": 12,
        **status,
    }
    return Snapshot(at, found, {name: {"data": rows, "total": len(rows)} for name, rows in lists.items()})


def screen(shown: Snapshot | None = None) -> Screen:
    found = Screen(ENDPOINT, 1.0)
    found.take(shown or snapshot())
    return found


def text(lines: list[Any]) -> str:
    return "\n".join(line.text for line in lines)


# Tables.


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, None), (0.4, "0s"), (59.9, "59s"), (185, "3m05s"), (7440, "2h04m"), (12 * 86400 + 3 * 3600, "12d03h")],
)
def test_durations_take_few_characters(seconds: float | None, shown: str | None) -> None:
    assert time_text(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(None, None), (0, "0"), (999, "999"), (1000, "1.0k"), (12_345, "12.3k"), (4_500_000, "4.5M"), (999_960, "1.0M")],
)
def test_counts_take_few_characters(count: int | None, shown: str | None) -> None:
    assert count_text(count) == shown


def test_sizes_are_in_mib_and_later_in_gib() -> None:
    assert (size_text(None), size_text(197 << 20), size_text(12 << 30)) == (None, "197 MiB", "12.0 GiB")


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("name", sorted(views.VIEWS))
def test_every_table_fits_the_terminal_and_cuts_no_cell_but_ids(name: str, width: int) -> None:
    rows = {
        "turns": [turn(1, "waiting"), turn(2), turn(3, "queued")],
        "sessions": [session(1), session(2, state="away")],
        "workers": [worker(0, restarts=12), worker(1, state="draining")],
        "threads": [
            {
                "threadId": UUID.format(n, n),
                "parentThreadId": None,
                "principalName": "alice",
                "state": "loaded",
                "slot": 0,
                "turnId": None,
                "turns": 4,
                "followers": 1,
                "ephemeral": False,
                "model": "some-model-5.6",
                "cwd": "/home/alice/projects/something/with/a/long/name",
                "idleS": 12.0,
            }
            for n in range(3)
        ],
    }[name]
    table = fitted(views.VIEWS[name].columns, rows, width)
    assert max(map(len, [table.header, *table.lines])) <= width
    for line, row in zip(table.lines, rows, strict=True):
        cells = [column.cell(row) for column in table.columns if not column.is_id]
        assert all(cell in line for cell in cells)
        full = [column.cell(row) for column in table.columns if column.is_id]
        assert all(each[: tables.SHORT_ID_CHARS] in line for each in full)
    whole = fitted(views.VIEWS[name].columns, rows, None)
    assert [column.title for column in whole.columns] == views.VIEWS[name].titles


def test_short_ids_are_long_enough_to_tell_them_apart() -> None:
    assert prefix_chars([]) == prefix_chars(["a"]) == tables.SHORT_ID_CHARS
    ids = ["01a22a6a-e0ee-7aa0-a4f7", "01a22a6a-e0ee-7ee1-8c02", "01a22a6a-e11d-77e0-ab0a", "-"]
    chars = prefix_chars(ids)
    assert chars == 16 and len({each[:chars] for each in ids}) == 4


def test_columns_without_values_go_first_where_there_is_no_room() -> None:
    columns = (
        Column("id", lambda row: row["id"], is_text=True),
        Column("empty", lambda row: None, drop=1),
        Column("full", lambda row: row["full"], drop=2),
    )
    table = fitted(columns, [{"id": "x" * 10, "full": "y" * 5}], 17)
    assert table.header.split() == ["id", "full"]


def test_rows_are_sorted_by_numbers_from_the_greatest_and_texts_from_a() -> None:
    rows = [{"n": 1, "s": "b"}, {"n": None, "s": "A"}, {"n": 3, "s": ""}]
    number, name = Column("n", lambda row: row["n"]), Column("s", lambda row: row["s"], is_text=True)
    assert [row["n"] for row in ordered(rows, number)] == [3, 1, None]
    assert [row["n"] for row in ordered(rows, number, reverse=True)] == [1, 3, None], "what is not known stays last"
    assert [row["s"] for row in ordered(rows, name)] == ["A", "b", ""]


def test_control_characters_of_clients_do_not_reach_the_terminal() -> None:
    table = fitted(views.SESSIONS.columns, [session(1, client="\x1b]0;owned\x07\nx")], None)
    assert "\\x1b]0;owned\\x07 x" in table.lines[0]


class Client:
    """Answers every list with these rows."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def call(self, method: str, params: dict[str, Any]) -> bytes:
        import msgspec

        return msgspec.json.encode({"data": self._rows, "total": len(self._rows)})


def test_a_row_is_found_by_a_unique_beginning_of_its_id() -> None:
    client: Any = Client([turn(1), turn(2), turn(3, "queued")])
    assert listing.find(client, "turns", UUID.format(2, 2)[:14])["ageS"] == 62.0
    with pytest.raises(click.UsageError, match=r"is the beginning of 2 turns: 01a22a6a.*give more of the id"):
        listing.find(client, "turns", "01a22a6a")
    for missing in ("02", "", "None"):
        with pytest.raises(click.UsageError, match="codex-pool turns lists them"):
            listing.find(client, "turns", missing)
    client = Client([worker(0), worker(1), worker(12)])
    assert listing.find(client, "workers", "1")["worker"] == "w1.1-aaaaaa", "a number is that of a slot"
    assert listing.find(client, "workers", "w12")["slot"] == 12


# The screen of top.


@pytest.mark.parametrize("width", [20, 80, 200])
@pytest.mark.parametrize("height", [3, 10, 24, 60])
@pytest.mark.parametrize("view", ["a", "w", "t", "s"])
def test_the_screen_has_exactly_the_size_of_the_terminal(width: int, height: int, view: str) -> None:
    shown = screen(snapshot(turns=40, sessions=30, workers=8))
    shown.press(view)
    lines = shown.lines(width, height, 100.0, "12:34:56")
    assert len(lines) == height and max(len(line.text) for line in lines) <= width


def test_all_sections_have_their_share_of_the_room() -> None:
    lines = screen(snapshot(turns=40, sessions=30)).lines(80, 24, 100.0)
    shown = text(lines)
    assert shown.count("ready") == 4 and shown.count("codex-tui") >= 2
    assert "turns 39 running (1 waiting), 1 queued" in shown
    assert "more turns: press t" in shown and "more sessions: press s" in shown
    assert len([line for line in lines if "01a22a6a" in line.text]) >= 4
    small = text(screen(snapshot(turns=2, sessions=1, workers=2)).lines(80, 24, 100.0))
    assert "more" not in small


@pytest.mark.parametrize("room", [1, 5, 8, 14, 20, 60])
@pytest.mark.parametrize("rows", [(0, 0, 0), (3, 0, 1), (3, 100, 100), (20, 2, 100), (1, 1, 1)])
def test_the_sections_never_take_more_room_than_there_is(room: int, rows: tuple[int, int, int]) -> None:
    shares = _shares(dict(zip(SECTIONS, rows, strict=True)), room)
    assert sum(shares.values()) <= max(0, room - 5) and min(shares.values()) >= 0
    if room == 60 and rows[0] < 20:
        assert shares["workers"] == max(1, rows[0]), "no row is hidden where there is room"


def test_keys_switch_sort_reverse_and_scroll() -> None:
    shown = screen(snapshot(turns=40))
    shown.press("t")
    assert "1-18 of 40" in text(shown.lines(100, 24, 100.0))
    for key in ("page down", "down"):
        shown.press(key)
    assert "20-37 of 40" in text(shown.lines(100, 24, 100.0))
    for _ in range(5):
        shown.press("page down")
    assert "23-40 of 40" in text(shown.lines(100, 24, 100.0)), "it ends at the last row"
    shown.press("home")
    while shown.sorts.get("turns") != "tokens":
        shown.press(">")
        shown.lines(100, 24, 100.0)
    header, first = shown.lines(100, 24, 100.0)[4:6]
    assert "39.0k" in first.text and "tokens*" in header.text
    shown.press("r")
    assert "2.0k" in shown.lines(100, 24, 100.0)[5].text
    shown.press("<")
    assert shown.sorts["turns"] != "tokens"
    assert shown.press("x") and not shown.press("q"), "an unknown key does nothing"


def test_the_rate_is_that_of_the_last_seconds_and_begins_anew_with_a_broker() -> None:
    shown = screen(snapshot(at=100.0, completed=50))
    shown.take(snapshot(at=105.0, completed=60))
    assert "2.0/s" in text(shown.lines(120, 24, 105.0))
    shown.take(snapshot(at=106.0, completed=0))
    assert "/s" not in text(shown.lines(120, 24, 106.0))


def test_a_daemon_that_does_not_answer_is_named_with_the_age_of_what_is_shown() -> None:
    shown = screen()
    shown.asked_at = 101.0
    assert "reconnecting" not in text(shown.lines(80, 24, 102.0))
    assert "reconnecting: no answer for 9s; what follows is 10s old" in text(shown.lines(80, 24, 110.0))
    shown.problem = "no pool at ipc:///x"
    assert "reconnecting: no pool at ipc:///x; what follows is 10s old" in text(shown.lines(80, 24, 110.0))
    assert text(Screen(ENDPOINT, 1.0).lines(80, 24, 0.0)).endswith("connecting ...")


def test_problems_and_slots_without_a_worker_are_shown() -> None:
    failed = worker(0, failedStarts=2, problem="codex: no such file")
    found = snapshot(problems=[{"what": "log file", "message": "/x/log: No space left on device"}])
    found = Snapshot(found.at, found.status, {**found.lists, "workers": {"data": [failed], "total": 1}})
    shown = text(screen(found).lines(120, 24, 100.0))
    assert "the pool is draining" in text(screen(snapshot(mode="draining")).lines(120, 24, 100.0))
    assert "log file: /x/log: No space left on device" in shown
    assert "slot 0: 2 starts failed: codex: no such file" in shown


def test_what_a_limited_key_gets_is_enough_for_a_screen() -> None:
    rows = [{"slot": slot, "state": "ready", "restarts": 0} for slot in range(2)]
    found = snapshot()
    status = {**found.status, "workers": rows}
    shown = screen(Snapshot(found.at, status, {**found.lists, "workers": {"data": rows, "total": 2}}))
    assert "slot state restarts" in text(shown.lines(80, 24, 100.0))
    assert "slot state restarts" in "\n".join(shown.plain_lines(None))


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1b[6~x", ["up", "page down", "x"]),
        (b"\x1bOB", ["down"]),
        (b"\x1b[1;5Cq", ["q"]),
        (b"\x1b", []),
        (b"\x1b[", []),
        (b"\xc3\xa4", ["\xc3", "\xa4"]),
    ],
)
def test_keys_are_read_one_by_one(data: bytes, keys: list[str]) -> None:
    assert keys_of(data) == keys
