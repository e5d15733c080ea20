"""A program of the terminal, driven as a person does: keys in, the screen out. Each has a tmux server of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

COLUMNS, ROWS = 120, 40
LIMIT_S = 30.0
POLL_S = 0.05
# What the codex TUI shows in an empty composer.
EMPTY = "Ask Codex to do anything"
# The first words of the prompt by which the TUI asks the model for the title of a task.
TITLE_PROMPT = "Generate a concise, single-line task title"

# Keys that are pasted look like a burst of typing, in which Enter is a line break; what moves is hard to compare.
TUI_CONFIG = """disable_paste_burst = true
tui.animations = false
tui.show_tooltips = false
"""


class Tui:
    """A program in a terminal of 120 x 40. Waits fail with the screen as it is then."""

    def __init__(self, tmux: list[str], code_file: Path) -> None:
        self._tmux, self._code_file = tmux, code_file

    @property
    def screen(self) -> str:
        """The screen's text, without blank lines at the end."""
        return self._run("capture-pane", "-p").rstrip()

    @property
    def screen_with_colours(self) -> str:
        """The screen with its escape sequences."""
        return self._run("capture-pane", "-e", "-p").rstrip()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 and the number for a signal, as in a shell."""
        code = self._code_file.read_text() if self._code_file.exists() else ""
        return int(code) if code.endswith("\n") else None

    def wait(self, *texts: str, gone: tuple[str, ...] = (), limit_s: float = LIMIT_S) -> str:
        """The screen once it shows all `texts` and nothing of `gone`."""
        return self.wait_until(
            lambda screen: all(text in screen for text in texts) and not any(text in screen for text in gone),
            f"{texts!r} without {gone!r}" if gone else f"{texts!r}",
            limit_s,
        )

    def wait_until(self, shows: Callable[[str], bool], what: str, limit_s: float = LIMIT_S) -> str:
        """The screen once `shows(screen)`; `what` names that in the error."""
        deadline = time.monotonic() + limit_s
        while True:
            screen = self.screen
            if shows(screen):
                return screen
            ended = self.exit_code
            if ended is not None or time.monotonic() > deadline:
                happened = f"it ended with {ended}" if ended is not None else f"not within {limit_s:.0f} s"
                raise AssertionError(f"the screen does not show {what}: {happened}. It shows:\n{screen}")
            time.sleep(POLL_S)

    def press(self, *keys: str) -> None:
        """Press keys, by their names in tmux."""
        self._run("send-keys", *keys)

    def type(self, text: str) -> None:
        """Type `text` into the composer and wait until it is there."""
        self._run("send-keys", "-l", "--", text)
        # Of a command for the shell the mark becomes the sign before the composer.
        self.wait(text.lstrip("!")[-30:])

    def ask(self, text: str) -> None:
        """Type a prompt or command, and press Enter."""
        self.type(text)
        self.press("Enter")

    def submit(self, text: str, *, limit_s: float = LIMIT_S) -> None:
        """Type a prompt or command, press Enter, and wait until the composer is empty again."""
        self.ask(text)
        self.wait(EMPTY, limit_s=limit_s)

    def answer(self, key: str, question: str) -> None:
        """Press `key` until `question` is gone: keys that come together with a question are ignored."""
        deadline = time.monotonic() + LIMIT_S
        self.wait(question)
        while question in self.screen:
            assert time.monotonic() < deadline, f"{key} does not answer {question!r}: {self.screen}"
            self.press(key)
            with suppress(AssertionError):
                self.wait(gone=(question,), limit_s=2.0)

    def wait_for_end(self, limit_s: float = LIMIT_S) -> int:
        """The exit code."""
        deadline = time.monotonic() + limit_s
        while (code := self.exit_code) is None:
            assert time.monotonic() < deadline, f"it has not ended within {limit_s:.0f} s: {self.screen}"
            time.sleep(POLL_S)
        return code

    def _run(self, *command: str) -> str:
        done = subprocess.run([*self._tmux, *command], capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, f"tmux {command}: {done.stderr}"
        return done.stdout.rstrip("\n")


@contextmanager
def in_terminal(command: list[str], *, cwd: Path, env: dict[str, str], socket: Path) -> Iterator[Tui]:
    """`command` in a terminal; its tmux server, at `socket`, ends with the context."""
    tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
    environ = {**env, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    for name in ("TMUX", "TMUX_PANE", "COLUMNS", "LINES"):
        environ.pop(name, None)
    # Of tmux the exit code cannot be had for certain: under load it may not notice the end of a program.
    code_file = socket.with_name(f"{socket.name}.code")
    noted = ["sh", "-c", '"$@"; echo $? > "$0"', str(code_file), *command]
    # One command line to tmux: the pane stays when the program has ended, however soon that is.
    new = ["new-session", "-d", "-x", str(COLUMNS), "-y", str(ROWS), "-c", str(cwd), *noted]
    started = subprocess.run(
        [*tmux, "set-option", "-g", "remain-on-exit", "on", ";", *new],
        env=environ,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    try:
        assert started.returncode == 0, f"tmux: {started.stderr}"
        yield Tui(tmux, code_file)
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True, timeout=LIMIT_S)
        for path in (socket, code_file):
            path.unlink(missing_ok=True)
