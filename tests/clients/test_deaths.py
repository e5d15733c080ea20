"""Clients on a pool while its processes are killed in the middle of their turns.

The answer of a turn outlives broker and gateway. With its app-server a turn ends, which the client shows, and the next
one goes on with the history.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from codex_servers import COUNTED, CodexServer
from conftest import NODE_MODULES
from programs import started
from test_acp import Editor
from test_javascript import EXAMPLE
from test_tui import QUESTION
from tui import EMPTY

PROGRAM = Path(__file__).parent / "programs" / "sdk_deaths.py"
DIED = "the app-server has ended (killed by SIGKILL)"


def test_terminal(pool: CodexServer, codex: str) -> None:
    with pool.tui(codex=codex) as tui:
        tui.wait(EMPTY)
        tui.submit("Count to twelve.")
        tui.wait("• one")
        pool.kill("broker")
        tui.wait("• one two three")
        pool.kill("gateway")
        tui.wait(f"• {COUNTED}", "Worked for")

        tui.submit("Count slowly.")
        tui.wait_until(lambda screen: screen.count("• one") == 2, "the second answer")
        pool.kill("app-server")
        tui.wait(DIED)

        tui.submit("Now go on.")
        tui.wait("• The thread goes on.")
    assert pool.asked("Now go on.").user_texts[-3:] == ("Count to twelve.", "Count slowly.", "Now go on.")


def test_terminal_with_an_open_approval(pool: CodexServer) -> None:
    with pool.tui() as tui:
        tui.wait(EMPTY)
        tui.submit("Begin.")
        tui.wait("• The first answer.", "Worked for")
        tui.ask("Write a file.")
        tui.wait(QUESTION)
        pool.kill("broker")
        pool.kill("gateway")
        # The question goes with the connection, and is asked again on the next one.
        tui.wait_until(lambda screen: QUESTION not in screen, "that the connection is lost")
        tui.answer("y", QUESTION)
        tui.wait("• It is done.")
    assert (pool.work / "by-codex").read_text() == "done\n"


def test_published_sdk(pool: CodexServer) -> None:
    with started([sys.executable, str(PROGRAM), pool.codex_bin], home=pool.home) as program:
        program.wait_for_line("first delta", "stdout")
        pool.kill("broker")
        program.wait_for_line(f"turn completed {COUNTED}", "stdout")
        pool.model.wait_for(lambda record: record.prompt == "Count slowly." and record.deltas_sent > 2, 20)
        pool.kill("app-server")
        assert DIED in program.wait_for_line("turn failed", "stdout")
        program.wait_for_line("turn completed The thread goes on.", "stdout")
        assert program.wait() == 0


def test_editor(pool: CodexServer) -> None:
    editor = Editor(pool)
    with editor.open():
        turn = editor.start("Count to twelve.")
        editor.agent.wait(lambda _: "one" in editor.text)
        pool.kill("broker")
        assert editor.agent.result(turn)["stopReason"] == "end_turn"
        assert COUNTED in editor.text

        turn = editor.start("Count slowly.")
        editor.agent.wait(lambda _: editor.text.count("one") == 2)
        pool.kill("app-server")
        editor.agent.wait(lambda message: message.get("id") == turn and "method" not in message)
        assert DIED in editor.text

        assert editor.run("Now go on.") == "end_turn"
        assert editor.text.endswith("The thread goes on.")


def test_javascript(pool: CodexServer, tmp_path: Path) -> None:
    place = shutil.copytree(EXAMPLE, tmp_path / "javascript", ignore=shutil.ignore_patterns("node_modules"))
    (place / "node_modules").symlink_to(NODE_MODULES)

    def ask(*arguments: str) -> list[str]:
        return ["node", str(place / "ask.mjs"), "--connect", pool.url, "--directory", str(pool.work), *arguments]

    with started(ask("Count to twelve."), home=pool.home) as program:
        pool.model.wait_for(lambda record: record.deltas_sent > 2, 20)
        pool.kill("broker")
        pool.model.wait_for(lambda record: record.deltas_sent > 20, 20)
        pool.kill("gateway")
        assert program.wait() == 0, program.lines
        assert program.lines["stdout"] == [COUNTED]
        thread_id = program.wait_for_line("thread ").partition(" ")[2]
    with started(ask("--thread", thread_id, "Count slowly."), home=pool.home) as program:
        pool.model.wait_for(lambda record: record.prompt == "Count slowly." and record.deltas_sent > 2, 20)
        pool.kill("app-server")
        assert program.wait() == 1, program.lines
        assert any(DIED in line for line in program.lines["stderr"])
    with started(ask("--thread", thread_id, "Now go on."), home=pool.home) as program:
        assert program.wait() == 0, program.lines
        assert program.lines["stdout"] == ["The thread goes on."]
    assert pool.asked("Now go on.").user_texts[-3:] == ("Count to twelve.", "Count slowly.", "Now go on.")
