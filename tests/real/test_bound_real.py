"""Commands, processes, watches and searches of a connection, alike on one app-server and on a pool.

Also what a client is told about itself: its name, and the warnings that a new connection gets.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from raw_client import RawClient, base64_of
from test_policy_real import House
from test_pool_client import cut
from test_pool_real import broker_of, wait_until

from codex_app_server import AppServerConfig
from codex_app_server.transport import StdioTransport
from codex_pool import Pool
from codex_pool.client.session import Session
from codex_pool.client.transport import PoolTransport
from codex_pool.runtime import processes

pytestmark = pytest.mark.real

ANYWHERE = {"type": "dangerFullAccess"}
# Clients choose ids as they like: this one has 60 characters, and slashes.
LONG_ID = "thread/0197c2a4-e2ae-7f42-a4b3-1f4f0b2f1234/terminal/" + "7" * 9
assert len(LONG_ID) == 62 and LONG_ID.count("/") == 3

Connect = Callable[..., RawClient]


@contextmanager
def clients(make: Callable[[], Any]) -> Iterator[Connect]:
    """Connects clients, and closes them."""
    with ExitStack() as stack:

        def connect(**options: Any) -> RawClient:
            client = RawClient(make(), **options)
            stack.callback(client.close)
            return client

        yield connect


@pytest.fixture(params=["alone", "pool"])
def connect(request: pytest.FixtureRequest, config: AppServerConfig) -> Iterator[Connect]:
    """Connects clients to an app-server of their own each, or to a pool of two."""
    if request.param == "alone":
        with clients(lambda: StdioTransport(config)) as connect:
            yield connect
    else:
        with Pool(2, config) as pool, clients(lambda: PoolTransport(pool.endpoint)) as connect:
            yield connect


@pytest.fixture
def pool(config: AppServerConfig, tmp_path: Path) -> Iterator[Pool]:
    with Pool(2, config, log_file=tmp_path / "pool.log") as pool:
        yield pool


@pytest.fixture
def on_pool(pool: Pool) -> Iterator[Connect]:
    with clients(lambda: PoolTransport(pool.endpoint)) as connect:
        yield connect


def workers(client: RawClient) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = client.call("pool/status")["workers"]
    return rows


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pid_of(output: bytes) -> int:
    return int(output.split()[0])


def forgotten(client: RawClient, method: str, **params: Any) -> Any:
    """The answer to a request about a command or process that has ended, once the app-server has forgotten it.

    For a moment after its end an app-server says that it is "no longer running".
    """
    until = time.monotonic() + 10.0
    while "is no longer running" in (answer := client.call(method, **params)).get("message", ""):
        assert time.monotonic() < until, answer
    return answer


def shell(command: str) -> list[str]:
    return ["/bin/sh", "-c", command]


# Alike on both.


def test_a_terminal(connect: Connect) -> None:
    client = connect()
    running = client.begin(
        "command/exec",
        command=shell("stty size; cat"),
        processId=LONG_ID,
        tty=True,
        size={"rows": 20, "cols": 70},
        sandboxPolicy=ANYWHERE,
        disableTimeout=True,
    )
    assert client.output(LONG_ID, until=b"20 70\r\n") == b"20 70\r\n"
    assert client.call("command/exec/write", processId=LONG_ID, deltaBase64=base64_of(b"hello\n")) == {}
    client.output(LONG_ID, until=b"hello\r\nhello\r\n")
    assert client.call("command/exec/resize", processId=LONG_ID, size={"rows": 5, "cols": 9}) == {}
    again = client.call("command/exec", command=["/bin/true"], processId=LONG_ID, tty=True)
    assert again == {"code": -32600, "message": f'duplicate active command/exec process id: "{LONG_ID}"'}
    assert client.call("command/exec/terminate", processId=LONG_ID) == {}
    assert client.answer(running) == {"exitCode": 1, "stdout": "", "stderr": ""}
    refused = forgotten(client, "command/exec/terminate", processId=LONG_ID)
    assert refused == {"code": -32600, "message": f'no active command/exec for process id "{LONG_ID}"'}
    # The id is free again.
    short = {"command": shell("echo out; echo err >&2; exit 3"), "processId": LONG_ID, "sandboxPolicy": ANYWHERE}
    assert client.call("command/exec", **short) == {"exitCode": 3, "stdout": "out\n", "stderr": "err\n"}


def test_the_answer_of_a_command_comes_after_all_that_it_has_written(connect: Connect) -> None:
    client = connect()
    running = client.begin(
        "command/exec",
        command=shell("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done"),
        processId="p",
        streamStdoutStderr=True,
        disableOutputCap=True,
        sandboxPolicy=ANYWHERE,
    )
    assert client.answer(running)["exitCode"] == 0
    before = [each.get("method") or each.get("id") for each in client.messages]
    assert "command/exec/outputDelta" not in before[before.index(running) :]
    assert client.output("p") == b"".join(b"line %d\n" % number for number in range(3000))


def test_a_process(connect: Connect, work: Path) -> None:
    client = connect()
    spawn = {"command": ["/bin/cat"], "cwd": str(work), "processHandle": LONG_ID, "tty": True}
    started = client.begin("process/spawn", **spawn)
    assert client.answer(started) == {}
    duplicate = client.call("process/spawn", **spawn)
    assert duplicate == {"code": -32600, "message": f'duplicate active process handle: "{LONG_ID}"'}
    client.call("process/writeStdin", processHandle=LONG_ID, deltaBase64=base64_of(b"hi\n"))
    client.output(LONG_ID, until=b"hi\r\nhi\r\n", field="processHandle")
    assert client.call("process/resizePty", processHandle=LONG_ID, size={"rows": 5, "cols": 9}) == {}
    assert client.call("process/kill", processHandle=LONG_ID) == {}
    (exited,) = client.notifications("process/exited")
    assert exited == {
        "processHandle": LONG_ID,
        "exitCode": 1,
        "stdout": "",
        "stdoutCapReached": False,
        "stderr": "",
        "stderrCapReached": False,
    }
    refused = forgotten(client, "process/kill", processHandle=LONG_ID)
    assert refused == {"code": -32600, "message": f'no active process for process handle "{LONG_ID}"'}
    missing = client.call("process/spawn", command=["/no/such/file"], cwd=str(work), processHandle="m")
    assert missing["code"] == -32603 and "No such file" in missing["message"]
    # One that ends at once: its answer comes first.
    for number in range(20):
        handle = f"short {number}"
        client.call("process/spawn", command=["/bin/true"], cwd=str(work), processHandle=handle)
    client.notifications("process/exited", 21)
    order = [each.get("method") or each.get("id") for each in client.messages]
    handles = [each["params"]["processHandle"] for each in client.messages if each.get("method") == "process/exited"]
    assert sorted(handles[1:]) == sorted(f"short {number}" for number in range(20))
    assert order.index(started) < order.index("process/outputDelta")


def test_requests_that_are_refused(connect: Connect, work: Path) -> None:
    client = connect()
    cwd = str(work)
    refused = {
        "no id": client.call("command/exec", command=["/bin/true"], tty=True),
        "empty handle": client.call("process/spawn", command=["/bin/true"], cwd=cwd, processHandle=""),
        "empty search": client.call("fuzzyFileSearch/sessionStart", sessionId="", roots=[cwd]),
        "no search": client.call("fuzzyFileSearch/sessionUpdate", sessionId="x/y", query="f"),
        "relative": client.call("fs/watch", watchId="w", path="x"),
        "no process": client.call("process/writeStdin", processHandle="x/y", deltaBase64="aGk="),
        "no parameters": client.call("command/exec/write"),
        "wrong type": client.call("fs/watch", watchId=7, path=cwd),
    }
    assert {name: error.get("code") for name, error in refused.items()} == dict.fromkeys(refused, -32600), refused
    assert refused["no id"]["message"] == "command/exec tty or streaming requires a client-supplied processId"
    assert refused["empty handle"]["message"] == "processHandle must not be empty"
    assert refused["empty search"]["message"] == "sessionId must not be empty"
    assert refused["no search"]["message"] == "fuzzy file search session not found: x/y"
    assert refused["no process"]["message"] == 'no active process for process handle "x/y"'
    # Stopping what is not there succeeds.
    assert client.call("fs/unwatch", watchId="x") == {}
    assert client.call("fuzzyFileSearch/sessionStop", sessionId="x") == {}
    # Without an id, and with an empty one.
    assert client.call("command/exec", command=["/bin/echo", "a"], sandboxPolicy=ANYWHERE)["stdout"] == "a\n"
    assert client.call("command/exec", command=["/bin/echo", "b"], processId="")["stdout"] == "b\n"
    timed_out = client.call("command/exec", command=["/bin/sleep", "9"], timeoutMs=100, sandboxPolicy=ANYWHERE)
    assert timed_out["exitCode"] == 124


def test_a_watch(connect: Connect, work: Path) -> None:
    client = connect()
    file = work / "note"
    file.write_text("1")
    assert client.call("fs/watch", watchId=LONG_ID, path=str(file)) == {"path": str(file)}
    again = client.call("fs/watch", watchId=LONG_ID, path=str(work))
    assert again == {"code": -32600, "message": f"watchId already exists: {LONG_ID}"}
    file.write_text("2")
    assert client.notifications("fs/changed")[0] == {"watchId": LONG_ID, "changedPaths": [str(file)]}
    assert client.call("fs/unwatch", watchId=LONG_ID) == {}
    # The id is free again, at once.
    client.begin("fs/unwatch", watchId=LONG_ID)
    assert client.call("fs/watch", watchId=LONG_ID, path=str(work)) == {"path": str(work)}
    came = len(client.notifications("fs/changed"))
    (work / "other").write_text("x")
    assert str(work / "other") in client.notifications("fs/changed", came + 1)[-1]["changedPaths"]


def test_a_search(connect: Connect, work: Path) -> None:
    client = connect()
    (work / "needle.txt").write_text("x")
    assert client.call("fuzzyFileSearch/sessionStart", sessionId=LONG_ID, roots=[str(work)]) == {}
    assert client.call("fuzzyFileSearch/sessionUpdate", sessionId=LONG_ID, query="needle") == {}
    client.wait(
        lambda each: (
            each.get("method") == "fuzzyFileSearch/sessionUpdated"
            and [file["path"] for file in each["params"]["files"]] == ["needle.txt"]
        )
    )
    assert client.notifications("fuzzyFileSearch/sessionCompleted")[0] == {"sessionId": LONG_ID}
    assert client.call("fuzzyFileSearch/sessionStart", sessionId=LONG_ID, roots=[str(work)]) == {}
    assert client.call("fuzzyFileSearch/sessionStop", sessionId=LONG_ID) == {}
    over = client.call("fuzzyFileSearch/sessionUpdate", sessionId=LONG_ID, query="needle")
    assert over == {"code": -32600, "message": f"fuzzy file search session not found: {LONG_ID}"}


def test_a_command_ends_with_its_client(connect: Connect, work: Path) -> None:
    client = connect()
    script = shell("echo $$; exec sleep 1000")
    client.begin("command/exec", command=script, processId="p", streamStdoutStderr=True, sandboxPolicy=ANYWHERE)
    client.call("process/spawn", command=script, cwd=str(work), processHandle="h", streamStdoutStderr=True)
    client.begin("command/exec", command=shell("echo $$ > pid; exec sleep 1000"), cwd=str(work), sandboxPolicy=ANYWHERE)
    pids = [
        pid_of(client.output("p", until=b"\n")),
        pid_of(client.output("h", until=b"\n", field="processHandle")),
        int(wait_until(lambda: (work / "pid").exists() and (work / "pid").read_text(), "a pid")),
    ]
    assert all(map(alive, pids))
    client.close()
    wait_until(lambda: not any(map(alive, pids)), "the commands have ended")


@pytest.fixture
def no_such_setting(home: Path) -> None:
    """The configuration has a setting that codex does not know."""
    config = home / "config.toml"
    config.write_text(f"no_such_setting = 1\n{config.read_text()}")


def test_what_a_client_is_told_about_itself(no_such_setting: None, connect: Connect, home: Path) -> None:
    client = connect(name="my-editor", version="9.8")
    agent = client.initialized["userAgent"]
    assert agent.startswith("my-editor/0.") and agent.endswith(" (my-editor; 9.8)"), agent
    assert client.initialized["codexHome"] == str(home)
    # A machine without bubblewrap has a warning of its own.
    found = [warning["summary"] for warning in client.notifications("configWarning")]
    assert ["no_such_setting" in each for each in found if "bubblewrap" not in each] == [True], found
    client.notifications("remoteControl/status/changed")
    refused = client.call("initialize", clientInfo={"name": "a\nb", "version": "1"}, capabilities=None)
    assert refused["code"] == -32600


# On a pool.


def test_two_clients_with_the_same_ids(on_pool: Connect, work: Path) -> None:
    first, second = on_pool(), on_pool()
    for client, text in ((first, "one"), (second, "two")):
        client.begin(
            "command/exec", command=shell(f"echo {text}; cat"), processId="p", tty=True, sandboxPolicy=ANYWHERE
        )
        (work / text).mkdir()
        client.call("fs/watch", watchId="w", path=str(work / text))
    assert first.output("p", until=b"\n") == b"one\r\n" and second.output("p", until=b"\n") == b"two\r\n"
    second.call("command/exec/write", processId="p", deltaBase64=base64_of(b"x\n"))
    second.output("p", until=b"x\r\nx\r\n")
    (work / "two" / "f").write_text("x")
    second.notifications("fs/changed")
    second.close()
    first.call("command/exec/write", processId="p", deltaBase64=base64_of(b"y\n"))
    first.output("p", until=b"y\r\ny\r\n")
    assert b"x" not in first.output("p")
    assert not [each for each in first.messages if each.get("method") == "fs/changed"]


def test_the_death_of_a_worker(on_pool: Connect, work: Path) -> None:
    """Watches and searches are made again; what ran is reported as ended."""
    client = on_pool()
    file = work / "note"
    file.write_text("1")
    running = []
    for number in range(4):
        running.append(client.begin("command/exec", command=["/bin/sleep", "1000"], sandboxPolicy=ANYWHERE))
        client.call("process/spawn", command=["/bin/sleep", "1000"], cwd=str(work), processHandle=f"h{number}")
        client.call("fs/watch", watchId=f"w{number}", path=str(file))
        client.call("fuzzyFileSearch/sessionStart", sessionId=f"s{number}", roots=[str(work)])
        client.call("fuzzyFileSearch/sessionUpdate", sessionId=f"s{number}", query="note")
    client.notifications("fuzzyFileSearch/sessionCompleted", 4)
    pids = [row["appServerPid"] for row in workers(client)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for request_id in running:
        error = client.answer(request_id)
        assert error["code"] == -32011 and error["data"] == {"kind": "lost", "safeToRetry": False}, error
    exited = client.notifications("process/exited", 4)
    assert {each["exitCode"] for each in exited} == {137} and all("died" in each["stderr"] for each in exited)
    # Each watch reports its path, as changes may have been missed.
    wait_until(lambda: len({each["watchId"] for each in client.notifications("fs/changed")}) == 4, "all are back")
    client.notifications("fuzzyFileSearch/sessionCompleted", 8)
    came = len(client.notifications("fs/changed"))
    file.write_text("2")
    since = client.notifications("fs/changed", came + 4)[came:]
    assert {each["watchId"] for each in since} == {"w0", "w1", "w2", "w3"}
    assert client.call("fs/unwatch", watchId="w0") == {}
    assert client.call("process/spawn", command=["/bin/true"], cwd=str(work), processHandle="h0") == {}


def test_the_death_of_the_broker(pool: Pool, on_pool: Connect, work: Path) -> None:
    client = on_pool()
    file = work / "note"
    file.write_text("1")
    running = client.begin("command/exec", command=["/bin/cat"], processId="p", tty=True, sandboxPolicy=ANYWHERE)
    client.call("process/spawn", command=["/bin/cat"], cwd=str(work), processHandle="h", tty=True)
    client.call("fs/watch", watchId="w", path=str(file))
    client.call("command/exec/write", processId="p", deltaBase64=base64_of(b"a\n"))
    client.output("p", until=b"a\r\na\r\n")
    os.kill(broker_of(pool), signal.SIGKILL)
    client.call("command/exec/write", processId="p", deltaBase64=base64_of(b"b\n"))
    client.output("p", until=b"b\r\nb\r\n")
    client.call("process/writeStdin", processHandle="h", deltaBase64=base64_of(b"c\n"))
    client.output("h", until=b"c\r\nc\r\n", field="processHandle")
    file.write_text("2")
    client.notifications("fs/changed")
    assert client.call("command/exec/terminate", processId="p") == {}
    assert client.answer(running)["exitCode"] == 1
    assert client.call("process/kill", processHandle="h") == {}
    client.notifications("process/exited")
    assert client.output("p") == b"a\r\na\r\nb\r\nb\r\n"
    assert len([each for each in client.messages if each.get("method") == "configWarning"]) <= 1


def test_a_connection_that_breaks(pool: Pool, on_pool: Connect) -> None:
    """Each byte that a command writes comes once, and its answer after them."""
    client = on_pool()
    running = client.begin(
        "command/exec",
        command=shell("i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done"),
        processId="p",
        streamStdoutStderr=True,
        sandboxPolicy=ANYWHERE,
    )
    client.notifications("command/exec/outputDelta", 5)
    path = Path(pool.endpoint.removeprefix("ipc://"))
    for _ in range(3):
        came = len(client.messages)
        cut(path)
        wait_until(lambda came=came: len(client.messages) > came + 5, "it goes on")
    assert client.answer(running)["exitCode"] == 0
    assert client.output("p") == b"".join(b"line %d\n" % number for number in range(300))
    session = client.transport._session  # type: ignore[attr-defined]
    assert isinstance(session, Session)
    wait_until(lambda: session.held["turns"] == session.held["bound"] == 0, "nothing is held")


def test_a_watch_goes_on_when_its_worker_is_replaced(config: AppServerConfig, work: Path) -> None:
    file = work / "note"
    file.write_text("1")
    with Pool(1, config, recycle_turns=1) as pool, clients(lambda: PoolTransport(pool.endpoint)) as connect:
        client = connect()
        client.call("fs/watch", watchId="w", path=str(file))
        before = workers(client)[0]["pid"]
        thread_id = client.call("thread/start")["thread"]["id"]
        client.call("turn/start", threadId=thread_id, input=[{"type": "text", "text": "hi", "text_elements": []}])
        # Made again on the successor, it reports its path.
        client.notifications("fs/changed")
        wait_until(lambda: [row["pid"] for row in workers(client)] not in ([before], []), "the worker is replaced")
        came = len(client.notifications("fs/changed"))
        file.write_text("2")
        client.notifications("fs/changed", came + 1)
        assert client.call("fs/unwatch", watchId="w") == {}


# Limited keys.


@pytest.fixture
def house(config: AppServerConfig, tmp_path: Path, work: Path) -> Iterator[House]:
    house = House(config, tmp_path, work)
    with house.pool:
        yield house


def test_a_limited_key(house: House, work: Path, tmp_path: Path) -> None:
    allowed = ("command/exec", "command/exec/*", "process/*", "fs/watch", "fs/unwatch", "fuzzyFileSearch/*")
    key = house.key("alice", methods=allowed)
    with clients(lambda: PoolTransport(house.address, key=key)) as connect:
        alice = connect()
        inside, outside = work / "inside", tmp_path / "outside"
        script = shell(f"echo $$; touch {inside} {outside}; pwd")
        done = alice.call("command/exec", command=script, cwd=str(work))
        assert done["stdout"].endswith(f"{work}\n") and not inside.exists() and not outside.exists(), done
        refused = {
            "sandboxPolicy": {"sandboxPolicy": ANYWHERE},
            "cwd": {"cwd": str(tmp_path)},
            # It would reach the programs that make the sandbox.
            "env": {"env": {"LD_PRELOAD": str(work / "evil.so")}},
            "permissionProfile": {"permissionProfile": ":danger-full-access"},
            "parameter": {"newOption": True},
        }
        for what, params in refused.items():
            error = alice.call("command/exec", **{"command": script, "cwd": str(work), **params})
            assert error["code"] == -32012 and error["data"]["what"] == what, error
        spawn = alice.call("process/spawn", command=script, cwd=str(work), processHandle="h")
        assert spawn["code"] == -32012 and "danger-full-access" in spawn["message"]
        assert alice.call("fs/watch", watchId="w", path=str(tmp_path))["code"] == -32012
        assert alice.call("fs/watch", watchId="w", path=str(work)) == {"path": str(work)}
        assert alice.call("fuzzyFileSearch/sessionStart", sessionId="s", roots=["/etc"])["code"] == -32012
        # What is told about the configuration is not for it.
        assert not [each for each in alice.messages if each.get("method") in ("configWarning", "warning")]
        params = {"command": shell("echo up; sleep 1000"), "processId": "p", "streamStdoutStderr": True}
        alice.begin("command/exec", **params, cwd=str(work), disableTimeout=True)
        alice.output("p", until=b"up\n")
        supervisor = house.pool.supervisor_pid or 0
        wait_until(lambda: b"sleep\x001000" in commands_below(supervisor), "it sleeps")
        house.store.revoke("alice")
        wait_until(lambda: alice.error is not None, "her session is over")
        wait_until(lambda: b"sleep\x001000" not in commands_below(supervisor), "so is her command")


def commands_below(pid: int) -> bytes:
    """The command lines of all processes below this one."""
    found = []
    for process in processes.descendants(pid):
        with suppress(OSError):
            found.append(Path(f"/proc/{process.pid}/cmdline").read_bytes())
    return b"\n".join(found)
