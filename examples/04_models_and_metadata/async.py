"""Show what the app-server says of itself, and the models it offers. For asyncio."""

import asyncio

from codex_app_server import AsyncCodex, __version__


async def main() -> None:
    async with AsyncCodex() as codex:
        print("SDK made for:", __version__)
        print("app-server:", codex.metadata.user_agent)
        print("home:", codex.metadata.codex_home)
        for model in (await codex.models()).data:
            efforts = ", ".join(option.reasoning_effort for option in model.supported_reasoning_efforts)
            print("*" if model.is_default else "-", model.model, f"({efforts})")


asyncio.run(main())
