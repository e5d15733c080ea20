"""The same calls, async. What comes back is printed without ids, times and paths."""

import asyncio

from openai_codex import (
    ApprovalMode,
    AsyncCodex,
    CodexError,
    ExternalMessage,
    JsonRpcError,
    Sandbox,
    SkillInput,
    TextInput,
    is_retryable_error,
)
from openai_codex.errors import ServerBusyError, map_jsonrpc_error
from openai_codex.models import Notification, UnknownNotification
from openai_codex.types import ReasoningEffort, ReasoningSummary, SandboxPolicy, SortDirection, ThreadSource, TurnStatus


async def retried(call, attempts=3):
    for attempt in range(attempts):
        try:
            return await call()
        except Exception as error:
            if attempt + 1 == attempts or not is_retryable_error(error):
                raise
            await asyncio.sleep(0.05)


async def main() -> None:
    async with AsyncCodex() as codex:
        server = codex.metadata.serverInfo
        print("server:", bool(server.name), server.version.split()[0])
        print("models:", len((await codex.models()).data) > 0)

        thread = await codex.thread_start(
            approval_mode=ApprovalMode.deny_all,
            ephemeral=False,
            model="mock-model",
            sandbox=Sandbox.workspace_write,
            thread_source=ThreadSource.user,
        )
        result = await thread.run("Say hello.", summary=ReasoningSummary.model_validate("auto"))
        print("run:", result.status == TurnStatus.completed, result.final_response)
        print("items:", [item.root.type for item in result.items])

        turn = await thread.turn("Explain.", effort=ReasoningEffort("low"))
        methods, text, last = [], "", None
        async for event in turn.stream():
            last = event
            if event.method == "item/agentMessage/delta":
                text += event.payload.delta
            elif event.method.startswith(("turn/", "item/")) and event.method not in methods[-1:]:
                methods.append(event.method)
        print("stream:", text, methods, last.payload.turn.id == turn.id)
        print("type:", isinstance(last, Notification), isinstance(last.payload, UnknownNotification))

        message = ExternalMessage(tool_name="mail", content="It rains.")
        print("external:", (await thread.run(message)).final_response)
        skill = [TextInput("With this."), SkillInput("walk", "/nowhere/SKILL.md")]
        print("skill:", (await thread.run(skill)).final_response)

        both = await asyncio.gather(
            *(
                other.run(f"Number {place}.")
                for place, other in enumerate([await codex.thread_start(), await codex.thread_start()])
            )
        )
        print("both:", [each.final_response for each in both])

        listed = await codex.thread_list(limit=50, sort_direction=SortDirection.desc)
        print("listed:", thread.id in [each.id for each in listed.data])
        reading = await (await codex.thread_resume(thread.id)).read(include_turns=True)
        print("read:", len(reading.thread.turns), reading.thread.thread_source.value)
        print("named:", type(await thread.set_name("a name")).__name__)
        print("archived:", type(await codex.thread_archive(thread.id)).__name__)
        back = await codex.thread_unarchive(thread.id)
        await codex.thread_resume(back.id)
        forked = await codex.thread_fork(back.id, ephemeral=True, include_turns=False)
        print("forked:", (await retried(lambda: forked.run("Another way."))).final_response)
        print("compacted:", (await back.compact()).model_dump())

        try:
            await codex.thread_resume("00000000-0000-7000-8000-000000000000")
        except JsonRpcError as error:
            print("refused:", error.code, isinstance(error, CodexError), is_retryable_error(error))
        try:
            await forked.run("[[failed server_is_overloaded]]")
        except RuntimeError as error:
            print("failed:", bool(str(error)))
    busy = map_jsonrpc_error(-32000, "busy", {"codexErrorInfo": "server_overloaded"})
    print("busy:", isinstance(busy, ServerBusyError), is_retryable_error(busy))
    print("policy:", SandboxPolicy.model_validate({"type": "readOnly"}).root.type)


asyncio.run(main())
