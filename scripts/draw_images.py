#!/usr/bin/env python3
"""Makes the pictures of the documentation: a batch on a terminal, the report of an evaluation, a codex TUI on a pool.

    python scripts/draw_images.py [--images docs/images]

All run on the loopback model. The batch runs in a terminal of tmux, which is taken as SVG half way, and so does the
TUI; the report is taken in a headless Chromium. Needs tmux, chromium (CHROMIUM names another one) and the extra
`browser`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import codex_cli_bin
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, ToolCall, write_loopback_home
from codex_app_server.testing.loopback import Text as Message

ROOT = Path(__file__).resolve().parents[1]
COLUMNS, ROWS = 100, 20
LIMIT_S = 240.0
BATCH = "codex-pool batch examples/batch/prompts.jsonl --workers 4 --epochs 12 --retries 1 -o out/demo"
EVALUATION = (
    "codex-pool batch examples/eval --demo-script examples/eval/_demo/agent.toml --workers 2 --epochs 6 --retries 1"
)
TUI_ROWS = 40
TUI_PROMPT = "Which of these files has no test?"
TUI_ANSWER = "prices.py has no test of its own; cart.py is covered by test_cart.py."
TUI_SCRIPT = Script(
    (
        Rule(Message("Find the untested file"), contains="Generate a concise"),
        Rule(ToolCall("ls src", escalate=True, then=Message(TUI_ANSWER)), contains=TUI_PROMPT),
    )
)
# Of the samples of the batch.
HALF_WAY = range(120, 220)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the pictures of the documentation.")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="where the pictures go")
    images: Path = parser.parse_args().images
    for program in ("tmux", os.environ.get("CHROMIUM", "chromium")):
        if shutil.which(program) is None:
            sys.exit(f"draw_images.py: {program} is not installed; install it, e.g. apt-get install tmux chromium")
    with tempfile.TemporaryDirectory(prefix="codex-pool-images-") as place:
        work = Path(place)
        (work / "examples").symlink_to(ROOT / "examples")
        (images / "terminal.svg").write_text(terminal(work), encoding="utf-8")
        (images / "clients.svg").write_text(tui(work), encoding="utf-8")
        # Some of its tasks fail, by intent: exit code 1.
        run(f"{EVALUATION} -o out/eval", work, code=1)
        run("codex-pool report out/eval", work, code=0)
        photograph(work / "out/eval/report.html", images / "evaluation.png")


def environment() -> dict[str, str]:
    """The environment, with programs beside the Python that runs this."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "xterm-256color"}


def run(command: str, work: Path, code: int) -> None:
    """Run a command to its end; raises RuntimeError for another exit code."""
    ended = subprocess.run(
        command.split(), cwd=work, env=environment(), capture_output=True, text=True, timeout=LIMIT_S
    )
    if ended.returncode != code:
        raise RuntimeError(f"{command}: exit code {ended.returncode}, expected {code}: {ended.stderr}")


def terminal(work: Path) -> str:
    """Run the batch in a terminal to its end; return the SVG of what it shows half way."""
    tmux = ["tmux", "-S", str(work / "tmux"), "-f", "/dev/null"]
    size = ["-x", str(COLUMNS), "-y", str(ROWS)]
    subprocess.run(
        [*tmux, "new-session", "-d", *size, "-c", str(work), f"{BATCH} --demo"],
        env=environment(),
        check=True,
        timeout=30,
    )
    screen, deadline = "", time.monotonic() + LIMIT_S
    try:
        while subprocess.run([*tmux, "has-session"], capture_output=True, timeout=30).returncode == 0:
            if time.monotonic() > deadline:
                sys.exit(f"draw_images.py: the batch has not ended within {LIMIT_S:.0f} s")
            taken = subprocess.run([*tmux, "capture-pane", "-e", "-p"], capture_output=True, text=True, timeout=30)
            if done(work) in HALF_WAY and taken.stdout.strip():
                screen = taken.stdout
            time.sleep(0.1)
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True, timeout=30)
    if not screen:
        sys.exit("draw_images.py: the terminal was never seen half way")
    return svg_of([Text(f"$ {BATCH}", style="bold"), Text.from_ansi(screen.rstrip())], "codex-pool batch")


