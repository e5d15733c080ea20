"""A user's program against the installed wheel: mypy and basedpyright, both strict, have nothing to say of it."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Needs mypy, basedpyright and the build backend.
pytestmark = [pytest.mark.generate, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
RUN_LIMIT_S = 120

PROGRAM = '''
"""Written as a user would; nothing of it is run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from typing_extensions import assert_type

from codex_app_server import (
    AppServerClient,
    AppServerConfig,
    AppServerError,
    ApprovalMode,
    AsyncAppServerClient,
    AsyncCodex,
    AsyncThread,
    AsyncTurnHandle,
    Codex,
    ImageInput,
    JsonRpcError,
    LocalImageInput,
    Notification,
    RequestTimeoutError,
    Sandbox,
    ServerBusyError,
    TextInput,
    Thread,
    TurnFailedError,
    TurnHandle,
    TurnResult,
    UnknownNotification,
    aretry_on_overload,
    astream_text,
    is_retryable_error,
    retry_on_overload,
    stream_text,
    wait_for_turn_completed,
)
from codex_app_server.generated import models
from codex_app_server.testing import LoopbackModel, Script, write_loopback_home
from codex_pool import Pool, PoolLostError, PoolStartError, aconnect, connect, default_endpoint


class City(BaseModel):
    name: str
    inhabitants: int


def approve(method: str, params: Any) -> Any:
    if method == "item/commandExecution/requestApproval":
        return {"decision": "accept"}
    if isinstance(params, models.FileChangeRequestApprovalParams):
        return models.FileChangeRequestApprovalResponse(decision=models.FileChangeApprovalDecision.accept)
    return {"decision": "decline"}


async def approve_later(method: str, params: Any) -> Any:
    await asyncio.sleep(0)
    return approve(method, params)


def texts(result: TurnResult) -> Iterator[str]:
    for item in result.items:
        if isinstance(item, models.AgentMessageThreadItem):
            yield item.text
        elif isinstance(item, models.CommandExecutionThreadItem):
            yield assert_type(item.command, str)


def payload(notification: Notification) -> str | None:
    payload = notification.payload
    if isinstance(payload, models.AgentMessageDeltaNotification):
        return payload.delta
    if isinstance(payload, models.TurnCompletedNotification):
        return payload.turn.id
    if isinstance(payload, UnknownNotification):
        return payload.problem
    return None


def blocking() -> None:
    config = AppServerConfig(cwd="/tmp", env={"A": "b"}, client_name="mine")
    with Codex(config, approval_handler=approve) as codex:
        thread = codex.thread_start(model="gpt-5", sandbox=Sandbox.read_only, approval_mode=ApprovalMode.deny_all)
        assert_type(thread, Thread)
        result = thread.run("Say hello.", timeout=30, on_busy="queue")
        assert_type(result, TurnResult)
        answer: str | None = result.final_response
        print(answer, [*texts(result)], result.status, result.usage)
        city = thread.run([TextInput("A city?"), LocalImageInput("/tmp/a.png")], output_type=City)
        assert_type(city, City)
        turn = thread.turn([TextInput("x"), ImageInput("https://example.com/a.png")], effort="low", interest="items")
        assert_type(turn, TurnHandle)
        turn.steer("more")
        with turn.stream() as stream:
            for notification in stream:
                print(payload(notification))
            last: Notification | None = stream.next(timeout_s=1.0)
            print(last)
        for piece in stream_text(thread, "Tell me.", model="gpt-5"):
            assert_type(piece, str)
        for each in thread.turn("x").text():
            print(each)
        turn.interrupt()
        completed = wait_for_turn_completed(turn)
        assert_type(completed, models.TurnCompletedNotification)
        for sub_agent in turn.sub_agents():
            assert_type(sub_agent, TurnHandle)
        page = codex.thread_list(limit=5, archived=False)
        assert_type(page, models.ThreadListResponse)
        for stored in codex.threads(cwd="/tmp", sort_key="updated_at"):
            assert_type(stored, models.Thread)
            again = codex.thread_resume(stored.id)
            codex.thread_fork(again.id).set_name("a name")
        goal = thread.goal()
        assert_type(goal, models.ThreadGoal | None)
        codex.login_chatgpt().wait(timeout_s=5)
        assert_type(codex.client, AppServerClient)
        assert_type(codex.client.request(models.ThreadListParams(limit=5)), models.ThreadListResponse)
        untyped: Any = codex.client.request("thread/list", {"limit": 5})
        print(untyped, codex.metadata.user_agent)
        print(retry_on_overload(lambda: thread.run("x")).id)


def failing(thread: Thread) -> None:
    try:
        thread.run("x", timeout=1)
    except TurnFailedError as error:
        print(error.turn.id if error.turn is not None else None, error.kind, error.last_error)
    except RequestTimeoutError as error:
        print(error)
    except ServerBusyError as error:
        assert is_retryable_error(error)
    except JsonRpcError as error:
        print(error.code, error.message)
    except AppServerError as error:
        raise SystemExit(str(error)) from error


