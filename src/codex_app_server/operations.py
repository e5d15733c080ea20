"""Calls as values: the request to send, and the result made of its answer. No I/O.

The sync and the async client are thin drivers over the same values, so the two cannot drift apart.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from ._core.output_types import parse_output, schema_of
from ._core.params import adapter, dump, encode_params, encode_plain
from ._protocol import runtime_version
from .config import AppServerConfig
from .errors import (
    AppServerError,
    InvalidInputError,
    JsonRpcError,
    RequestTimeoutError,
    TurnFailedError,
)
from .generated.options import OPTION_NAMES
from .generated.routing import METHODS, REQUESTS
from .inputs import ExternalMessage, RunInput, to_wire_input, to_wire_turn
from .presets import PRESETS, expand
from .transport import DEFAULT_TIMEOUT_S, Interest

if TYPE_CHECKING:
    from .generated import models
    from .generated.models._base import RequestParams

T = TypeVar("T")

__all__ = ["encode_plain", "parse_output"]

NO_DEADLINE = frozenset({"command/exec", "mcpServer/tool/call", "account/login/start"})


@dataclass(frozen=True, slots=True)
class GivenPath:
    """A path that an argument names. Whether it is there is asked of the app-server, whose machine it is on."""

    what: str
    path: str
    is_directory: bool

    def look(self, base: str | None) -> Operation[Any] | None:
        """The request that asks for it. A relative path means what it does to the app-server in the directory `base`.

        None where it cannot be known.
        """
        path = self.path if base is None else os.path.join(base, self.path)
        if not os.path.isabs(path):
            return None
        return Operation("fs/getMetadata", encode_plain("fs/getMetadata", {"path": path}), msgspec.json.decode)

    def check(self, found: Any) -> None:
        """Raises InvalidInputError when it is something else."""
        if isinstance(found, dict) and found.get("isDirectory" if self.is_directory else "isFile") is False:
            raise self.refused(f"it is no {self._kind}")

    def refused(self, why: object) -> InvalidInputError:
        return InvalidInputError(
            f"{self.what} {self.path!r} cannot be used: {why}; "
            f"expected a {self._kind} on the machine of the app-server, best by its absolute path"
        )

    @property
    def _kind(self) -> str:
        return "directory" if self.is_directory else "file"


class Operation(msgspec.Struct, Generic[T], frozen=True):
    """A request: `params` is the JSON to send, `finish` turns the JSON of the result into what the caller gets."""

    method: str
    params: bytes | None
    finish: Callable[[bytes], T]
    thread_id: str | None = None
    interest: Interest = "full"
    paths: tuple[GivenPath, ...] = ()
    """Paths that must exist on its machine. It would go on without: only commands, or the model, would notice."""

    @property
    def timeout_s(self) -> float | None:
        return None if self.method in NO_DEADLINE else DEFAULT_TIMEOUT_S


def _paths_of(fields: Mapping[str, Any]) -> tuple[GivenPath, ...]:
    """The paths among the fields of an operation."""
    cwd, input = fields.get("cwd"), fields.get("input", ())
    paths = [GivenPath("cwd", str(cwd), True)] if cwd else []
    paths += [GivenPath("image", item["path"], False) for item in input if item["type"] == "localImage"]
    return tuple(paths)


def request(method: str | RequestParams[Any], fields: Mapping[str, Any] | None = None) -> Operation[Any]:
    """A request by method, its fields in snake_case, or by an object of the type of its parameters.

    The result is its generated type, or plain JSON for a method without one.
    Raises InvalidInputError when the fields do not fit the parameters' type.
    """
    if not isinstance(method, str):
        return _request_of(method, fields)
    entry = REQUESTS.get(method)
    thread_id = (fields or {}).get("thread_id")
    if entry is None or entry.params is None:
        params = encode_plain(method, fields) if fields else None
        return Operation(method, params, _finish_with(method, entry.result if entry else None), thread_id)
    return Operation(method, encode_params(entry.params, fields or {}), _finish_with(method, entry.result), thread_id)


def _request_of(params: Any, fields: Mapping[str, Any] | None) -> Operation[Any]:
    from .generated import models

    name = type(params).__name__
    if name not in METHODS or type(params) is not getattr(models, name):
        raise InvalidInputError(
            f"{name} is no type of parameters; expected one of generated.models, such as ThreadListParams, or a method"
        )
    if fields is not None:
        raise InvalidInputError(f"{name} and fields beside it: expected one of them; set the fields in the object")
    method = METHODS[name]
    thread_id = getattr(params, "thread_id", None)
    return Operation(method, dump(name, params), _finish_with(method, REQUESTS[method].result), thread_id)


def _finish_with(method: str, type_name: str | None) -> Callable[[bytes], Any]:
    def finish(result: bytes) -> Any:
        if type_name is None:
            return msgspec.json.decode(result)
        try:
            return adapter(type_name).validator.validate_json(result)
        except ValueError as error:
            raise AppServerError(f"the answer to {method} is not a {type_name}: {error}") from None

    return finish


# Options of run that are no fields of the request, and names that people give to some of them.
_OF_RUN = frozenset({"timeout", "output_type", "on_busy", "detach"})
_MEANT = {
    **dict.fromkeys(("timeout_s", "timeout_seconds", "deadline"), "timeout"),
    **dict.fromkeys(("working_directory", "workdir", "directory"), "cwd"),
    **dict.fromkeys(("reasoning_effort", "model_reasoning_effort"), "effort"),
    **dict.fromkeys(("response_format", "schema"), "output_schema"),
}


def load_types() -> None:
    """Load what a first turn needs, some tenths of a second of work; without this its first use does it."""
    from .generated import models

    for name in models.FIRST_TURN:
        getattr(models, name).model_rebuild()


def check_timeout(timeout: Any) -> None:
    """Raises InvalidInputError for what is no number of seconds from 0 on, nor None."""
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and timeout >= 0):
        raise InvalidInputError(f"timeout is {timeout!r}; expected a number of seconds from 0 on, or None")


def check_options(type_name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with presets expanded.

    Raises TypeError for a keyword that the method does not take, naming the nearest one it does.
    """
    known = OPTION_NAMES[type_name] | PRESETS.get(type_name, frozenset())
    for name in options:
        if name not in known:
            offered = known | (_OF_RUN if type_name == "TurnStartOptions" else frozenset())
            near = [_MEANT[name]] if name in _MEANT else difflib.get_close_matches(name, offered, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(sorted(offered))}"
            if name in _OF_RUN:
                hint = "; it is an option of run alone: give it there"
            raise TypeError(f"unknown option {name!r}{hint}")
    return expand(options, of_turn=type_name == "TurnStartOptions")


