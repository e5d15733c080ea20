"""Three turns at once on one app-server, with tasks. `sync.py` is the same with threads of Python."""

import asyncio

from codex_app_server import AsyncCodex

PLACES = ["the sea", "a forest", "a city"]


async def main() -> None:
    async with AsyncCodex() as codex:

        async def describe(place: str) -> str:
            thread = await codex.thread_start(ephemeral=True)
            turn = await thread.turn(f"Describe {place} in one sentence.")
            return "".join([text async for text in turn.text()])

        for place, answer in zip(PLACES, await asyncio.gather(*map(describe, PLACES)), strict=True):
            print(place, "->", answer)


asyncio.run(main())