async def asynchronous() -> None:
    async with AsyncCodex(AppServerConfig(), approval_handler=approve_later) as codex:
        thread = await codex.thread_start(ephemeral=True)
        assert_type(thread, AsyncThread)
        assert_type(await thread.run("x", timeout=3.5), TurnResult)
        assert_type(await thread.run("x", output_type=City), City)
        turn = await thread.turn("x", on_busy="steer")
        assert_type(turn, AsyncTurnHandle)
        async with turn.stream() as stream:
            async for notification in stream:
                print(payload(notification))
        async for piece in astream_text(thread, "x"):
            assert_type(piece, str)
        async for stored in codex.threads():
            assert_type(stored.id, str)
        client: AsyncAppServerClient = codex.client
        assert_type(await client.request(models.ModelListParams()), models.ModelListResponse)
        print(await client.next_notification(timeout_s=1))
        login = await codex.login_chatgpt_device_code()
        print(login.user_code, await login.wait(timeout_s=1))
        results = await asyncio.gather(thread.run("a"), thread.run("b"))
        print([result.final_response for result in results])
        print((await aretry_on_overload(lambda: thread.run("x"))).id)


def pooled() -> None:
    try:
        with Pool(workers=4) as pool, pool.connect() as codex:
            assert_type(codex, Codex)
            print(pool.endpoint, codex.thread_start().run("x").final_response)
            with connect(pool.endpoint) as second:
                assert_type(second, Codex)
    except PoolStartError as error:
        print(error.stderr_lines)
    except PoolLostError as error:
        print(error)
    print(default_endpoint())


async def pooled_too() -> None:
    async with Pool(2) as pool, pool.aconnect() as codex:
        assert_type(codex, AsyncCodex)
        print((await (await codex.thread_start()).run("x")).final_response)
    waited = await aconnect("ipc:///tmp/x/s.sock")
    await waited.close()


def scripted(home: str) -> None:
    with LoopbackModel(Script()) as model:
        write_loopback_home(home, model.base_url)


if __name__ == "__main__":
    blocking()
    asyncio.run(asynchronous())
    asyncio.run(pooled_too())
    pooled()
    failing(Codex().thread_start())
    scripted("/tmp")
'''

# One mistake a line, each of which both have to report.
MISTAKES = """
from codex_app_server import AppServerConfig, AsyncCodex, Codex, Thread
from codex_pool import Pool


def wrong(codex: Codex, thread: Thread) -> None:
    thread.run(5)
    Pool(workers="four")
    thread.run("x", on_busy="later")
    thread.turn("x", interest="some")
    thread.run("x", timeout="1 s")
    number: int = thread.run("x").final_response
    codex.thread_start(nothing=1)
    codex.thread_start(approval_policy="sometimes")
    AppServerConfig(cwd=5)
    thread.nothing()


async def wrong_too(codex: AsyncCodex) -> None:
    codex.thread_start().run("x")
    thread = await codex.thread_start()
    await thread.run(5)
"""


@pytest.fixture(scope="module")
def python() -> Iterator[Path]:
    """A Python that has this project as a wheel, and what it needs from here."""
    with tempfile.TemporaryDirectory(prefix="codex-typing-") as made:
        yard = Path(made)
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(yard / "dist"), cwd=ROOT)
        (wheel,) = (yard / "dist").glob("*.whl")
        run(sys.executable, "-m", "venv", "--without-pip", str(yard / "venv"), cwd=yard)
        python = yard / "venv" / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
        run(*pip, "install", "--no-deps", "--no-index", str(wheel), cwd=yard)
        (site,) = (yard / "venv" / "lib").glob("python*/site-packages")
        # A path of a .pth file is added without the .pth files in it, such as that of this project's own installation.
        (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        where = run(str(python), "-c", "import codex_app_server; print(codex_app_server.__file__)", cwd=yard)
        assert where.startswith(str(site))
        yield python


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def mypy(python: Path, program: Path) -> list[tuple[int, str]]:
    """The errors that mypy reports, by line."""
    flags = ["--strict", "--no-error-summary", "--config-file", "", "--no-incremental", "--python-executable"]
    command = [sys.executable, "-m", "mypy", *flags, str(python), "--output", "json", str(program)]
    done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False)
    assert done.stderr == ""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [(each["line"], each["message"]) for each in found if each["severity"] == "error"]


def basedpyright(python: Path, program: Path) -> list[tuple[int, str]]:
    """The errors and warnings that basedpyright reports, by line."""
    settings = {"typeCheckingMode": "strict", "include": [program.name]}
    (program.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", str(python), "--outputjson"]
    done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [(each["range"]["start"]["line"] + 1, each["message"]) for each in found]


@pytest.mark.parametrize("checker", [mypy, basedpyright])
def test_a_users_program_has_no_errors(checker: object, python: Path, tmp_path: Path) -> None:
    assert callable(checker)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    found = checker(python, program)
    assert found == [], found


@pytest.mark.parametrize("checker", [mypy, basedpyright])
def test_each_mistake_is_reported(checker: object, python: Path, tmp_path: Path) -> None:
    assert callable(checker)
    program = tmp_path / "program.py"
    program.write_text(MISTAKES)
    lines = MISTAKES.splitlines()
    first, second = lines.index("def wrong(codex: Codex, thread: Thread) -> None:"), lines.index("    thread.nothing()")
    third = lines.index('    codex.thread_start().run("x")')
    wrong = {*range(first + 2, second + 2), third + 1, third + 3}
    assert {line for line, _ in checker(python, program)} == wrong
