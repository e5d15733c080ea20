"""`codex-pool runs view`: which requests are answered, what a page of a run that goes on holds, and what it costs."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from runs import make_run

from codex_batch.dataset import Sample
from codex_batch.report.leaderboard.operands import Chosen
from codex_batch.report.packing import unpack
from codex_batch.run.live_transcripts import EVERY_S, FOLLOW_S, MAX_FOLLOWED, LiveTranscripts, path_of
from codex_batch.store import Entry, EventLog, RunDirectory, layout
from codex_batch.store.segments import read_lines
from codex_batch.view.access import Refused, admit
from codex_batch.view.live_result import MIN_REST_S, LiveResult
from codex_batch.view.runs import LOOK_EVERY_S, Runs
from codex_batch.view.server import MAX_CONNECTIONS, ViewServer

HOSTILE = "</script><script>alert(1)</script>"
EVENT: Mapping[str, Any] = {
    "method": "item/completed",
    "params": {"item": {"type": "agentMessage", "id": "m", "text": HOSTILE}},
}


def sample(name: str) -> Sample:
    return Sample(name, (f"Prompt of {name} {HOSTILE}",))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# Who is answered.


@pytest.mark.parametrize(
    ("method", "target", "headers", "status"),
    [
        ("POST", "/t/", {"host": "127.0.0.1:1"}, 405),
        ("GET", "/t/", {}, 403),
        ("GET", "/t/", {"host": "rebound.example:1"}, 403),
        ("GET", "/t/", {"host": "127.0.0.1.example:1"}, 403),
        ("GET", "/t/", {"host": "[::1"}, 403),
        ("GET", "/t/", {"host": "127.0.0.1:1", "origin": "http://evil.example"}, 403),
        ("GET", "/t/", {"host": "127.0.0.1:1", "origin": "null"}, 403),
        ("GET", "/t/", {"host": "127.0.0.1:1", "origin": "http://127.0.0.1:2"}, 403),
        ("GET", "/t/", {"host": "127.0.0.1:1", "sec-fetch-site": "cross-site"}, 403),
        ("GET", "/", {"host": "127.0.0.1:1"}, 403),
        ("GET", "/wrong/", {"host": "127.0.0.1:1"}, 403),
        ("GET", "/tt/", {"host": "127.0.0.1:1"}, 403),
        ("GET", "/%74/", {"host": "127.0.0.1:1"}, 403),
        ("GET", "/t", {"host": "127.0.0.1:1"}, 404),
        ("GET", "//[/t/", {"host": "127.0.0.1:1"}, 400),
    ],
)
def test_requests_that_are_refused(method: str, target: str, headers: Mapping[str, str], status: int) -> None:
    with pytest.raises(Refused) as refused:
        admit(method, target, headers, "t")
    assert refused.value.status == status


def test_a_request_with_the_token_is_admitted() -> None:
    for host in ("127.0.0.1:8000", "localhost:9", "[::1]:7"):
        request = admit("GET", "/t/run/a%2Fb/?version=1", {"host": host, "origin": f"http://{host}"}, "t")
        assert request.path == ("run", "a/b", "") and request.query == {"version": "1"}


# Over HTTP.


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(
        tmp_path / "runs" / "monday", [(sample("one"), HOSTILE), (sample("two"), None)], events={"one": [EVENT]}
    )


@pytest.fixture
def server(run: Path) -> Iterator[ViewServer]:
    with ViewServer(Runs([run.parent])) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def get(address: str, path: str = "", **headers: str) -> tuple[int, str, Mapping[str, str]]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", parts.path + path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.headers)


def test_the_pages_of_a_run(server: ViewServer) -> None:
    status, _, headers = get(server.address)
    where = headers["Location"]
    assert status == 302 and where.startswith("run/")
    status, page, headers = get(server.address, where)
    assert status == 200 and "monday" in page and HOSTILE not in page
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    status, packed, _ = get(server.address, f"{where}sample/1")
    detail = unpack(packed)
    assert detail["response"] == HOSTILE and detail["attempts"][0]["entries"][0]["text"] == HOSTILE
    status, packed, _ = get(server.address, f"{where}changes?version=")
    change = unpack(packed)
    assert HOSTILE not in change["figures"] and [row[0] for row in change["rows"]] == ["one", "two"]
    assert get(server.address, f"{where}changes?version={change['version']}")[:2] == (204, "")


def test_the_list_of_runs(server: ViewServer, tmp_path: Path) -> None:
    status, page, _ = get(server.address, "?list=1")
    assert status == 200 and "<h1>Runs</h1>" in page
    listed = unpack(get(server.address, "runs")[1])
    (line,) = listed["runs"]
    assert (line["name"], line["done"], line["total"], line["state"]) == ("monday", 2, 2, "finished")
    assert get(server.address, f"runs?version={listed['version']}")[0] == 204


def test_what_there_is_not_is_said(server: ViewServer) -> None:
    where = get(server.address)[2]["Location"]
    for path in ("nothing", "run/0/", f"{where}sample/99", f"{where}sample/../1", f"{where}sample/{'9' * 40}"):
        status, text, headers = get(server.address, path)
        assert (status == 404 and "there is no such" in text) or "no such sample" in text, path
        assert headers["Content-Type"].startswith("text/plain")
    assert get(server.address.replace(server.token, "guess"))[0] == 403
    assert get(server.address, Host="evil.example")[0] == 403


def test_two_tabs_see_a_run_that_is_removed_and_one_that_takes_its_place(server: ViewServer, run: Path) -> None:
    where = get(server.address)[2]["Location"]
    version = unpack(get(server.address, f"{where}changes?version=")[1])["version"]
    paths = [where, f"{where}changes?version={version}", f"{where}changes?version=", f"{where}sample/1"]

    def tab(path: str) -> tuple[int, str]:
        status, text, _ = get(server.address, path)
        return status, text

    with ThreadPoolExecutor(2) as tabs:
        assert {status for status, _ in tabs.map(tab, paths * 2)} == {200, 204}
        shutil.rmtree(run)
        gone = list(tabs.map(tab, paths * 2))
        assert {status for status, _ in gone} <= {200, 204, 404, 409}, gone
        assert all("no such directory" in text for status, text in gone if status == 409)
        make_run(run, [(sample("three"), "again")])
        assert {status for status, _ in tabs.map(tab, paths * 2)} <= {200, 204, 404, 409}
    assert get(server.address, "?list=1")[0] == 200


def test_connections_are_bounded(server: ViewServer) -> None:
    parts = urlsplit(server.address)
    held = []
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            connection = http.client.HTTPConnection(parts.netloc, timeout=10)
            stack.callback(connection.close)
            connection.request("GET", parts.path + "runs")
            assert connection.getresponse().read()
            held.append(connection)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            get(server.address)
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(http.client.RemoteDisconnected, ConnectionError):
            if get(server.address)[0] == 302:
                break
        assert time.monotonic() < deadline
        time.sleep(0.02)


# What a page is made of.


def test_a_run_is_read_again_when_it_has_changed_and_rested(tmp_path: Path) -> None:
    clock = Clock()
    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        directory.launch({})
        directory.load([Entry(s.id, s.epoch, s.digest, s.to_json(), s.tags) for s in [sample("one")]], "d.jsonl")
        result = LiveResult(Chosen(tmp_path, "", "run", 0), clock)
        first = unpack(result.changes("") or "")
        assert first["state"] == "running · 0 of 1 sample" and first["rows"][0][2] == "not run"
        directory.start_attempt(directory.store.sample("one").n, "key", "thread").result(5)
        assert result.changes(first["version"]) is None, "it rests"
        clock.now += MIN_REST_S
        second = unpack(result.changes(first["version"]) or "")
        assert second["rows"][0][2] == "running"
        clock.now += MIN_REST_S
        assert result.changes(second["version"]) is None


def test_runs_come_and_go(tmp_path: Path) -> None:
    clock = Clock()
    runs = Runs([tmp_path], clock)
    assert unpack(runs.changes("") or "")["runs"] == []
    make_run(tmp_path / "a" / "run", [(sample("one"), "x")])
    make_run(tmp_path / "b" / "run", [(sample("one"), "x")])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / layout.DATABASE).write_text("no database")
    clock.now += 60
    lines = unpack(runs.changes("") or "")["runs"]
    assert [line["name"] for line in lines] == ["a/run", "b/run", "c"]
    assert lines[2]["problem"] and runs.only() is None
    key = lines[1]["key"]
    assert "b/run" in runs.result(key).page()
    with pytest.raises(KeyError):
        runs.result(lines[2]["key"])
    for path in sorted((tmp_path / "a" / "run").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    clock.now += LOOK_EVERY_S + 60
    assert [line["key"] for line in unpack(runs.changes("") or "")["runs"]] == [key, lines[2]["key"]]


# Events of what runs.


def events(count: int) -> EventLog:
    log = EventLog()
    for number in range(count):
        log.add(b'{"n": %d}' % number)
    return log


def lines(path: Path) -> list[dict[str, int]]:
    return [json.loads(line) for line in read_lines(path, 0, path.stat().st_size)]


def test_a_snapshot_does_not_disturb_the_log() -> None:
    log, plain = events(3), events(0)
    assert plain.snapshot() is None
    first = log.snapshot()
    log.add(b'{"n": 3}')
    assert first is not None and log.snapshot() != first
    member = log.member()
    for text, count in ((first, 3), (member, 4)):
        assert text is not None
        import gzip

        assert gzip.decompress(text).count(b"\n") == count


def test_the_events_of_a_sample_that_is_followed_are_written(tmp_path: Path) -> None:
    clock = Clock()
    live = LiveTranscripts(tmp_path, clock)
    log = events(2)
    path = path_of(tmp_path / layout.LIVE, 7, 1)
    with live.attempt(7, 1, log):
        live.refresh()
        assert not path.exists(), "nobody looks at it"
        live.follow(7)
        live.refresh()
        assert lines(path) == [{"n": 0}, {"n": 1}]
        log.add(b'{"n": 2}')
        live.refresh()
        assert len(lines(path)) == 2, f"at most each {EVERY_S} s"
        clock.now += EVERY_S
        live.refresh()
        assert len(lines(path)) == 3
        clock.now += FOLLOW_S
        log.add(b'{"n": 3}')
        live.refresh()
        assert len(lines(path)) == 3, "it is not looked at any more"
    live.clear()
    assert not path.parent.exists()


def test_so_many_samples_are_followed_at_most(tmp_path: Path) -> None:
    live = LiveTranscripts(tmp_path, Clock())
    with contextlib.ExitStack() as stack:
        for n in range(MAX_FOLLOWED + 2):
            stack.enter_context(live.attempt(n, 1, events(1)))
            live.follow(n)
        live.refresh()
    assert len(list((tmp_path / layout.LIVE).iterdir())) == MAX_FOLLOWED
