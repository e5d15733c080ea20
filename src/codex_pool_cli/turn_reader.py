"""TurnReader: one turn from its notifications, and what its end comes to. No I/O."""

from __future__ import annotations

from typing import Any

from codex_app_server.errors import TurnFailedError


class TurnReader:
    """Reads the notifications of a turn, and knows the turns of sub-agents that work for it.

    `final_response` is the last agent message marked `final_answer`, else the last one without a phase, else None.
    `usage` is what the turn has used, as codex reports tokens; None until it has.
    """

    def __init__(self, thread_id: str, turn_id: str) -> None:
        self.thread_id = thread_id
        self.turn_id = turn_id
        self.status: str | None = None
        self.usage: dict[str, int] | None = None
        self.agents: dict[str, str] = {}
        self._final: str | None = None
        self._answer: str | None = None
        self._before: dict[str, int] | None = None
        self._kind = "failed"
        self._safe_to_retry = False
        self._error = ""

    @property
    def has_ended(self) -> bool:
        return self.status is not None

    @property
    def final_response(self) -> str | None:
        return self._answer if self._final is None else self._final

    def read(self, method: str, params: dict[str, Any]) -> bool:
        """Read a notification; True if it is one of this turn."""
        turn = params.get("turn")
        turn = turn if isinstance(turn, dict) else {}
        turn_id = params.get("turnId") or turn.get("id")
        if turn_id != self.turn_id:
            self._read_other(method, params, turn_id)
            return False
        match method:
            case "item/completed":
                self._read_item(params.get("item") or {})
            case "thread/tokenUsage/updated":
                self._read_usage(params.get("tokenUsage") or {})
            case "pool/turn/ended":
                self._kind = params.get("kind") or self._kind
                self._safe_to_retry = params.get("safeToRetry") is True
            case "turn/completed":
                self.status = turn.get("status") or "failed"
                self._error = (turn.get("error") or {}).get("message") or "the turn failed without a reason"
        return True

    def failure(self) -> TurnFailedError | None:
        """The error of a turn that has failed; None of any other."""
        if self.status != "failed":
            return None
        return TurnFailedError(self._error, kind=self._kind, safe_to_retry=self._safe_to_retry)

    @property
    def kind(self) -> str:
        """The way in which it has failed: `failed`, `lost`, `stalled`."""
        return self._kind

    def _read_item(self, item: dict[str, Any]) -> None:
        if item.get("type") == "agentMessage":
            if item.get("phase") == "final_answer":
                self._final = item.get("text")
            elif item.get("phase") is None:
                self._answer = item.get("text")

    def _read_usage(self, usage: dict[str, Any]) -> None:
        total, last = usage.get("total"), usage.get("last")
        if not isinstance(total, dict) or not isinstance(last, dict):
            return
        if self._before is None:
            # Of a thread that goes on, the turns before count in the total.
            self._before = {name: total[name] - last.get(name, 0) for name in total if isinstance(total[name], int)}
        self.usage = {name: total[name] - before for name, before in self._before.items() if name in total}

    def _read_other(self, method: str, params: dict[str, Any], turn_id: Any) -> None:
        if method == "turn/started" and (params.get("turn") or {}).get("rootTurnId") == self.turn_id:
            self.agents[str(turn_id)] = str(params.get("threadId"))
        elif method == "turn/completed":
            self.agents.pop(str(turn_id), None)
