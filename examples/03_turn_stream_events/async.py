"""Every notification of a turn, as it comes; then the text alone. For asyncio."""

import asyncio

from codex_app_server import AsyncCodex, astream_text


async def main() -> None:
    async with AsyncCodex() as codex:
        thread = await codex.thread_start()

        # Leaving the `async with` block before the end, by an error for instance, interrupts the turn.
        turn = await thread.turn("Tell me a short story.")
        async with turn.stream() as stream:
            async for notification in stream:
                match notification.method:
                    case "item/agentMessage/delta":
                        print(notification.payload.delta, end="", flush=True)
                    case "item/started" | "item/completed":
                        print(f"\n[{notification.method}: {notification.payload.item.type}]")
                    case "turn/completed":
                        print(f"\n[turn {notification.payload.turn.status}]")
                    case other:
                        print(f"\n[{other}]")

        async for text in astream_text(thread, "And now a shorter one."):
            print(text, end="", flush=True)
        print()


asyncio.run(main())