def svg_of(lines: list[Text], title: str) -> str:
    """Return a terminal that shows `lines`."""
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    for line in lines:
        console.print(line)
    svg = console.export_svg(title=title, theme=SVG_EXPORT_THEME)
    # No fonts of other hosts: those of the reader's system.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code", "ui-monospace")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def tui(work: Path) -> str:
    """Run a prompt with a command in a codex TUI on a pool; return the SVG of it, with the pool's status below."""
    place = work / "shop"
    (place / "src").mkdir(parents=True)
    for name in ("cart.py", "prices.py", "test_cart.py"):
        (place / "src" / name).touch()
    tmux = ["tmux", "-S", str(work / "tmux-tui"), "-f", "/dev/null"]
    with LoopbackModel(TUI_SCRIPT) as model:
        home = write_loopback_home(work / "home", model.base_url, model="gpt-6.1-sol")
        config = home / "config.toml"
        trusted = f'[projects.{json.dumps(str(place))}]\ntrust_level = "trusted"\n'
        settings = "disable_paste_burst = true\ntui.animations = false\ntui.show_tooltips = false\n"
        config.write_text(settings + config.read_text(encoding="utf-8") + trusted, encoding="utf-8")
        environ = {**environment(), "CODEX_HOME": str(home), "XDG_RUNTIME_DIR": str(work)}
        environ.pop("TMUX", None)
        with daemon(work / "codex.sock", environ):
            codex = [str(codex_cli_bin.bundled_codex_path()), "--remote", f"unix://{work}/codex.sock", "-C", str(place)]
            size = ["-x", str(COLUMNS), "-y", str(TUI_ROWS)]
            started = [*tmux, "new-session", "-d", *size, "-c", str(place), *codex]
            subprocess.run(started, env=environ, check=True, timeout=30)
            try:
                shown(tmux, "Ask Codex to do anything")
                press(tmux, "-l", TUI_PROMPT)
                shown(tmux, TUI_PROMPT)
                press(tmux, "Enter")
                shown(tmux, "Would you like to run")
                # A key that comes together with the question is ignored.
                while "Would you like to run" in shown(tmux, ""):
                    press(tmux, "y")
                    time.sleep(1)
                screen = shown(tmux, "Worked for")
                status = subprocess.run(
                    ["codex-pool", "status"], env=environ, capture_output=True, text=True, check=True, timeout=30
                )
            finally:
                subprocess.run([*tmux, "kill-server"], capture_output=True, timeout=30)
    # The place of this picture is of no interest, nor are empty lines before the composer.
    screen = re.sub(r"\n(?:\s*\n){3,}", "\n\n\n", screen.replace(str(place), "~/shop"))
    return svg_of(
        [
            Text("$ codex --remote unix://$XDG_RUNTIME_DIR/codex.sock -C .", style="bold"),
            Text.from_ansi(screen),
            Text("\n$ codex-pool status", style="bold"),
            Text(status.stdout.rstrip(), no_wrap=True, overflow="crop"),
        ],
        "codex on a pool",
    )


@contextlib.contextmanager
def daemon(socket: Path, environ: dict[str, str]) -> Iterator[None]:
    """A pool of two workers that listens at `socket`."""
    command = ["codex-pool", "serve", "--workers", "2", "--listen-unix", str(socket), "--json"]
    serving = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert serving.stdout is not None
        if "launch" not in serving.stdout.readline():
            sys.exit(f"draw_images.py: {' '.join(command)} has not started")
        yield
    finally:
        serving.send_signal(signal.SIGINT)
        serving.communicate(timeout=30)


def press(tmux: list[str], *keys: str) -> None:
    subprocess.run([*tmux, "send-keys", *keys], check=True, timeout=30)


def shown(tmux: list[str], text: str) -> str:
    """Return the screen, with its colours, once it shows `text`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        taken = subprocess.run([*tmux, "capture-pane", "-e", "-p"], capture_output=True, text=True, timeout=30).stdout
        if text in re.sub(r"\x1b\[[\d;:]*m", "", taken):
            return taken.rstrip()
        time.sleep(0.1)
    sys.exit(f"draw_images.py: the TUI does not show {text!r}:\n{taken}")


def done(work: Path) -> int:
    """Return how many samples have ended."""
    try:
        return len((work / "out/demo/results.jsonl").read_text(encoding="utf-8").splitlines())
    except OSError:
        return 0


def photograph(page: Path, image: Path) -> None:
    """Take a picture of the top of a report."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which(os.environ.get("CHROMIUM", "chromium")),
            args=["--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"],
        )
        tab = browser.new_page(viewport={"width": 1200, "height": 1240})
        tab.goto(page.as_uri())
        # The kernel of this machine is of no interest.
        tab.evaluate("""document.querySelectorAll('dd').forEach(each => {
            if (each.textContent.startsWith('Linux-')) each.textContent = 'Linux'
        })""")
        tab.screenshot(path=str(image))
        browser.close()


if __name__ == "__main__":
    main()
