"""A program for openai-codex as its users write them; the argument is the codex that it runs."""

import sys
from concurrent.futures import ThreadPoolExecutor

from openai_codex import Codex, CodexConfig

with Codex(CodexConfig(codex_bin=sys.argv[1])) as codex:
    thread = codex.thread_start()
    print("run:", thread.run("Answer in pieces.").final_response)

    deltas = [
        event.payload.delta
        for event in thread.turn("Answer in pieces.").stream()
        if event.method == "item/agentMessage/delta"
    ]
    print("streamed:", "".join(deltas), "in more than 5 deltas" if len(deltas) > 5 else deltas)

    turn = thread.turn("Count slowly.")
    stream = turn.stream()
    next(event for event in stream if event.method == "item/agentMessage/delta")
    turn.steer("Another way.")
    *_, last = (event.payload.item.root for event in stream if event.method == "item/completed")
    print("steered:", last.text)

    turn = thread.turn("Count slowly.")
    stream = turn.stream()
    next(event for event in stream if event.method == "item/agentMessage/delta")
    turn.interrupt()
    *_, last = stream
    print("interrupted:", last.payload.turn.status.value)

    resumed = codex.thread_resume(thread.id)
    answer = resumed.run("Now go on.").final_response
    print("resumed:", answer, "after", len(resumed.read(include_turns=True).thread.turns), "turns")

    threads = [codex.thread_start() for _ in range(8)]
    with ThreadPoolExecutor(8) as executor:
        answers = [result.final_response for result in executor.map(lambda each: each.run("Begin."), threads)]
    print("at once:", len(answers), "x", *set(answers))
