"""Operations on a thread: name it, fork it, shorten it, put it away, bring it back, delete it. For asyncio."""

import asyncio

from codex_app_server import AsyncCodex
from codex_app_server.generated import models


async def main() -> None:
    async with AsyncCodex() as codex:
        thread = await codex.thread_start()
        print((await thread.run("Name a colour.")).final_response)
        await thread.set_name("colours")
        print("named:", (await thread.read()).thread.name)

        # A fork has the history so far; both go on by themselves.
        fork = await codex.thread_fork(thread.id)
        print("fork:", (await fork.run("And another one.")).final_response)

        # The turn that shortens the history belongs to the app-server: it shows among the client's own notifications.
        await fork.compact()
        async for notification in codex.notifications():
            ended = notification.payload
            if isinstance(ended, models.TurnCompletedNotification) and ended.thread_id == fork.id:
                print("compacted:", ended.turn.status)
                break

        await codex.thread_archive(thread.id)
        print("archived:", thread.id in [stored.id for stored in (await codex.thread_list(archived=True)).data])
        await codex.thread_unarchive(thread.id)
        thread = await codex.thread_resume(thread.id)
        print("back:", (await thread.run("Which colour was it?")).final_response)

        await codex.thread_delete(fork.id)
        print("deleted:", fork.id not in [stored.id for stored in (await codex.thread_list()).data])


asyncio.run(main())
