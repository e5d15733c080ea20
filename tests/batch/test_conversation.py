"""Recorded session files of codex as conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from rollout_files import THREADS, lines

from codex_batch.export.conversation import Conversation, Lines, Part, conversation

pytestmark = pytest.mark.quick


def read(name: str, *others: str) -> Conversation:
    files: dict[str, Lines] = {THREADS[each]: partial(lines, each) for each in (name, *others)}
    return conversation(THREADS[name], files)


def changed(name: str, change: Any) -> Conversation:
    """The conversation of a file whose lines were changed; one that becomes None is left out."""

    def all_lines() -> Iterator[bytes]:
        for line in lines(name):
            value = change(json.loads(line))
            if value is not None:
                yield json.dumps(value).encode()

    return conversation("t", {"t": all_lines})


def test_an_answer_of_the_model_is_a_step_with_its_calls_outputs_and_tokens() -> None:
    found = read("commands")
    assert [(step.role, step.is_of_codex) for step in found.steps[:3]] == [
        ("developer", True),
        ("user", True),
        ("user", False),
    ]
    first, second, third, prompt, fourth, last = found.steps[3:]
    assert [call.name for call in first.calls + second.calls] == ["exec_command", "exec_command"]
    assert first.calls[0].arguments == {"cmd": "echo hi; exit 3", "login": False, "yield_time_ms": 30000}
    assert first.calls[0].output is not None and "exited with code 3" in first.calls[0].output[0].text
    assert first.usage is not None and first.usage["output_tokens"] == 4
    assert (third.text, third.reasoning) == ("after thinking: hi\na\nb", ["The user wants an answer. In detail."])
    assert (prompt.role, prompt.text, prompt.is_of_codex) == ("user", "patch it", False)
    assert (fourth.calls[0].name, fourth.reasoning) == ("apply_patch", ["A patch will do. In detail."])
    assert fourth.calls[0].arguments == {"input": "*** Begin Patch\n*** Add File: new.txt\n+hello\n*** End Patch\n"}
    assert last.text == "patched" and last.model == "mock-model"
    assert found.instructions is not None and found.instructions.startswith("You are a coding agent")


def test_images_are_parts_of_an_output() -> None:
    (call,) = read("image").steps[-2].calls
    assert call.output is not None and len(call.output) == 1
    assert call.output[0].image is not None and call.output[0].image.startswith("data:image/png;base64,")


def test_a_call_of_a_tool_that_does_not_exist_has_its_answer() -> None:
    (call,) = read("no-such-tool").steps[-2].calls
    assert (call.name, call.output) == ("no_such_tool", [Part("unsupported call: no_such_tool")])


def test_a_compaction_begins_another_window() -> None:
    first, second = read("compaction").windows
    assert [step.text for step in first.steps if step.is_compaction] == ["summary of it all"]
    assert next(step.text for step in first.steps if step.role == "assistant").startswith('You said: "hello"')
    assert second.is_readable and second.message is not None and second.message.endswith("summary of it all")
    assert [step.text for step in second.initial if not step.is_of_codex][:1] == ["hello"]
    assert second.initial[-1].text.endswith("summary of it all")
    assert second.steps[0].text == "after"


def test_a_fork_begins_with_the_turns_of_its_origin_that_it_has() -> None:
    said = [step.text for step in read("fork", "origin").steps if step.role == "user" and not step.is_of_codex]
    assert said == ["one", "three"]
    assert not any(step.is_copied for step in read("fork", "origin").steps)
    # Without the file of its origin there is what is its own.
    assert [step.text for step in read("fork").steps if not step.is_of_codex and step.role == "user"] == ["three"]


def test_a_fork_of_a_sub_agent_has_copied_what_it_was_forked_from() -> None:
    def of_sub_agent(line: dict[str, Any]) -> dict[str, Any]:
        if line["type"] == "session_meta":
            line["payload"]["source"] = {"subagent": {"thread_spawn": {"parent_thread_id": THREADS["origin"]}}}
        return line

    changed_lines = [json.dumps(of_sub_agent(json.loads(line))).encode() for line in lines("fork")]
    files: dict[str, Lines] = {"t": lambda: changed_lines, THREADS["origin"]: partial(lines, "origin")}
    found = conversation("t", files)
    assert found.parent_id == THREADS["origin"]
    copied = [step.is_copied for step in found.steps]
    assert copied[0] and not copied[-1] and copied == sorted(copied, reverse=True)


def test_a_sub_agent_names_its_parent() -> None:
    assert read("child").parent_id == THREADS["sub-agents"]
    assert read("sub-agents").parent_id is None


def test_files_without_a_record_of_each_request_have_the_counts_of_their_totals() -> None:
    def older(line: dict[str, Any]) -> dict[str, Any] | None:
        return None if line["type"] == "token_usage_record" else line

    steps = [step for step in changed("commands", older).steps if step.role == "assistant"]
    assert [step.usage and step.usage["output_tokens"] for step in steps] == [
        step.usage and step.usage["output_tokens"] for step in read("commands").steps if step.role == "assistant"
    ]


def test_messages_of_codex_are_known_in_files_that_do_not_say_so() -> None:
    def older(line: dict[str, Any]) -> dict[str, Any]:
        line["payload"].pop("internal_chat_message_metadata_passthrough", None)
        return line

    was = [step.is_of_codex for step in read("sub-agents").steps]
    assert [step.is_of_codex for step in changed("sub-agents", older).steps] == was


def test_a_window_that_only_the_service_can_read_is_marked() -> None:
    def remote(line: dict[str, Any]) -> dict[str, Any]:
        if line["type"] == "compacted":
            line["payload"]["replacement_history"].append({"type": "compaction", "encrypted_content": "b3BhcXVl"})
        return line

    assert [window.is_readable for window in changed("compaction", remote).windows] == [True, False]


def test_lines_that_are_no_lines_are_passed_over_and_what_was_cut_is_counted() -> None:
    cut = b'{"type":"codex_pool_cut","payload":{"bytes":7}}'
    files: dict[str, Lines] = {"t": lambda: [b"{", b"[]", b"\xff", b'{"type":1}', cut, *lines("image")]}
    found = conversation("t", files)
    assert found.cut_bytes == 7 and len(found.steps) == len(read("image").steps)
