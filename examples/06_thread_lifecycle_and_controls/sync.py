"""Operations on a thread: name it, fork it, shorten it, put it away, bring it back, delete it."""

from codex_app_server import Codex
from codex_app_server.generated import models

with Codex() as codex:
    thread = codex.thread_start()
    print(thread.run("Name a colour.").final_response)
    thread.set_name("colours")
    print("named:", thread.read().thread.name)

    # A fork has the history so far; both go on by themselves.
    fork = codex.thread_fork(thread.id)
    print("fork:", fork.run("And another one.").final_response)

    # The turn that shortens the history belongs to the app-server: it shows among the client's own notifications.
    fork.compact()
    for notification in codex.notifications():
        ended = notification.payload
        if isinstance(ended, models.TurnCompletedNotification) and ended.thread_id == fork.id:
            print("compacted:", ended.turn.status)
            break

    codex.thread_archive(thread.id)
    print("archived:", thread.id in [stored.id for stored in codex.thread_list(archived=True).data])
    codex.thread_unarchive(thread.id)
    thread = codex.thread_resume(thread.id)
    print("back:", thread.run("Which colour was it?").final_response)

    codex.thread_delete(fork.id)
    print("deleted:", fork.id not in [stored.id for stored in codex.thread_list().data])
