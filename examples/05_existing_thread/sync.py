"""A thread outlives its app-server: begin it with one, go on with another."""

from codex_app_server import Codex

with Codex() as codex:
    thread = codex.thread_start()
    thread.run("My favourite number is 27.")
    thread_id = thread.id

with Codex() as codex:
    newest = codex.thread_list(limit=5).data
    print("stored threads:", *(f"{stored.id} {stored.preview[:30]!r}" for stored in newest), sep="\n  ")

    thread = codex.thread_resume(thread_id)
    print(thread.run("What is my favourite number?").final_response)

    stored = thread.read(include_turns=True).thread
    print(len(stored.turns), "turns in", stored.id)
