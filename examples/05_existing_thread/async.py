"""A thread outlives its app-server: begin it with one, go on with another. For asyncio."""

import asyncio

from codex_app_server import AsyncCodex


async def main() -> None:
    async with AsyncCodex() as codex:
        thread = await codex.thread_start()
        await thread.run("My favourite number is 27.")
        thread_id = thread.id

    async with AsyncCodex() as codex:
        newest = (await codex.thread_list(limit=5)).data
        print("stored threads:", *(f"{stored.id} {stored.preview[:30]!r}" for stored in newest), sep="\n  ")

        thread = await codex.thread_resume(thread_id)
        print((await thread.run("What is my favourite number?")).final_response)

        stored = (await thread.read(include_turns=True)).thread
        print(len(stored.turns), "turns in", stored.id)


asyncio.run(main())
