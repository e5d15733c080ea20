"""Steer a running turn, and interrupt one. For asyncio."""

import asyncio

from codex_app_server import AsyncCodex, InvalidRequestError


async def main() -> None:
    async with AsyncCodex() as codex:
        thread = await codex.thread_start()

        turn = await thread.turn("Count from 1 to 50, each number on a line of its own.")
        async for notification in turn.stream():
            if notification.method == "item/agentMessage/delta":
                break
        # Breaking off the loop left the turn running, and what it sends is kept.
        try:
            await turn.steer("Stop counting and say which number you liked best.")
        except InvalidRequestError:
            print("the turn was over before it could be steered")
        result = await turn.run()
        print("steered:", result.status, "-", result.final_response)

        turn = await thread.turn("Write a very long poem.")
        async for notification in turn.stream():
            if notification.method == "item/agentMessage/delta":
                # No error if it is over by now.
                await turn.interrupt()
                break
        print("interrupted:", (await turn.run()).status)


asyncio.run(main())