def initialize(config: AppServerConfig) -> Operation[models.InitializeResponse]:
    info = {"name": config.client_name, "title": config.client_title, "version": config.client_version}
    params = {"clientInfo": info, "capabilities": {"experimentalApi": config.experimental_api}}
    return Operation("initialize", encode_plain("initialize", params), _finish_with("initialize", "InitializeResponse"))


class Named(msgspec.Struct):
    """A thread or a turn of which only the id is wanted."""

    id: str


class WithThread(msgspec.Struct):
    """The part of the answer that a handle on a thread needs: to build all of it takes longer than to send it."""

    thread: Named


class WithTurn(msgspec.Struct):
    """The same of a turn."""

    turn: Named


_decode_thread = msgspec.json.Decoder(WithThread).decode
_decode_turn = msgspec.json.Decoder(WithTurn).decode


def _finish_thread(result: bytes) -> WithThread:
    return _decode_named(_decode_thread, result, "thread")


def _finish_turn(result: bytes) -> WithTurn:
    return _decode_named(_decode_turn, result, "turn")


def _decode_named(decode: Callable[[bytes], T], result: bytes, what: str) -> T:
    try:
        return decode(result)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AppServerError(f"the answer to the start of a {what} does not name one: {error}") from None


def thread_start(options: Mapping[str, Any]) -> Operation[WithThread]:
    return _naming_thread("thread/start", check_options("ThreadStartOptions", options), options)


def thread_resume(thread_id: str, options: Mapping[str, Any]) -> Operation[WithThread]:
    fields = {"thread_id": thread_id, **check_options("ThreadResumeOptions", options)}
    return _naming_thread("thread/resume", fields, options)


