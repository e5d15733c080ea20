"""The calls of the published SDK's examples, sync. What comes back is printed without ids, times and paths."""

import base64
import json
import tempfile
import zlib
from pathlib import Path

from openai_codex import (
    Codex,
    CodexConfig,
    CodexRpcError,
    ImageInput,
    InvalidRequestError,
    JsonRpcError,
    LocalImageInput,
    Sandbox,
    TextInput,
    TurnResult,
    retry_on_overload,
)
from openai_codex.types import (
    Personality,
    ReasoningEffort,
    ReasoningSummary,
    ThreadItem,
    ThreadSortKey,
    ThreadTokenUsageUpdatedNotification,
    TurnCompletedNotification,
    TurnStatus,
)

HIGH = {"model_reasoning_effort": "high"}
SCHEMA = {
    "type": "object",
    "properties": {"summary": {"type": "string"}, "steps": {"type": "array", "items": {"type": "string"}}},
    "required": ["summary", "steps"],
    "additionalProperties": False,
}


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (8).to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    rows = b"".join(b"\0" + b"\x20\x80\xf0" * 8 for _ in range(8))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def kinds(items):
    return [item.root.type for item in items]


with Codex(config=CodexConfig()) as codex:
    server = codex.metadata.serverInfo
    print("server:", bool(server.name), server.version.split()[0], codex.metadata.platformFamily)

    models = codex.models(include_hidden=True)
    visible = [model for model in models.data if not model.hidden]
    print("models:", len(models.data) >= len(codex.models().data) > 0, len(visible) > 0)
    efforts = visible[0].supported_reasoning_efforts
    print("efforts:", [ReasoningEffort(option.reasoning_effort.value).value for option in efforts])
    print("default:", visible[0].default_reasoning_effort.value)
    account = codex.account()
    print("account:", account.account, account.requires_openai_auth)

    thread = codex.thread_start(model="mock-model", config=HIGH, sandbox=Sandbox.read_only)
    first = thread.run("Say hello.")
    print("run:", type(first) is TurnResult, first.status == TurnStatus.completed, first.status.value, first.error)
    print(first.final_response, kinds(first.items), isinstance(first.items[-1], ThreadItem))
    print("usage:", first.usage.last.output_tokens > 0, first.usage.total.total_tokens > 0, first.duration_ms >= 0)

    image = base64.b64encode(png()).decode()
    asked = [TextInput("What is in the image?"), ImageInput(f"data:image/png;base64,{image}")]
    print("image:", thread.turn(asked).run().final_response)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "image.png"
        path.write_bytes(png())
        print("file:", thread.turn([TextInput("And in this one?"), LocalImageInput(str(path))]).run().status.value)

    planned = thread.turn(
        "Plan a walk.",
        cwd=str(Path.cwd()),
        effort=ReasoningEffort.medium,
        model="mock-model",
        output_schema=SCHEMA,
        personality=Personality.pragmatic,
        sandbox=Sandbox.read_only,
        source="a test",
        summary=ReasoningSummary.model_validate("concise"),
    ).run()
    print("schema:", sorted(json.loads(planned.final_response)))

    seen, text, usage, status = [], "", None, None
    for event in thread.turn("Explain.").stream():
        payload = event.payload
        if event.method == "item/agentMessage/delta":
            text += payload.delta
        elif event.method == "item/completed":
            seen.append(payload.item.root.type)
        elif isinstance(payload, ThreadTokenUsageUpdatedNotification):
            usage = payload.token_usage
        elif isinstance(payload, TurnCompletedNotification):
            status = payload.turn.status
    print("stream:", text, seen, usage.last.output_tokens > 0, status.value)

    reopened = codex.thread_resume(thread.id, include_turns=False)
    stored = reopened.read(include_turns=True).thread
    print(
        "stored:",
        len(stored.turns),
        stored.status.root.type,
        Path(stored.cwd.root) == Path.cwd(),
        stored.source.root.value,
    )
    print("items:", kinds(stored.turns[0].items), stored.turns[0].status.value)
    print("named:", type(reopened.set_name("a name")).__name__, reopened.read().thread.name)
    print(
        "listed:",
        thread.id in [each.id for each in codex.thread_list(limit=20, sort_key=ThreadSortKey.updated_at).data],
    )
    print("archived:", codex.thread_archive(thread.id).model_dump(mode="json", by_alias=True))
    print("listed:", thread.id in [each.id for each in codex.thread_list(limit=20, archived=True).data])
    back = codex.thread_unarchive(thread.id)
    resumed = codex.thread_resume(back.id, model="mock-model", config=HIGH)
    print("resumed:", resumed.run("Go on.").final_response)
    forked = codex.thread_fork(back.id, model="mock-model", thread_source=None)
    print("forked:", forked.id != back.id, forked.run("Another way.").final_response)
    print("compacted:", back.compact().model_dump(mode="json", by_alias=True))

    try:
        codex.thread_resume("00000000-0000-7000-8000-000000000000")
    except CodexRpcError as error:
        print("refused:", isinstance(error, InvalidRequestError), isinstance(error, JsonRpcError), error.code)
    try:
        forked.run('[[failed server_is_overloaded message="too much"]]')
    except RuntimeError as error:
        print("failed:", str(error))
    for wrong in ({"sandbox": "read-only"}, {"approval_mode": "never"}):
        try:
            forked.run("Hello.", **wrong)
        except ValueError:
            print("wrong:", sorted(wrong))
    again = retry_on_overload(lambda: forked.turn("Once more.").run(), max_attempts=3, initial_delay_s=0.1)
    print("again:", again.final_response)
