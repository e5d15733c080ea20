"""The same program with the asyncio half of openai-codex."""

import asyncio
import sys

from openai_codex import AsyncCodex, CodexConfig


async def main() -> None:
    async with AsyncCodex(CodexConfig(codex_bin=sys.argv[1])) as codex:
        thread = await codex.thread_start()
        print("run:", (await thread.run("Answer in pieces.")).final_response)

        turn = await thread.turn("Answer in pieces.")
        deltas = [event.payload.delta async for event in turn.stream() if event.method == "item/agentMessage/delta"]
        print("streamed:", "".join(deltas), "in more than 5 deltas" if len(deltas) > 5 else deltas)

        turn = await thread.turn("Count slowly.")
        has_steered = False
        async for event in turn.stream():
            if event.method == "item/agentMessage/delta" and not has_steered:
                has_steered = True
                await turn.steer("Another way.")
            elif event.method == "item/completed":
                last = event.payload.item.root
        print("steered:", last.text)

        turn = await thread.turn("Count slowly.")
        has_interrupted = False
        async for event in turn.stream():
            if event.method == "item/agentMessage/delta" and not has_interrupted:
                has_interrupted = True
                await turn.interrupt()
        print("interrupted:", event.payload.turn.status.value)

        resumed = await codex.thread_resume(thread.id)
        answer = (await resumed.run("Now go on.")).final_response
        print("resumed:", answer, "after", len((await resumed.read(include_turns=True)).thread.turns), "turns")

        threads = [await codex.thread_start() for _ in range(8)]
        answers = [result.final_response for result in await asyncio.gather(*(each.run("Begin.") for each in threads))]
        print("at once:", len(answers), "x", *set(answers))


asyncio.run(main())
