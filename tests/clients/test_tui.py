"""The codex TUI through `codex --remote`, of the version that the pool runs and of a newer one."""

from __future__ import annotations

import subprocess

from codex_servers import CODEX, CodexServer
from tui import EMPTY

QUESTION = "Would you like to run the following command?"


def test_prompts_approvals_interrupts_and_commands(server: CodexServer, codex: str) -> None:
    with server.tui(codex=codex) as tui:
        tui.wait(EMPTY)
        tui.submit("Answer in pieces.")
        tui.wait("• The answer", gone=("slowly",))
        tui.wait("• The answer is sextant, and it comes slowly.", "Worked for")

        # A command outside of the sandbox waits for an approval; "y" accepts it.
        tui.ask("Write a file.")
        tui.wait(QUESTION, "$ echo done > by-codex")
        assert not (server.work / "by-codex").exists()
        tui.answer("y", QUESTION)
        tui.wait("You approved codex to run echo done > by-codex", "• It is done.")
        assert (server.work / "by-codex").read_text() == "done\n"

        # Escape declines it, and the turn ends.
        tui.ask("Write another file.")
        tui.wait(QUESTION, "$ echo done > another")
        tui.answer("Escape", QUESTION)
        tui.wait("Conversation interrupted", EMPTY)
        assert not (server.work / "another").exists()

        tui.submit("Count slowly.")
        tui.wait("• one")
        tui.press("Escape")
        tui.wait_until(lambda screen: screen.count("Conversation interrupted") == 2, "a second interruption")
        server.model.wait_for(lambda record: record.outcome == "disconnected", 10)

        # What is typed while a turn runs steers it.
        tui.submit("Count slowly once more.")
        tui.wait_until(lambda screen: screen.count("• one") == 2, "the answer that is steered")
        tui.submit("Another way, please.")
        tui.wait("• Steered all right.")

        tui.submit("!echo shell-$((40 + 2))")
        tui.wait("shell-42")

        tui.submit("/status")
        screen = tui.wait("Model provider:", "Session:")
        assert f"{server.url} (v0.163.0)" in screen and str(server.work) in screen

        tui.submit("/rename sextant-thread")
        tui.wait("· sextant-thread")

        tui.submit("/compact")
        tui.wait("Context compacted")

        tui.submit("Now go on.")
        tui.wait("• The thread goes on.")

        tui.ask("/quit")
        assert tui.wait_for_end() == 0


def test_two_on_one_thread_a_queued_message_and_the_picker(server: CodexServer, codex: str) -> None:
    with server.tui(codex=codex) as first:
        first.wait(EMPTY)
        first.submit("Begin.")
        first.wait("• The first answer.", "Worked for")
        first.submit("/rename shared-thread")
        first.wait("· shared-thread")

        with server.tui("resume", "shared-thread", codex=codex) as second:
            second.wait("• The first answer.", EMPTY)
            # Each sees the turns of the other, as they run.
            second.submit("Name the first colours.")
            first.wait("• red", gone=("white",))
            for each in (first, second):
                each.wait("• red green blue grey pink black white")
            first.submit("Name the other colours.")
            second.wait("• cyan", gone=("beige",))
            for each in (first, second):
                each.wait("• cyan olive brown amber violet beige")

            # Of an approval both are asked; one answers, the question goes from the screen of the other.
            second.ask("Write a file.")
            for each in (second, first):
                each.wait(QUESTION, "$ echo done > by-codex")
            first.answer("y", QUESTION)
            for each in (second, first):
                each.wait("• It is done.", gone=(QUESTION,))

            # `codex queue` hands a message to the thread; both see its turn.
            done = subprocess.run(
                [codex, "queue", "--remote", server.url, "--thread", "shared-thread", "--message", "Now go on."],
                env=server.env,
                cwd=server.work,
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert done.returncode == 0 and "Queued message" in done.stdout, done.stderr
            for each in (first, second):
                each.wait("• The thread goes on.")
            second.ask("/quit")
            assert second.wait_for_end() == 0
        first.submit("Answer in pieces.")
        first.wait("• The answer is sextant, and it comes slowly.")
        first.ask("/quit")
        assert first.wait_for_end() == 0

    with server.tui("resume", codex=codex) as third:
        third.wait("shared-thread")
        third.press("Enter")
        third.wait("• The answer is sextant", "· shared-thread", EMPTY)
        third.submit("Another way.")
        third.wait("• Steered all right.")
    assert server.asked("Another way.").user_texts[-2:] == ("Answer in pieces.", "Another way.")


def test_an_approval_waits_for_who_resumes_when_its_terminal_died(server: CodexServer) -> None:
    with server.tui(codex=CODEX) as tui:
        tui.wait(EMPTY)
        tui.submit("Begin.")
        tui.wait("• The first answer.")
        tui.submit("/rename left-behind")
        tui.wait("· left-behind")
        tui.ask("Write a file.")
        tui.wait(QUESTION)
    with server.tui("resume", "left-behind", codex=CODEX) as tui:
        tui.wait(QUESTION, "$ echo done > by-codex")
        tui.answer("y", QUESTION)
        tui.wait("• It is done.")
    assert (server.work / "by-codex").read_text() == "done\n"
