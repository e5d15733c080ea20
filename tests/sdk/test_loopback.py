"""The scripted model: its rules, its HTTP, and real codex processes on it."""

from __future__ import annotations

import gc
import http.client
import importlib.util
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from codex_app_server import AppServerConfig
from codex_app_server.testing.loopback import (
    Attempts,
    Drop,
    Failed,
    Hang,
    HttpError,
    Json,
    LoopbackModel,
    Messages,
    ModelRequest,
    Rule,
    Script,
    ScriptError,
    Text,
    ToolCall,
    load_script,
    loopback_config_toml,
    write_loopback_home,
)
from codex_app_server.testing.loopback.demo import DEMO_DATASET, DEMO_SCRIPT, demo_jsonl
from codex_app_server.testing.loopback.directives import DirectiveError
from codex_app_server.testing.loopback.request import RequestError, read_request
from codex_app_server.testing.loopback.schema import minimal_instance
from codex_app_server.testing.loopback.script import Answer as AnyAnswer
from codex_app_server.testing.loopback.script import answer_of_directives
from codex_app_server.testing.loopback.stream import plan, split_text

WAIT_S = 20.0


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(2)
    assert not [thread for thread in left if thread.is_alive()]


# Scripts: pure.


def asked(prompt: str, *outputs: str, schema: dict[str, Any] | None = None) -> ModelRequest:
    return ModelRequest(prompt=prompt, user_texts=("earlier", prompt), tool_outputs=outputs, output_schema=schema)


def test_first_matching_rule_answers() -> None:
    script = Script(
        (
            Rule(Text("one"), contains="2 + 2", attempt=1),
            Rule(Text("more"), contains="2 + 2"),
            Rule(Text("pattern"), regex="^list .* files$"),
            Rule(Text("history"), contains="earlier", any_text=True),
        )
    )
    assert script.answer(asked("what is 2 + 2?"), attempt=1) == Text("one")
    assert script.answer(asked("what is 2 + 2?"), attempt=2) == Text("more")
    assert script.answer(asked("list all files")) == Text("pattern")
    assert script.answer(asked("anything")) == Text("history")


def test_rules_may_look_at_model_effort_and_instructions() -> None:
    script = Script(
        (
            Rule(Text("small"), model="small", effort="low"),
            Rule(Text("thinks"), effort="high"),
            Rule(Text("told"), instructions="Be terse."),
        ),
        Text("else"),
    )
    assert Script.from_json(script.to_json()) == script

    def answer(**of_request: str) -> Any:
        return script.answer(msgspec.structs.replace(asked("2 + 2"), **of_request))

    assert answer(model="small", effort="low") == Text("small")
    assert answer(model="small", effort="high") == answer(model="large", effort="high") == Text("thinks")
    assert answer(model="small", instructions="You are ...\n\nBe terse. Be kind.") == Text("told")
    assert answer(model="smaller", effort="low") == answer() == Text("else")


def test_rules_win_over_directives_and_those_over_the_default() -> None:
    assert Script((Rule(Text("rule")),)).answer(asked("[[text directive]]")) == Text("rule")
    assert Script(default=Text("default")).answer(asked("[[text directive]]")) == Text("directive")
    assert Script(default=Text("default")).answer(asked("x", schema={"type": "object"})) == Text("default")
    assert Script().answer(asked("x", schema={"type": "object"})) == Json({})
    assert Script().answer(asked("x")) == Text()


def test_the_last_attempt_repeats() -> None:
    script = Script((Rule(Attempts.of(Drop(1), HttpError(500), Text("ok"))),))
    assert [script.answer(asked("x"), n) for n in (1, 2, 3, 4)] == [Drop(1), HttpError(500), Text("ok"), Text("ok")]


def test_a_tool_call_makes_its_commands_one_by_one_and_then_answers() -> None:
    script = Script((Rule(ToolCall(("a", "b"), Attempts.of(Drop(), Text("{output}")))),))
    assert script.answer(asked("x")) == ToolCall("a")
    assert script.answer(asked("x", "1")) == ToolCall("b")
    assert script.answer(asked("x", "1", "2"), 1, 1) == Drop()
    assert script.answer(asked("x", "1", "2"), 1, 2) == Text("{output}")


