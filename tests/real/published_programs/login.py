"""A log-in by browser that is given up at once, sync and async."""

import asyncio

from openai_codex import AsyncCodex, Codex

with Codex() as codex:
    login = codex.login_chatgpt()
    canceled = login.cancel()
    completed = login.wait()
    account = codex.account()
    print(bool(login.login_id), login.auth_url.startswith("https://"), canceled.status.value, completed.success)
    print(account.requires_openai_auth, completed.login_id == login.login_id)


async def main() -> None:
    async with AsyncCodex() as codex:
        login = await codex.login_chatgpt()
        canceled = await login.cancel()
        completed = await login.wait()
        print(bool(login.login_id), canceled.status.value, completed.success)
        print((await codex.account()).requires_openai_auth)


asyncio.run(main())
