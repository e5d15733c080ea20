"""A client of the daemon that `codex-pool serve` runs: stream one turn's text."""

import codex_pool
from codex_app_server import stream_text

with codex_pool.connect() as codex:
    thread = codex.thread_start(ephemeral=True)
    for text in stream_text(thread, "Say hello in one sentence."):
        print(text, end="", flush=True)
    print()
