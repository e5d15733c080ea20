"""Every notification of a turn, as it comes; then the text alone. For asyncio."""

import asyncio

from codex_app_server import AsyncCodex, astream_text
from codex_app_server.generated import models


async def main() -> None:
    async with AsyncCodex() as codex:
        thread = await codex.thread_start()

        # Leaving the `async with` block before the end, by an error for instance, interrupts the turn.
        turn = await thread.turn("Tell me a short story.")
        async with turn.stream() as stream:
            async for notification in stream:
                match notification.payload:
                    case models.AgentMessageDeltaNotification(delta=delta):
                        print(delta, end="", flush=True)
                    case models.ItemStartedNotification(item=item) | models.ItemCompletedNotification(item=item):
                        print(f"\n[{notification.method}: {item.type}]")
                    case models.TurnCompletedNotification(turn=ended):
                        print(f"\n[turn {ended.status}]")
                    case _:
                        print(f"\n[{notification.method}]")

        async for text in astream_text(thread, "And now a shorter one."):
            print(text, end="", flush=True)
        print()


asyncio.run(main())
