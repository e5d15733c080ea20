"""A small chat program for asyncio: reads lines, streams answers. /new begins a new thread, /quit or Ctrl-D ends it."""

import asyncio

from codex_app_server import AsyncCodex, AsyncThread, TurnFailedError


async def answer(thread: AsyncThread, line: str) -> None:
    turn = await thread.turn(line)
    print("codex> ", end="", flush=True)
    try:
        async for text in turn.text():
            print(text, end="", flush=True)
        print()
    except TurnFailedError as error:
        print(f"[failed: {error}]")


async def main() -> None:
    async with AsyncCodex() as codex:
        thread = await codex.thread_start()
        while True:
            try:
                # In a thread of its own, so that the event loop stays free.
                line = (await asyncio.to_thread(input, "you> ")).strip()
            except EOFError:
                print()
                return
            if line == "/quit":
                return
            if line == "/new":
                thread = await codex.thread_start()
                print("a new thread:", thread.id)
            elif line:
                await answer(thread, line)


asyncio.run(main())