def thread_fork(thread_id: str, options: Mapping[str, Any]) -> Operation[WithThread]:
    fields = {"thread_id": thread_id, **check_options("ThreadForkOptions", options)}
    return _naming_thread("thread/fork", fields, options)


def _naming_thread(method: str, fields: Mapping[str, Any], options: Mapping[str, Any]) -> Operation[WithThread]:
    type_name = REQUESTS[method].params
    assert type_name is not None
    params = encode_params(type_name, fields)
    return Operation(method, params, _finish_thread, fields.get("thread_id"), paths=_paths_of(options))


def thread_list(options: Mapping[str, Any]) -> Operation[models.ThreadListResponse]:
    return request("thread/list", check_options("ThreadListOptions", options))


def thread_read(thread_id: str, include_turns: bool) -> Operation[models.ThreadReadResponse]:
    return request("thread/read", {"thread_id": thread_id, "include_turns": include_turns})


def turn_start(
    thread_id: str, input: RunInput, options: Mapping[str, Any], interest: Interest, output_type: Any = None
) -> Operation[WithTurn]:
    fields = {"thread_id": thread_id, **to_wire_turn(input), **check_options("TurnStartOptions", options)}
    if output_type is not None:
        if fields.get("output_schema") is not None:
            raise InvalidInputError("output_type says what output_schema says too; give one of them")
        fields["output_schema"] = schema_of(output_type)
    params = encode_params("TurnStartParams", fields)
    return Operation("turn/start", params, _finish_turn, thread_id, interest, _paths_of(fields))


def turn_steer(thread_id: str, turn_id: str, input: RunInput) -> Operation[models.TurnSteerResponse]:
    if isinstance(input, ExternalMessage):
        raise InvalidInputError("an ExternalMessage cannot steer a turn; give it as the input of a turn of its own")
    fields = {"thread_id": thread_id, "expected_turn_id": turn_id, "input": to_wire_input(input)}
    return msgspec.structs.replace(request("turn/steer", fields), paths=_paths_of(fields))


def turn_interrupt(thread_id: str, turn_id: str) -> Operation[None]:
    """Without the generated types: a signal handler may have interrupted the import of just these."""
    params = encode_plain("turn/interrupt", {"threadId": thread_id, "turnId": turn_id})
    return Operation("turn/interrupt", params, lambda result: None, thread_id)


def review_start(thread_id: str, target: Any, detached: bool) -> Operation[models.ReviewStartResponse]:
    delivery = "detached" if detached else "inline"
    return request("review/start", {"thread_id": thread_id, "target": target, "delivery": delivery})


def goal_set(thread_id: str, fields: Mapping[str, Any]) -> Operation[models.ThreadGoalSetResponse]:
    return request("thread/goal/set", {"thread_id": thread_id, **fields})


def account(refresh_token: bool) -> Operation[models.GetAccountResponse]:
    return request("account/read", {"refresh_token": refresh_token})


def login(kind: str, **fields: Any) -> Operation[Any]:
    return request("account/login/start", {"type": kind, **fields})


def login_cancel(login_id: str) -> Operation[models.CancelLoginAccountResponse]:
    return request("account/login/cancel", {"login_id": login_id})


def ended(turn_id: str, last: models.TurnCompletedNotification | None) -> models.TurnCompletedNotification:
    """`last`, the completion of a turn. Raises TurnFailedError when it never came or cannot be read."""
    if getattr(last, "turn", None) is None:
        raise TurnFailedError(runtime_version.unreadable_end(turn_id))
    assert last is not None
    return last


def is_busy(error: JsonRpcError) -> bool:
    """True for the refusal of a turn, or of its steering, because compaction or a review runs on the thread."""
    return "ActiveTurnNotSteerable" in str(error) or "activeTurnNotSteerable" in repr(error.data)


def is_not_active_yet(error: Exception) -> bool:
    """True if an interrupt came before the turn was under way, or while it ends of another: it is to be repeated."""
    if isinstance(error, RequestTimeoutError):
        return True
    # Right after another turn of the thread was interrupted, its error names that one as expected.
    return "no active turn" in str(error) or "expected active turn id" in str(error)
