"""The quickstart: one app-server, one thread, one turn."""

from codex_app_server import Codex

with Codex() as codex:
    thread = codex.thread_start()
    result = thread.run("Say hello in one sentence.")
    print(result.final_response)
    print(len(result.items))
