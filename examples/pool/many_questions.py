"""Many questions at once over a pool of two app-servers, answers in the order of the questions."""

import asyncio

from codex_pool import Pool

QUESTIONS = [f"What is {number} times {number}?" for number in range(1, 9)]


async def main() -> None:
    async with Pool(workers=2) as pool, await pool.aconnect() as codex:

        async def ask(question: str) -> str | None:
            thread = await codex.thread_start(ephemeral=True)
            return (await thread.run(question)).final_response

        for question, answer in zip(QUESTIONS, await asyncio.gather(*map(ask, QUESTIONS)), strict=True):
            print(question, "->", answer)


asyncio.run(main())
