"""Every notification of a turn, as it comes; then the text alone."""

from codex_app_server import Codex, stream_text
from codex_app_server.generated import models

with Codex() as codex:
    thread = codex.thread_start()

    # Leaving the `with` block before the end, by an error for instance, interrupts the turn.
    with thread.turn("Tell me a short story.").stream() as stream:
        for notification in stream:
            match notification.payload:
                case models.AgentMessageDeltaNotification(delta=delta):
                    print(delta, end="", flush=True)
                case models.ItemStartedNotification(item=item) | models.ItemCompletedNotification(item=item):
                    print(f"\n[{notification.method}: {item.type}]")
                case models.TurnCompletedNotification(turn=ended):
                    print(f"\n[turn {ended.status}]")
                case _:
                    print(f"\n[{notification.method}]")

    for text in stream_text(thread, "And now a shorter one."):
        print(text, end="", flush=True)
    print()
