"""The parameters of a turn. Each keyword is a field of the protocol in snake_case; none is required."""

import tempfile

from codex_app_server import Codex, Sandbox

SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "steps": {"type": "array", "items": {"type": "string"}}},
    "required": ["title", "steps"],
    "additionalProperties": False,
}

with tempfile.TemporaryDirectory() as directory, Codex() as codex:
    thread = codex.thread_start(
        ephemeral=True,  # never stored
        developer_instructions="Answer briefly.",  # beside the model's own instructions
    )
    result = thread.run(
        "Plan a walk of one hour.",
        cwd=directory,  # where its commands run, from this turn on; on the app-server's machine
        sandbox=Sandbox.read_only,  # what its commands may do
        approval_mode="deny_all",  # what the sandbox does not allow is not asked for
        effort="low",  # of the model's reasoning
        summary="concise",  # of that reasoning, as reasoning items
        personality="pragmatic",
        output_schema=SCHEMA,  # the answer is JSON; 17_structured_output makes a type of it
        timeout=120,  # of the SDK: seconds, then the turn is interrupted
    )
    print(result.final_response)
