"""Three turns at once on one app-server, with threads of Python. `async.py` is the same with tasks."""

from concurrent.futures import ThreadPoolExecutor

from codex_app_server import Codex

PLACES = ["the sea", "a forest", "a city"]

with Codex() as codex, ThreadPoolExecutor() as executor:

    def describe(place: str) -> str:
        thread = codex.thread_start(ephemeral=True)
        return "".join(thread.turn(f"Describe {place} in one sentence.").text())

    for place, answer in zip(PLACES, executor.map(describe, PLACES), strict=True):
        print(place, "->", answer)
