"""A turn and everything that its result says, for asyncio."""

import asyncio

from codex_app_server import AsyncCodex


async def main() -> None:
    async with AsyncCodex() as codex:
        thread = await codex.thread_start()
        turn = await thread.turn("Give three facts about rivers.")
        print("turn", turn.id)
        result = await turn.run()

        print("status:", result.status)
        print("took:", result.duration_ms, "ms")
        print("items:", ", ".join(item.type for item in result.items))
        if result.usage is not None:
            print("tokens:", result.usage.last.total_tokens, "in this turn,", result.usage.total.total_tokens, "in all")
        print(result.final_response or "(no answer)")


asyncio.run(main())
