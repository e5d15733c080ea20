"""BoundTable: commands, processes, watches and searches of sessions, by the ids that each side has for them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..protocol import jsonrpc, wire
from ..protocol.bound_methods import KIND_OF_NOTIFICATION, NO_THREAD, Kind
from .bound_object import BoundObject, Key, raw, text_of
from .turn_stream import Turn


@dataclass(slots=True)
class BoundTable:
    """See the module's docstring.

    `by_key`: those whose ids are taken; `by_wire_id`: those that the app-server may have, by kind and its id;
    `by_stream`: those whose streams their sessions have not acknowledged to the end.
    """

    by_key: dict[Key, BoundObject] = field(default_factory=dict)
    by_wire_id: dict[tuple[str, str], BoundObject] = field(default_factory=dict)
    by_stream: dict[str, BoundObject] = field(default_factory=dict)
    _last_number: int = 0

    @property
    def held(self) -> dict[str, int]:
        return {"bound": len(self.by_wire_id) + len(self.by_key), "bound_streams": len(self.by_stream)}

    def oldest(self, default: int) -> int:
        """Number of the oldest command or process that runs; `default` if none does."""
        return min((bound.number for bound in self.by_wire_id.values() if bound.kind.is_process), default=default)

    def enter(
        self, kind: Kind, session: wire.SessionId, name: str, *, worker: str, anonymous: bool = False
    ) -> BoundObject:
        """Enter an object that a session begins, under an id of its own at the app-server."""
        self._last_number += 1
        wire_id = f"{self._last_number}/{'' if anonymous else name}"
        stream = Turn(f"{worker}/{self._last_number}", NO_THREAD)
        bound = BoundObject(kind, session, name, wire_id, stream, anonymous)
        self.by_key[bound.key] = self.by_wire_id[kind.name, wire_id] = self.by_stream[stream.id] = bound
        return bound

    def free(self, bound: BoundObject) -> None:
        """Free the id of an object that is over, unless another one has it already."""
        if self.by_key.get(bound.key) is bound:
            del self.by_key[bound.key]

    def take_out(self, session: wire.SessionId) -> list[BoundObject]:
        """Drop the ids and streams of a session that is over; return what the app-server may have of it."""
        for stream in [name for name, each in self.by_stream.items() if each.session == session]:
            del self.by_stream[stream]
        for key in [key for key in self.by_key if key[0] == session]:
            del self.by_key[key]
        return [each for each in self.by_wire_id.values() if each.session == session and not each.gone]

    def runs_of(
        self, lines: list[bytes], methods: list[str]
    ) -> tuple[set[int], dict[BoundObject, list[bytes]], set[BoundObject]]:
        """Return the places of the notifications about objects; what each object has of them, with the id that its
        session has chosen; and the objects that are over."""
        taken: set[int] = set()
        runs: dict[BoundObject, list[bytes]] = {}
        over: set[BoundObject] = set()
        for place, (line, method) in enumerate(zip(lines, methods, strict=True)):
            kind = KIND_OF_NOTIFICATION.get(method)
            if kind is None:
                continue
            taken.add(place)
            message = jsonrpc.decode_request(line)
            params = message.params or {}
            bound = self.by_wire_id.get((kind.name, text_of(params.get(kind.id_field)) or ""))
            if bound is None or bound.anonymous:
                continue
            if method == kind.last_notification:
                over.add(bound)
                if bound.why:
                    params["stderr"] = raw((text_of(params.get("stderr")) or "") + bound.why)
            params[kind.id_field] = raw(bound.name)
            runs.setdefault(bound, []).append(message.encode(jsonrpc.others_of(line)))
        return taken, runs, over