def test_a_script_survives_its_json_form() -> None:
    answers = (
        Text("a", 1, phase="commentary"),
        Json({"a": [1]}, pace_ms=2.5),
        ToolCall(("a", "b"), Text("done"), escalate=True),
        ToolCall('{"path": "a.png"}', tool="view_image"),
        HttpError(429, "slow down", 2.0, "rate"),
        Failed("server_is_overloaded"),
        Drop(None),
        Hang(3, pace_ms=1),
        Messages((Text("a"), Json(1))),
        Attempts.of(Drop(), Text()),
    )
    script = Script(tuple(Rule(answer, regex="x|y", attempt=2) for answer in answers), Text("z"))
    assert Script.from_json(script.to_json()) == script
    assert Script.from_json(DEMO_SCRIPT.to_json()) == DEMO_SCRIPT


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", ["f.json", "array"]),
        ("{", ["f.json"]),
        ('{"rule": []}', ["f.json", "rule"]),
        (
            '{"rules": [{"answer": {"type": "text"}}, {"answer": {"type": "tex"}}]}',
            ["rule 2 of 2", "tex", "answer.type"],
        ),
        ('{"rules": [{"answer": {"type": "text", "txt": "a"}}]}', ["rule 1 of 1", "txt", "answer"]),
        ('{"rules": [{"answer": {"type": "text", "deltas": "a"}}]}', ["rule 1 of 1", "answer.deltas", "int"]),
        ('{"rules": [{"answer": {"type": "text", "text": "ab", "deltas": 5}}]}', ["2 characters", "5 deltas"]),
        ('{"rules": [{"contains": "a", "regex": "b", "answer": {"type": "text"}}]}', ["exclude each other"]),
        ('{"rules": [{"regex": "(", "answer": {"type": "text"}}]}', ["rule 1 of 1", "does not compile"]),
        ('{"rules": [{"contains": "a"}]}', ["rule 1 of 1", "answer"]),
        ('{"default": {"type": "http_error", "status": 200}}', ["default", "200", "400 to 599"]),
        ('{"default": {"type": "hang", "pace_ms": -1}}', ["default", "-1"]),
        ('{"default": {"type": "tool_call", "cmd": []}}', ["default", "empty list"]),
    ],
)
def test_a_bad_script_is_refused_with_its_place(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ScriptError) as caught:
        Script.from_json(text, name="f.json")
    assert [word for word in words if word not in str(caught.value)] == []
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(ScriptError, match=r"f\.json"):
        load_script(path)


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"none\.json: cannot be read"):
        load_script(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("please [[text deltas=40 pace_ms=5]] now", Text(deltas=40, pace_ms=5)),
        ('[[text "a \\"b\\" ]] c" deltas=2]]', Text('a "b" ]] c', 2)),
        ("[[text chars=1000 chunk_chars=10]]", Text(chars=1000, chunk_chars=10)),
        ("[[text hi phase=commentary]]", Text("hi", phase="commentary")),
        ("""[[json '{"a": [1]}' deltas=2]]""", Json({"a": [1]}, 2)),
        ("[[http_error 429 retry_after_s=1.5]]", HttpError(429, retry_after_s=1.5)),
        ('[[failed server_is_overloaded message="busy now"]]', Failed("server_is_overloaded", "busy now")),
        ("[[hang 5 pace_ms=10]]", Hang(5, 10)),
        ("[[hang null]]", Hang(None)),
        ("[[drop]] [[text ok]]", Attempts.of(Drop(), Text("ok"))),
        (
            "[[tool_call 'echo [[ -f x ]]']] [[text \"got\\n{output}\"]]",
            ToolCall("echo [[ -f x ]]", Text("got\n{output}")),
        ),
        ("[[drop]] [[tool_call ls]] [[text a]]", Attempts.of(Drop(), ToolCall("ls", Text("a")))),
        ("if [[ -f text ]]; then see [[link]] [[texts]]", None),
        ("plain", None),
    ],
)
def test_directives(prompt: str, answer: Any) -> None:
    assert answer_of_directives(prompt) == answer


@pytest.mark.parametrize(
    "prompt", ["[[text a b]]", "[[text colour=1]]", "[[drop many]]", "[[json '{']]", "[[http_error]]"]
)
def test_a_wrong_directive_is_named(prompt: str) -> None:
    with pytest.raises(DirectiveError) as caught:
        answer_of_directives(prompt)
    assert prompt in str(caught.value)


def test_a_huge_prompt_is_searched_for_directives_in_no_time() -> None:
    started = time.monotonic()
    assert answer_of_directives("[[text " * 50_000 + "a " * 1_000_000) is None
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}, {"a": 0}),
        ({"type": "array", "items": {"type": "string", "minLength": 2}, "minItems": 2}, ["xx", "xx"]),
        ({"enum": ["b", "a"]}, "b"),
        ({"const": 5}, 5),
        ({"type": ["string", "null"]}, None),
        ({"type": "number", "exclusiveMinimum": 1}, 1.5),
        ({"type": "integer", "maximum": -3}, -3),
        ({"anyOf": [{"type": "boolean"}, {"type": "string"}]}, False),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}, ""),
        ({"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"type": "object"}]}, {"a": 1}),
        (True, None),
    ],
)
def test_minimal_instance(schema: Any, value: Any) -> None:
    assert minimal_instance(schema) == value


