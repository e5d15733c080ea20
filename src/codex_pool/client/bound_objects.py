"""Processes, watches and searches that a session has in the pool, for the case that the pool ends the session. Pure.

Commands are not among them: the request of each is open for as long as it runs.
"""

from __future__ import annotations

from ..protocol import jsonrpc
from ..protocol.bound_methods import COMMAND, KIND_OF_METHOD, PROCESS, exited_params
from ..protocol.jsonrpc import UNREADABLE


class BoundObjects:
    """See the module's docstring."""

    def __init__(self) -> None:
        # By kind and id, in the order in which they began.
        self._objects: dict[tuple[str, str], None] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def answered(self, method: str, line: bytes) -> None:
        """Note that this request has succeeded."""
        kind = KIND_OF_METHOD[method]
        if kind is COMMAND:
            return
        name = _id_in(line, kind.id_field)
        if method == kind.begin:
            self._objects[kind.name, name] = None
        elif method == kind.end and kind is not PROCESS:
            self._objects.pop((kind.name, name), None)

    def exited(self, line: bytes) -> None:
        """Note a `process/exited`."""
        self._objects.pop((PROCESS.name, _id_in(line, PROCESS.id_field)), None)

    def end_all(self, why: str) -> list[bytes]:
        """Lines that report the end of all of them."""
        objects, self._objects = self._objects, {}
        lines = []
        for kind, name in objects:
            method: str = "warning"
            params: dict[str, object] = {"message": f"{kind} {name!r} has ended: {why}", "threadId": None}
            if kind == PROCESS.name:
                method, params = PROCESS.last_notification, exited_params(name, why)
            lines.append(jsonrpc.encode({"method": method, "params": params}))
        return lines


def _id_in(line: bytes, field: str) -> str:
    """The id that a request or notification names; "" for one that cannot be read."""
    try:
        raw = (jsonrpc.decode_request(line).params or {}).get(field)
        return jsonrpc.decode_text(raw) if raw is not None else ""
    except UNREADABLE:
        return ""
