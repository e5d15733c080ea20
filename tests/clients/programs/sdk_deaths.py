"""Three turns of openai-codex, while the test kills parts of the pool; the argument is the codex that it runs."""

import sys

from openai_codex import Codex, CodexConfig

with Codex(CodexConfig(codex_bin=sys.argv[1])) as codex:
    thread = codex.thread_start()
    for prompt in ("Count to twelve.", "Count slowly.", "Now go on."):
        text, error = "", None
        for event in thread.turn(prompt).stream():
            if event.method == "item/agentMessage/delta":
                if not text:
                    print("first delta", flush=True)
                text += event.payload.delta
            elif event.method == "turn/completed":
                turn = event.payload.turn
        print("turn", turn.status.value, turn.error.message if turn.error else text, flush=True)
