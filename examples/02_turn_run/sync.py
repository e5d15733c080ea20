"""A turn and everything that its result says."""

from codex_app_server import Codex

with Codex() as codex:
    thread = codex.thread_start()
    turn = thread.turn("Give three facts about rivers.")
    print("turn", turn.id)
    result = turn.run()

    print("status:", result.status)
    print("took:", result.duration_ms, "ms")
    print("items:", ", ".join(item.type for item in result.items))
    if result.usage is not None:
        print("tokens:", result.usage.last.total_tokens, "in this turn,", result.usage.total.total_tokens, "in all")
    print(result.final_response or "(no answer)")
