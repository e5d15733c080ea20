"""A small chat program: reads lines, streams the answers. /new begins a new thread, /quit or Ctrl-D ends it.

Ctrl-C during an answer interrupts that answer only.
"""

from codex_app_server import Codex, Thread, TurnFailedError


def answer(thread: Thread, line: str) -> None:
    # An answer that was just interrupted may still be ending: wait for that.
    turn = thread.turn(line, on_busy="queue")
    print("codex> ", end="", flush=True)
    try:
        for text in turn.text():
            print(text, end="", flush=True)
        print()
    except KeyboardInterrupt:
        turn.interrupt()
        print(" [interrupted]")
    except TurnFailedError as error:
        print(f"[failed: {error}]")


def main() -> None:
    with Codex() as codex:
        thread = codex.thread_start()
        while True:
            try:
                line = input("you> ").strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if line == "/quit":
                return
            if line == "/new":
                thread = codex.thread_start()
                print("a new thread:", thread.id)
            elif line:
                answer(thread, line)


main()
