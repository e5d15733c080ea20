"""codex-acp from npm, as an editor starts it: CODEX_PATH names the codex that it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from codex_servers import CodexServer
from conftest import CODEX_ACP
from json_lines import JsonLines, Message, json_lines


class Editor:
    """An editor with an agent: one session, prompts, and answers to the agent's requests."""

    def __init__(self, server: CodexServer) -> None:
        self._server = server
        self.asked: list[Message] = []
        self.chooses = "allow_once"

    @contextmanager
    def open(self) -> Iterator[None]:
        # Its own default lets a model review what leaves the sandbox, in place of the user.
        env = {
            **self._server.env,
            "CODEX_PATH": self._server.codex_bin,
            "NO_BROWSER": "1",
            "INITIAL_AGENT_MODE": "workspace-write",
        }
        with json_lines([str(CODEX_ACP)], cwd=self._server.work, env=env, answer=self._answer) as agent:
            self.agent: JsonLines = agent
            client = {"protocolVersion": 1, "clientCapabilities": {}, "clientInfo": {"name": "editor", "version": "1"}}
            assert agent.request("initialize", client)["agentInfo"]["version"] == "2.6.0"
            opened = agent.request("session/new", {"cwd": str(self._server.work), "mcpServers": []})
            self.session_id = opened["sessionId"]
            yield
            assert agent.close() == 0

    def start(self, text: str) -> int:
        prompt = [{"type": "text", "text": text}]
        return self.agent.send("session/prompt", {"sessionId": self.session_id, "prompt": prompt})

    def run(self, text: str) -> str:
        """Run a turn, and return why it has stopped."""
        return self.agent.result(self.start(text))["stopReason"]  # type: ignore[no-any-return]

    @property
    def text(self) -> str:
        """All that the agent has said."""
        return "".join(
            message["params"]["update"]["content"]["text"]
            for message in list(self.agent.received)
            if message.get("method") == "session/update"
            and message["params"]["update"]["sessionUpdate"] == "agent_message_chunk"
        )

    def _answer(self, method: str, params: Message) -> Message:
        assert method == "session/request_permission", method
        self.asked.append(params)
        chosen = next(option["optionId"] for option in params["options"] if option["kind"] == self.chooses)
        return {"outcome": {"outcome": "selected", "optionId": chosen}}


def test_prompts_approvals_and_cancelling(server: CodexServer) -> None:
    editor = Editor(server)
    with editor.open():
        assert editor.run("Answer in pieces.") == "end_turn"
        assert "The answer is sextant, and it comes slowly." in editor.text

        assert editor.run("Write a file.") == "end_turn"
        assert len(editor.asked) == 1 and "It is done." in editor.text
        assert (server.work / "by-codex").read_text() == "done\n"

        editor.chooses = "reject_once"
        assert editor.run("Write another file.") in ("end_turn", "cancelled")
        assert len(editor.asked) == 2 and not (server.work / "another").exists()

        turn = editor.start("Count slowly.")
        editor.agent.wait(lambda _: "one" in editor.text)
        editor.agent.notify("session/cancel", {"sessionId": editor.session_id})
        assert editor.agent.result(turn)["stopReason"] == "cancelled"

        assert editor.run("Now go on.") == "end_turn"
        assert editor.text.endswith("The thread goes on.")
    assert server.kind == "real" or server.turns_completed >= 3
