"""Show who is logged in; and log in by a code, if nobody is and the model provider wants somebody. For asyncio."""

import asyncio

from codex_app_server import AsyncCodex

LIMIT_S = 300


async def main() -> None:
    async with AsyncCodex() as codex:
        response = await codex.account()
        if response.account is not None:
            print("logged in:", response.account.type)
        elif not response.requires_openai_auth:
            print("nobody is logged in, and the model provider does not ask for it")
        else:
            # `login_chatgpt` is the same by browser, `login_api_key` needs no user.
            login = await codex.login_chatgpt_device_code()
            print(f"open {login.verification_url} and enter {login.user_code}")
            try:
                ended = await asyncio.wait_for(login.wait(), LIMIT_S)
            except asyncio.TimeoutError:
                await login.cancel()
                raise SystemExit(f"nobody entered the code within {LIMIT_S} s") from None
            if not ended.success:
                raise SystemExit(f"the log-in failed: {ended.error}")

        thread = await codex.thread_start(ephemeral=True)
        print((await thread.run("Say hello in one sentence.")).final_response)


asyncio.run(main())
