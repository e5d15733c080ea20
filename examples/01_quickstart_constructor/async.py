"""The quickstart for asyncio. The app-server starts at its first use."""

import asyncio

from codex_app_server import AsyncCodex


async def main() -> None:
    async with AsyncCodex() as codex:
        thread = await codex.thread_start()
        result = await thread.run("Say hello in one sentence.")
        print(result.final_response)
        print(len(result.items))


asyncio.run(main())
