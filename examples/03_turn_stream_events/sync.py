"""Every notification of a turn, as it comes; then the text alone."""

from codex_app_server import Codex, stream_text

with Codex() as codex:
    thread = codex.thread_start()

    # Leaving the `with` block before the end, by an error for instance, interrupts the turn.
    with thread.turn("Tell me a short story.").stream() as stream:
        for notification in stream:
            match notification.method:
                case "item/agentMessage/delta":
                    print(notification.payload.delta, end="", flush=True)
                case "item/started" | "item/completed":
                    print(f"\n[{notification.method}: {notification.payload.item.type}]")
                case "turn/completed":
                    print(f"\n[turn {notification.payload.turn.status}]")
                case other:
                    print(f"\n[{other}]")

    for text in stream_text(thread, "And now a shorter one."):
        print(text, end="", flush=True)
    print()
