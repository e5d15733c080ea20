"""Steering, joining, interrupting and leaving turns, sync and async, as the published SDK's examples do."""

import asyncio

from openai_codex import AsyncCodex, Codex

# What is added to a turn is answered at once: the answer under way is given up.
SLOW = "[[text chars=400 deltas=40 pace_ms=100]]"
ENDLESS = "[[hang 5 pace_ms=10]]"


def until_delta(stream):
    for event in stream:
        if event.method == "item/agentMessage/delta":
            return event.payload.delta


async def auntil_delta(stream):
    async for event in stream:
        if event.method == "item/agentMessage/delta":
            return event.payload.delta


with Codex() as codex:
    thread = codex.thread_start()
    turn = thread.turn(SLOW)
    stream = turn.stream()
    until_delta(stream)
    steered = turn.steer(f"Be brief. {SLOW}")
    print("steered:", steered.turn_id == turn.id, sorted(steered.model_dump(mode="json", by_alias=True)))
    joined = thread.turn("Still there?", model="next-model")
    print("joined:", joined.id == turn.id)
    stream.close()
    # Nothing was interrupted by that.
    result = joined.run()
    print("left:", result.id == turn.id, result.status.value, result.items[-1].root.type)
    print("next:", thread.run("Next.").status.value)

    turn = thread.turn(ENDLESS)
    stream = turn.stream()
    until_delta(stream)
    print("interrupted:", turn.interrupt().model_dump(mode="json", by_alias=True))
    *_, last = stream
    print("status:", last.method, last.payload.turn.status.value)
    turn = thread.turn(ENDLESS)
    until_delta(turn.stream())
    other = thread.turn("More.")
    turn.interrupt()
    print("both:", other.run().status.value)


async def main() -> None:
    async with AsyncCodex() as codex:
        thread = await codex.thread_start()
        turn = await thread.turn(SLOW)
        stream = turn.stream()
        await auntil_delta(stream)
        print("steered:", (await turn.steer(f"Be brief. {SLOW}")).turn_id == turn.id)
        joined = await thread.turn("Still there?")
        await stream.aclose()
        result = await joined.run()
        print("left:", joined.id == turn.id, result.status.value)
        turn = await thread.turn(SLOW)
        try:
            await asyncio.wait_for(turn.run(), 0.2)
        except (TimeoutError, asyncio.TimeoutError):
            print("gave up")
        print("goes on:", (await thread.run("And now?")).id == turn.id)
        turn = await thread.turn(ENDLESS)
        stream = turn.stream()
        await auntil_delta(stream)
        print("interrupted:", (await turn.interrupt()).model_dump())
        async for event in stream:
            last = event
        print("status:", last.payload.turn.status.value)


asyncio.run(main())