def test_a_recursive_schema_ends() -> None:
    node = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "self": {"$ref": "#"}},
        "required": ["next"],
    }
    assert minimal_instance(node) == {"next": None}
    minimal_instance({**node, "required": ["self"]})


def test_what_codex_says_in_the_users_role_is_not_the_prompt() -> None:
    def message(role: str, *texts: str) -> dict[str, Any]:
        return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text} for text in texts]}

    body = {
        "model": "m",
        "reasoning": {"effort": "low", "summary": "auto"},
        "input": [
            message("developer", "be good"),
            message("user", "<environment_context>\n</environment_context>"),
            message("user", "hello", "there"),
            {"type": "function_call", "name": "exec_command", "call_id": "1", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "old"},
            message("user", "second"),
            {"type": "function_call_output", "call_id": "2", "output": "new"},
            {"type": "function_call_output", "call_id": "3", "output": [{"type": "input_image", "image_url": "data:"}]},
            message("user", "<turn_aborted>\n</turn_aborted>"),
        ],
        "tools": [{"type": "function", "name": "exec_command", "parameters": {}}, {"type": "web_search"}],
        "text": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    }
    request = read_request(json.dumps(body).encode())
    assert (request.prompt, request.user_texts) == ("second", ("hello\nthere", "second"))
    assert (request.tool_outputs, request.tools) == (("new", "data:"), ("exec_command", "web_search"))
    assert (request.instructions, request.output_schema) == ("be good", {"type": "object"})
    assert (request.model, request.effort) == ("m", "low")
    for reasoning in (None, {}, {"effort": None}):
        assert read_request(json.dumps({**body, "reasoning": reasoning}).encode()).effort == ""


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"input": 5}', b"\xff\xfe", b'{"input": [1]}'])
def test_a_body_that_is_no_request(body: bytes) -> None:
    with pytest.raises(RequestError, match="not a Responses API request"):
        read_request(body)


def test_text_is_cut_into_as_many_deltas_as_asked() -> None:
    assert split_text("abcdefg", 3) == ["ab", "cd", "efg"]
    assert split_text("abcdefg", None, 3) == ["abc", "def", "g"]
    assert len(split_text("x" * 100, None)) == 20
    assert split_text("ab", 20) == ["a", "b"]
    assert split_text("", 5) == []
    for deltas in (1, 20, 500):
        frames = plan(Text(deltas=deltas), asked("hi"), "r").frames
        assert sum(frame.deltas for frame in frames) == deltas


# The server: over HTTP.


@pytest.fixture
def model() -> Iterator[LoopbackModel]:
    with LoopbackModel() as model:
        yield model


class Client:
    """One connection to the model."""

    def __init__(self, model: LoopbackModel) -> None:
        self.http = http.client.HTTPConnection("127.0.0.1", model.port, timeout=WAIT_S)

    def ask(self, prompt: str, **headers: str) -> http.client.HTTPResponse:
        self.http.request("POST", "/v1/responses", json.dumps({"input": prompt}), headers)
        return self.http.getresponse()

    def events(self, prompt: str) -> list[dict[str, Any]]:
        lines = self.ask(prompt).read().decode().splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]

    def get(self, path: str) -> Any:
        self.http.request("GET", path)
        return json.loads(self.http.getresponse().read())


@pytest.fixture
def client(model: LoopbackModel) -> Iterator[Client]:
    client = Client(model)
    yield client
    client.http.close()


@pytest.mark.parametrize("pace_ms", [0, 2])
def test_stamped_deltas_are_the_times_of_their_writing(client: Client, pace_ms: int) -> None:
    before = time.time()
    events = client.events(f"[[text deltas=4 pace_ms={pace_ms} stamped=true]]")
    stamps = [float(data["delta"]) for data in events if data["type"] == "response.output_text.delta"]
    assert len(stamps) == 4 and sorted(stamps) == stamps
    assert before - 0.001 <= stamps[0] and stamps[-1] <= time.time()


