"""Commands: what clients ask of the supervisor, by way of the broker (see `broker.commands`).

    from the broker    {"event": "command", "id": number, "command": name, "params": {...}}
    to the broker      {"command_result": {"id": number, "result": {...}}} or {..., "error": text}

Each command has a handler, which may be called twice for one request: it does nothing twice. The answer goes to the
broker that has passed the command on; if that has died, the client sends its request again to the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Params = dict[str, Any]
Result = dict[str, Any]
Send = Callable[[dict[str, Any]], None]


class CommandError(Exception):
    """A command cannot be carried out; the message gives the reason and the remedy."""


class Reply:
    """Answers one command, at once or later; the first answer counts."""

    def __init__(self, number: int, send: Send) -> None:
        self._number = number
        self._send: Send | None = send

    def result(self, result: Result) -> None:
        """Answer with a result."""
        self._answer({"result": result})

    def error(self, message: str) -> None:
        """Answer that the command was not carried out, and why."""
        self._answer({"error": message})

    def _answer(self, outcome: dict[str, Any]) -> None:
        send, self._send = self._send, None
        if send is not None:
            send({"command_result": {"id": self._number, **outcome}})


# Returns the result, or None if it answers by the Reply later. Raises CommandError.
Handler = Callable[[Params, Reply], "Result | None"]


class Commands:
    """The handlers of commands, by name."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, name: str, handler: Handler) -> None:
        """Have `handler` carry out the commands of this name."""
        self._handlers[name] = handler

    def take(self, number: int, name: str, params: Params, send: Send) -> None:
        """Carry out a command; `send` sends a record to the broker that it came from."""
        reply = Reply(number, send)
        handler = self._handlers.get(name)
        if handler is None:
            # A broker of a newer version, while the pool is upgraded.
            reply.error(f"the supervisor does not know the command {name}; it may be of an older version")
            return
        try:
            result = handler(params, reply)
        except CommandError as error:
            reply.error(str(error))
            return
        if result is not None:
            reply.result(result)
