"""Answer the app-server when it asks whether it may do something.

The handler is called on a thread of its own, with the params in their generated type, and may take its time.
"""

import tempfile
from pathlib import Path
from typing import Any

from codex_app_server import ApprovalMode, Codex, Sandbox
from codex_app_server.generated import models


def decide(method: str, params: Any) -> Any:
    match params:
        case models.CommandExecutionRequestApprovalParams():
            verdict = "accept" if "hello.txt" in (params.command or "") else "decline"
            print(f"asked to run: {params.command} -> {verdict}")
            return models.CommandExecutionRequestApprovalResponse.model_validate({"decision": verdict})
        case models.FileChangeRequestApprovalParams():
            print("asked to change files -> accept")
            return models.FileChangeRequestApprovalResponse.model_validate({"decision": "accept"})
    # An exception declines; so does having no handler at all.
    raise NotImplementedError(method)


with tempfile.TemporaryDirectory() as directory, Codex(approval_handler=decide) as codex:
    thread = codex.thread_start(cwd=directory, sandbox=Sandbox.read_only, approval_mode=ApprovalMode.ask)
    result = thread.run("Write the word hello into the file hello.txt.")
    for item in result.items:
        if isinstance(item, models.CommandExecutionThreadItem):
            print("command:", item.status, item.exit_code)
    print("files:", [path.name for path in Path(directory).iterdir()])
    print(result.final_response)