@pytest.mark.parametrize("pace_ms", [0, 2])
def test_a_text_comes_in_its_deltas(model: LoopbackModel, client: Client, pace_ms: int) -> None:
    for _ in range(2):
        events = client.events(f"[[text 'hello world' deltas=4 pace_ms={pace_ms}]]")
        kinds = [event["type"].removeprefix("response.") for event in events]
        assert kinds == ["created", "output_item.added", *["output_text.delta"] * 4, "output_item.done", "completed"]
        assert "".join(event.get("delta", "") for event in events) == "hello world"
        assert events[-2]["item"]["content"][0]["text"] == "hello world"
        assert events[-1]["response"]["usage"]["total_tokens"] > 0
    first, second = model.requests
    assert (first.outcome, first.deltas_sent, first.answer, second.number, second.attempt) == (
        "completed",
        4,
        "text",
        2,
        2,
    )
    assert first.ended_at is not None and first.ended_at >= first.received_at
    assert model.active == []


def test_messages_have_their_phases(model: LoopbackModel, client: Client) -> None:
    model.script = Script(default=Messages((Text("hm", phase="commentary"), Text("{prompt}!", phase="final_answer"))))
    items = [event["item"] for event in client.events("yes") if event["type"] == "response.output_item.done"]
    assert [(item["phase"], item["content"][0]["text"]) for item in items] == [
        ("commentary", "hm"),
        ("final_answer", "yes!"),
    ]
    assert items[0]["id"] != items[1]["id"]


def test_http_errors_keep_the_connection(model: LoopbackModel, client: Client) -> None:
    response = client.ask("[[http_error 429 retry_after_s=1.2 code=slow message='wait a bit']]")
    assert (response.status, response.headers["Retry-After"]) == (429, "2")
    assert json.loads(response.read())["error"] == {"message": "wait a bit", "type": "slow", "code": "slow"}
    assert client.events("[[failed bad message=no]]")[-1]["response"]["error"] == {"code": "bad", "message": "no"}
    response = client.ask("[[text colour=1]]")
    assert response.status == 400 and "colour" in json.loads(response.read())["error"]["message"]
    assert [(r.answer, r.outcome) for r in model.requests] == [
        ("http_error", "http_error"),
        ("failed", "failed"),
        ("refused", "http_error"),
    ]


@pytest.mark.parametrize(("prompt", "sent"), [("[[drop 3]]", 3), ("[[drop 2 pace_ms=1]]", 2), ("[[drop]]", 0)])
def test_a_dropped_connection(model: LoopbackModel, client: Client, prompt: str, sent: int) -> None:
    # `with`: a response that failed to be read keeps its socket.
    with client.ask(prompt) as response, pytest.raises(http.client.IncompleteRead):
        response.read()
    assert (model.requests[-1].outcome, model.requests[-1].deltas_sent) == ("dropped", sent)


def test_a_connection_dropped_before_the_first_byte(client: Client) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        client.ask("[[drop null]]")


@pytest.mark.parametrize(
    "prompt", ["[[hang 3]]", "[[hang]]", "[[hang 2 pace_ms=1]]", "[[text deltas=20 pace_ms=10000]]"]
)
def test_a_disconnect_is_seen_in_the_silence(model: LoopbackModel, prompt: str) -> None:
    client = Client(model)
    response = client.ask(prompt)
    record = model.wait_for(lambda r: r.outcome == "hanging" or r.answer == "text", WAIT_S)
    assert model.active == [record]
    response.close()
    client.http.close()
    model.wait_for(lambda r: r.outcome == "disconnected", WAIT_S)
    assert model.active == []


def test_records_say_who_asked(client: Client, model: LoopbackModel) -> None:
    metadata = json.dumps({"turn_id": "T"})
    client.ask("hi", **{"thread-id": "A", "session-id": "B", "x-codex-turn-metadata": metadata}).read()
    record = model.requests[0]
    assert (record.thread_id, record.session_id, record.turn_id) == ("A", "B", "T")
    (seen,) = client.get("/loopback/requests")
    assert (seen["prompt"], seen["outcome"], seen["thread_id"]) == ("hi", "completed", "A")
    assert client.get("/v1/models") == {"models": [], "data": []}
    assert "not served here" in client.get("/elsewhere")["error"]["message"]


def test_attempts_are_counted_for_each_model_and_effort(model: LoopbackModel) -> None:
    for name, effort in (("a", "low"), ("a", "high"), ("b", "low"), ("a", "low")):
        body = {"model": name, "reasoning": {"effort": effort}, "input": "hi", "stream": True}
        request = urllib.request.Request(f"{model.base_url}/responses", json.dumps(body).encode())
        urllib.request.urlopen(request, timeout=WAIT_S).read()
    found = [(record.model, record.effort, record.attempt) for record in model.requests]
    assert found == [("a", "low", 1), ("a", "high", 1), ("b", "low", 1), ("a", "low", 2)]


