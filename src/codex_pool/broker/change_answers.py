"""ChangeAnswers: the answers to changes, kept for clients that send their requests again. Pure."""

from __future__ import annotations

from hashlib import blake2b

from codex_app_server import errors

from ..protocol import jsonrpc, wire
from .announcements import Announcements
from .change import Change
from .entities import bound
from .request import Request, RequestKey
from .state import BrokerState

MAX_ANSWERED = 256


class ChangeAnswers:
    """See the module's docstring. Answers are announced, since no turn may begin with the state before after them."""

    def __init__(self, state: BrokerState, announcements: Announcements) -> None:
        self._state = state
        self._announcements = announcements
        # With each answer, a digest of its request.
        self._answers: dict[RequestKey, tuple[bytes, bytes]] = {}

    def is_repeated(self, request: Request) -> bool:
        """True if this request has the key of one that was answered, and was sent again."""
        return request.again and request.key in self._answers

    def repeat(self, request: Request) -> bool:
        """Answer a request that is repeated; False if it is another one with the same id."""
        digest, answer = self._answers[request.key]
        if digest != _digest(request):
            return False
        if not self._announcements.holds(answer):
            self._state.answer(request, answer)
        return True

    def answer(self, change: Change, request: Request, error: str) -> None:
        """Answer the request that asked for this change; `error` is the reason why it is not known what has changed."""
        request_id = request.id_json.encode()
        if error:
            line = jsonrpc.error_line(
                request_id, errors.INTERNAL_ERROR, error, {"kind": "account", "safeToRetry": True}
            )
        elif change.refusal:
            line = jsonrpc.with_id(change.refusal, request_id)
        elif change.response:
            line = jsonrpc.with_id(change.response, request_id)
        elif change.plan.how == "forget":
            line = b'{"id":%s,"result":{}}' % request_id
        else:
            message = f"no worker has answered {request.method}: {'; '.join(change.failed.values())}"
            line = jsonrpc.error_line(request_id, errors.TURN_LOST, message, {"kind": "lost", "safeToRetry": False})
        self._answers[request.key] = _digest(request), line
        bound(self._answers, MAX_ANSWERED)
        self._state.requests.finish(request)
        if change.plan.expect == "in" and not error and not change.refusal:
            self._state.account.logged_in(request)
        if request.session is not None:
            self._announcements.publish([request.session], [line])
        if not error and not change.refusal:
            self._announcements.publish([], change.notifications)

    def end_session(self, session: wire.SessionId) -> None:
        """Forget the answers to the requests of a session that has ended."""
        for key in [key for key in self._answers if key[0] == session]:
            del self._answers[key]


def _digest(request: Request) -> bytes:
    return blake2b(request.line, digest_size=16).digest()
