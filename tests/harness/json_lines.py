"""A program that speaks JSON-RPC in lines over its stdin and stdout, with bounded waits."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LIMIT_S = 30.0
Message = dict[str, Any]


class JsonLines:
    """Messages of a process, kept in order. `answer` gives the results of the requests that it sends."""

    def __init__(self, process: subprocess.Popen[str], answer: Callable[[str, Message], Message | None]) -> None:
        self.process, self._answer = process, answer
        self.received: list[Message] = []
        self._changed = threading.Condition()
        self._ended = False
        self._last_id = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, method: str, params: Message) -> int:
        """Send a request; its id."""
        self._last_id += 1
        self._write({"id": self._last_id, "method": method, "params": params})
        return self._last_id

    def notify(self, method: str, params: Message) -> None:
        self._write({"method": method, "params": params})

    def result(self, request_id: int, limit_s: float = LIMIT_S) -> Message:
        """The result of a request; fails for an error."""
        message = self.wait(lambda message: message.get("id") == request_id and "method" not in message, limit_s)
        assert "result" in message, message
        return message["result"]  # type: ignore[no-any-return]

    def request(self, method: str, params: Message, limit_s: float = LIMIT_S) -> Message:
        return self.result(self.send(method, params), limit_s)

    def wait(self, found: Callable[[Message], bool], limit_s: float = LIMIT_S) -> Message:
        """The first message, of all so far and to come, that is `found`."""

        def first() -> Message | None:
            return next((message for message in self.received if found(message)), None)

        with self._changed:
            self._changed.wait_for(lambda: first() is not None or self._ended, limit_s)
            message = first()
        assert message is not None, f"no such message ({'ended' if self._ended else 'late'}): {self.received[-20:]}"
        return message

    def close(self) -> int:
        """Close its stdin; the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            if "method" in message and "id" in message:
                result = self._answer(message["method"], message["params"])
                if result is not None:
                    self._write({"id": message["id"], "result": result})
            with self._changed:
                self.received.append(message)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _write(self, message: Message) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.process.stdin.flush()


@contextmanager
def json_lines(
    command: list[str], *, cwd: Path, env: dict[str, str], answer: Callable[[str, Message], Message | None]
) -> Iterator[JsonLines]:
    """`command` under way; killed at the end if it still runs."""
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    peer = JsonLines(process, answer)
    try:
        yield peer
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(LIMIT_S)
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