def test_the_guide_has_every_field_of_a_script() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "loopback.md").read_text(encoding="utf-8")
    section = guide.partition("## The script")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?:`(\w+)` )?\| `(\w+)` \| [^|]+ \| [^|]+ \|", section, re.MULTILINE)
    documented: dict[str, list[str]] = {}
    kind = ""
    for name, field in rows:
        kind = name or kind
        documented.setdefault(kind, []).append(field)
    kinds = {"script": Script, "rule": Rule}
    kinds |= {answer.__struct_config__.tag: answer for answer in get_args(AnyAnswer)}
    assert documented == {name: sorted_fields(kind) for name, kind in kinds.items()}


def sorted_fields(kind: Any) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def test_wait_for_counts_and_complains(client: Client, model: LoopbackModel) -> None:
    client.ask("one").read()
    client.ask("two").read()
    assert model.wait_for(lambda r: r.outcome == "completed", WAIT_S, count=2).prompt == "two"
    with pytest.raises(
        TimeoutError, match=r"0 of 1 expected requests came within 0.01 s.*\n.*'one' -> text, completed"
    ):
        model.wait_for(lambda r: r.prompt == "three", 0.01)


def test_old_records_go(client: Client) -> None:
    with LoopbackModel(records_kept=3) as model:
        client = Client(model)
        for number in range(5):
            client.ask(str(number)).read()
        assert [record.prompt for record in model.requests] == ["2", "3", "4"]
        client.http.close()


def raw(model: LoopbackModel, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", model.port), timeout=WAIT_S) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"rubbish\r\n\r\n", b"400"),
        (b"\x16\x03\x01 \x00 \r\n\r\n", b"400"),
        (b"POST /v1/responses HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"POST /v1/responses HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /v1/responses HTTP/1.1\r\nContent-Length: 67108865\r\n\r\n", b"413"),
        (b"POST /v1/responses HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST /v1/responses HTTP/1.1\r\nContent-Encoding: zstd\r\nContent-Length: 1\r\n\r\nx", b"415"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000, b"431"),
        (b"POST /v1/responses HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", b"400"),
        (b"GET /v1/models HTTP/1.0\r\n\r\n", b"200"),
    ],
)
def test_raw_requests(model: LoopbackModel, data: bytes, status: bytes) -> None:
    assert raw(model, data).startswith(b"HTTP/1.1 " + status)
    assert model.requests == []


def test_bytes_may_come_in_pieces_and_requests_at_once(model: LoopbackModel) -> None:
    body = json.dumps({"input": "[[text a pace_ms=1]]"}).encode()
    request = b"POST /v1/responses HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n" % len(body)
    whole = request + b"\r\n" + body + request + b"Connection: close\r\n\r\n" + body
    with socket.create_connection(("127.0.0.1", model.port), timeout=WAIT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(0, len(whole), 7):
            connection.send(whole[position : position + 7])
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert [r.outcome for r in model.requests] == ["completed", "completed"]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org", "::", ""])
def test_only_loopback_is_served(host: str) -> None:
    with pytest.raises(ValueError, match="expected a loopback address"):
        LoopbackModel(host=host)


def test_close_ends_everything() -> None:
    model = LoopbackModel()
    model.close()
    with model:
        client = Client(model)
        client.ask("[[hang]]")
        record = model.wait_for(lambda r: r.outcome == "hanging", WAIT_S)
        port = model.port
    model.close()
    assert record.outcome == "closed"
    assert client.http.sock is None or client.http.sock.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
    assert not [thread for thread in threading.enumerate() if thread.name == "loopback-model"]
    client.http.close()


def test_a_closed_model_starts_again_on_its_port() -> None:
    with LoopbackModel() as model:
        url = model.base_url
    with model:
        assert model.base_url == url
        client = Client(model)
        assert client.ask("hi").status == 200
        client.http.close()


@pytest.mark.filterwarnings("error")
def test_it_may_close_at_any_moment(caplog: pytest.LogCaptureFixture) -> None:
    # asyncio logs an error when a server closes between accepting a connection and making its transport.
    model = LoopbackModel()
    for number in range(100):
        with model:
            sockets = [socket.create_connection(("127.0.0.1", model.port), WAIT_S) for _ in range(number % 4)]
        for connection in sockets:
            connection.close()
    gc.collect()
    assert caplog.records == []


def test_a_taken_port_is_an_error(model: LoopbackModel) -> None:
    with pytest.raises(OSError):
        LoopbackModel(port=model.port).start()


def test_a_hundred_streams_at_once(model: LoopbackModel) -> None:
    clients = [Client(model) for _ in range(100)]
    for client in clients:
        client.http.request("POST", "/v1/responses", json.dumps({"input": "[[text deltas=20 pace_ms=5]]"}))
    for client in clients:
        assert client.http.getresponse().read().count(b"output_text.delta\ndata") == 20
        client.http.close()
    assert {record.outcome for record in model.requests} == {"completed"}


# Homes.


def test_a_home_is_rewritten_but_never_taken_over(tmp_path: Path) -> None:
    home = write_loopback_home(tmp_path / "home", "http://127.0.0.1:1/v1")
    assert home.stat().st_mode & 0o777 == 0o700
    write_loopback_home(home, "http://127.0.0.1:2/v1", sandbox_mode="workspace-write", approval_policy="on-request")
    text = (home / "config.toml").read_text()
    assert "127.0.0.1:2" in text and 'sandbox_mode = "workspace-write"' in text
    assert text == loopback_config_toml(
        "http://127.0.0.1:2/v1", sandbox_mode="workspace-write", approval_policy="on-request"
    )
    (home / "config.toml").write_text("model = 'mine'\n")
    with pytest.raises(FileExistsError, match=r"config\.toml"):
        write_loopback_home(home, "http://127.0.0.1:3/v1")
    assert (home / "config.toml").read_text() == "model = 'mine'\n"


# The child process.


def child(config: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "codex_app_server.testing.loopback"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(config.encode() + b"\n")
    process.stdin.flush()
    return process, json.loads(process.stdout.readline())


def reap(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(WAIT_S)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.mark.parametrize("end", ["eof", signal.SIGTERM])
def test_the_child_serves_until_told(end: Any) -> None:
    process, ready = child('{"script": "demo"}')
    assert (ready["event"], ready["pid"]) == ("ready", process.pid)
    port = int(ready["base_url"].split(":")[2].split("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    connection.request("POST", "/v1/responses", json.dumps({"input": DEMO_DATASET[0]["prompt"]}))
    assert b"408" in connection.getresponse().read()
    connection.close()
    process.send_signal(signal.SIGINT)
    if end == "eof":
        assert process.stdin is not None
        process.stdin.close()
    else:
        process.send_signal(end)
    assert reap(process) == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('{"script": "/nowhere/x.json"}', "/nowhere/x.json: cannot be read"),
        ('{"host": "0.0.0.0"}', "expected a loopback address"),
        ("nonsense", "expected one JSON line"),
        ('{"prot": 1}', "prot"),
    ],
)
def test_the_child_says_why_it_cannot_serve(config: str, words: str) -> None:
    process, answer = child(config)
    assert answer["event"] == "failed" and words in answer["message"]
    assert reap(process) == 2


# The demo.


def test_the_demo_data_set_is_the_example() -> None:
    example = Path(__file__).parents[2] / "examples" / "batch" / "prompts.jsonl"
    assert example.read_text(encoding="utf-8") == demo_jsonl()


def test_the_demo_answers_what_it_expects() -> None:
    assert len({sample["id"] for sample in DEMO_DATASET}) == len(DEMO_DATASET) >= 26
    fields = {"id", "prompt", "cwd", "model", "effort", "sandbox", "output_schema", "timeout_s", "metadata"}
    for sample in DEMO_DATASET:
        assert set(sample) <= fields
        outputs = ("10",) if sample["id"] == "write-file" else ()
        planned = plan(DEMO_SCRIPT.answer(asked(sample["prompt"], *outputs), attempt=2), asked("x", *outputs), "r")
        said = b"".join(frame.data for frame in planned.frames).decode()
        assert planned.end == "completed"
        assert json.dumps(sample["metadata"].get("expected", ""), ensure_ascii=False)[1:-1] in said
        assert sum(frame.wait_ms for frame in planned.frames) < 1500
    (flaky,) = [sample for sample in DEMO_DATASET if sample["id"] == "flaky-network"]
    assert isinstance(DEMO_SCRIPT.answer(asked(flaky["prompt"]), attempt=1), Drop)


# Real codex.


def codex_binary() -> str | None:
    spec = importlib.util.find_spec("codex_cli_bin")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(place) / "bin" / "codex"
        if binary.exists():
            return str(binary)
    return shutil.which("codex")


CODEX = codex_binary()
needs_codex = pytest.mark.real
Message = dict[str, Any]


class AppServer:
    """Just enough of a client: one real app-server, requests one at a time, notifications in a list."""

    def __init__(self, home: Path) -> None:
        assert CODEX is not None
        told = {"CODEX_HOME": str(home), "RUST_LOG": "off", "CODEX_APP_SERVER_DISABLE_MANAGED_CONFIG": "1"}
        env = AppServerConfig(env=told).environ()
        self.process = subprocess.Popen(
            [CODEX, "app-server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            start_new_session=True,
        )
        self.seen: list[Message] = []
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._number = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.call("initialize", clientInfo={"name": "test", "version": "0"}, capabilities={"experimentalApi": True})
        self.send({"method": "initialized"})

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def send(self, message: Message) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def until(self, wanted: Callable[[Message], object]) -> Message:
        deadline = time.monotonic() + WAIT_S
        while True:
            message = json.loads(self._lines.get(timeout=max(0.01, deadline - time.monotonic())))
            self.seen.append(message)
            if wanted(message):
                return dict(message)

    def call(self, method: str, **params: Any) -> Message:
        self._number += 1
        number = self._number
        self.send({"id": number, "method": method, "params": params})
        answer = self.until(lambda message: message.get("id") == number and "method" not in message)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def thread(self, cwd: Path, **params: Any) -> str:
        return str(self.call("thread/start", cwd=str(cwd), **params)["thread"]["id"])

    def start(self, thread: str, text: str, **params: Any) -> str:
        self.seen.clear()
        turn = self.call("turn/start", threadId=thread, input=[{"type": "text", "text": text}], **params)
        return str(turn["turn"]["id"])

    def end(self) -> Message:
        """The turn that completes next, with what it said and its deltas."""
        turn = dict(self.until(lambda message: message.get("method") == "turn/completed")["params"]["turn"])
        said = [item["text"] for item in turn["items"] if item["type"] == "agentMessage"]
        deltas = [m for m in self.seen if m.get("method") == "item/agentMessage/delta"]
        return {**turn, "said": said[-1] if said else None, "deltas": len(deltas)}

    def run(self, text: str, cwd: Path, **params: Any) -> Message:
        self.start(self.thread(cwd, sandbox="workspace-write"), text, **params)
        return self.end()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(WAIT_S)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            self._reader.join(WAIT_S)
            self.process.stdout.close()


@pytest.fixture
def codex(model: LoopbackModel, tmp_path: Path) -> Iterator[AppServer]:
    server = AppServer(write_loopback_home(tmp_path / "home", model.base_url, approval_policy="on-request"))
    yield server
    server.close()


@needs_codex
def test_real_text_turn(codex: AppServer, model: LoopbackModel, tmp_path: Path) -> None:
    for prompt, deltas in (("[[text deltas=40]]", 40), ("[[text 'seven77' deltas=7 pace_ms=5]]", 7)):
        turn = codex.run(prompt, tmp_path)
        assert (turn["status"], turn["deltas"]) == ("completed", deltas)
        record = model.requests[-1]
        assert (record.prompt, record.turn_id, record.deltas_sent) == (prompt, turn["id"], deltas)
        assert record.user_texts == (prompt,) and "exec_command" in record.tools and record.instructions


@needs_codex
def test_real_tool_call_leaves_a_file(codex: AppServer, model: LoopbackModel, tmp_path: Path) -> None:
    turn = codex.run("[[tool_call 'echo hi > left.txt; echo out']] [[text 'it said {output}']]", tmp_path)
    assert turn["said"] == "it said out"
    assert (tmp_path / "left.txt").read_text() == "hi\n"
    first, second = model.requests
    assert (first.answer, first.tool_outputs, second.answer) == ("tool_call", (), "text")
    assert "out" in second.tool_outputs[0] and second.attempt == 1


@needs_codex
def test_real_approval_is_asked_for(codex: AppServer, tmp_path: Path) -> None:
    codex.start(codex.thread(tmp_path), "[[tool_call 'echo approved' escalate=true]] [[text '{output}']]")
    request = codex.until(lambda m: m.get("method") == "item/commandExecution/requestApproval")
    codex.send({"id": request["id"], "result": {"decision": "accept"}})
    assert codex.end()["said"] == "approved"


@needs_codex
def test_real_output_schema(codex: AppServer, model: LoopbackModel, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    assert json.loads(codex.run("as JSON", tmp_path, outputSchema=schema)["said"]) == {"a": 0, "b": ""}
    assert model.requests[-1].output_schema == schema


@needs_codex
def test_real_failures(codex: AppServer, tmp_path: Path) -> None:
    for prompt, info in (
        ("[[http_error 429]]", {"responseTooManyFailedAttempts": {"httpStatusCode": 429}}),
        ("[[http_error 429 code=usage_limit_reached]]", "usageLimitExceeded"),
        ("[[http_error 500]]", "internalServerError"),
        ("[[http_error 503 code=server_is_overloaded]]", "serverOverloaded"),
        ("[[http_error 401]]", {"httpConnectionFailed": {"httpStatusCode": 401}}),
        ("[[failed server_is_overloaded]]", "serverOverloaded"),
        ("[[failed context_length_exceeded]]", "contextWindowExceeded"),
        ("[[failed]]", "other"),
        ("[[drop 3]]", "other"),
        ("[[drop null]]", "other"),
    ):
        turn = codex.run(prompt, tmp_path)
        assert (turn["status"], turn["error"]["codexErrorInfo"]) == ("failed", info), prompt


@needs_codex
def test_real_second_attempt_completes(codex: AppServer, model: LoopbackModel, tmp_path: Path) -> None:
    prompt = "[[drop 2]] [[text recovered]]"
    failed = codex.run(prompt, tmp_path)
    assert failed["error"]["message"].startswith("stream disconnected before completion")
    assert codex.run(prompt, tmp_path)["said"] == "recovered"
    assert [(r.outcome, r.attempt) for r in model.requests] == [("dropped", 1), ("completed", 2)]


@needs_codex
def test_real_codex_retries_by_itself_when_the_home_says_so(tmp_path: Path) -> None:
    with LoopbackModel() as model:
        codex = AppServer(write_loopback_home(tmp_path / "home", model.base_url, stream_max_retries=1))
        try:
            assert codex.run("[[drop 2]] [[text recovered]]", tmp_path)["said"] == "recovered"
        finally:
            codex.close()
        assert len({record.turn_id for record in model.requests}) == 1
        assert [record.attempt for record in model.requests] == [1, 2]


@needs_codex
def test_real_interrupt_closes_the_connection(codex: AppServer, model: LoopbackModel, tmp_path: Path) -> None:
    thread = codex.thread(tmp_path)
    turn = codex.start(thread, "[[hang 3]]")
    record = model.wait_for(lambda r: r.outcome == "hanging", WAIT_S)
    codex.until(lambda m: m.get("method") == "item/agentMessage/delta")
    codex.call("turn/interrupt", threadId=thread, turnId=turn)
    assert codex.end()["status"] == "interrupted"
    model.wait_for(lambda r: r is record and r.outcome == "disconnected", WAIT_S)
    codex.start(thread, "and now?")
    assert codex.end()["status"] == "completed"
    assert model.requests[-1].user_texts == ("[[hang 3]]", "and now?")


@needs_codex
def test_real_steer_is_the_last_user_text(codex: AppServer, model: LoopbackModel, tmp_path: Path) -> None:
    thread = codex.thread(tmp_path)
    turn = codex.start(thread, "[[text deltas=10 pace_ms=200]] one")
    model.wait_for(lambda r: r.deltas_sent >= 2, WAIT_S)
    codex.call(
        "turn/steer", threadId=thread, expectedTurnId=turn, input=[{"type": "text", "text": "two [[text second]]"}]
    )
    assert codex.end()["said"] == "second"
    assert [r.turn_id for r in model.requests] == [turn, turn]
    assert model.requests[-1].user_texts == ("[[text deltas=10 pace_ms=200]] one", "two [[text second]]")


@needs_codex
def test_real_demo(tmp_path: Path) -> None:
    with LoopbackModel(DEMO_SCRIPT) as model:
        codex = AppServer(write_loopback_home(tmp_path / "home", model.base_url))
        try:
            samples = {sample["id"]: sample for sample in DEMO_DATASET}
            assert codex.run(samples["flaky-network"]["prompt"], tmp_path)["status"] == "failed"
            assert codex.run(samples["flaky-network"]["prompt"], tmp_path)["status"] == "completed"
            review = samples["review-json"]
            said = codex.run(review["prompt"], tmp_path, outputSchema=review["output_schema"], effort="low")["said"]
            assert json.loads(said)["sentiment"] == "neutral"
            assert "it has 10 lines" in codex.run(samples["write-file"]["prompt"], tmp_path)["said"]
            assert len((tmp_path / "squares.txt").read_text().splitlines()) == 10
        finally:
            codex.close()


def test_a_script_may_be_toml(tmp_path: Path) -> None:
    path = tmp_path / "script.toml"
    path.write_text('[[rules]]\ncontains = "x"\nanswer = { type = "text", text = "y" }\n')
    assert Script.load(path) == Script((Rule(Text("y"), contains="x"),))
    path.write_text("[[rules]]\ncontains = 1\n")
    with pytest.raises(ScriptError, match=r"script.toml: rule 1 of 1: "):
        Script.load(path)
    path.write_text("rules = [")
    with pytest.raises(ScriptError, match=r"script.toml: .*expected a script file \(TOML\)"):
        Script.load(path)
