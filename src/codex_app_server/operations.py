"""Each call as a value: what to send, and what to make of the answer. No I/O.

The sync and the async client are thin drivers over the same values, so the two cannot drift apart.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from ._paths import lone_surrogate
from .config import AppServerConfig
from .errors import (
    AppServerError,
    InvalidInputError,
    JsonRpcError,
    OutputTypeError,
    RequestTimeoutError,
    TurnFailedError,
)
from .generated.options import OPTION_NAMES
from .generated.routing import METHODS, REQUESTS
from .inputs import ExternalMessage, RunInput, to_wire_input, to_wire_turn
from .presets import PRESETS, expand
from .transport import DEFAULT_TIMEOUT_S, Interest

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from .generated import models
    from .generated.models._base import Asks
    from .results import TurnResult

T = TypeVar("T")

NO_DEADLINE = frozenset({"command/exec", "mcpServer/tool/call", "account/login/start"})


@dataclass(frozen=True, slots=True)
class GivenPath:
    """A path that an argument names. Whether it is there is asked of the app-server, whose machine it is on."""

    what: str
    path: str
    is_directory: bool

    def look(self, base: str | None) -> Operation[Any] | None:
        """The request that asks for it. A relative path means what it does to the app-server in the directory `base`.

        None where nobody can tell.
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
    """What must exist where the app-server runs. It would go on without: only commands, or the model, would notice."""

    @property
    def timeout_s(self) -> float | None:
        return None if self.method in NO_DEADLINE else DEFAULT_TIMEOUT_S


def _paths_of(fields: Mapping[str, Any]) -> tuple[GivenPath, ...]:
    """The paths among the fields of an operation."""
    cwd, input = fields.get("cwd"), fields.get("input", ())
    paths = [GivenPath("cwd", str(cwd), True)] if cwd else []
    paths += [GivenPath("image", item["path"], False) for item in input if item["type"] == "localImage"]
    return tuple(paths)


def request(method: str | Asks[Any], fields: Mapping[str, Any] | None = None) -> Operation[Any]:
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
    return Operation(method, _dump(name, params), _finish_with(method, REQUESTS[method].result), thread_id)


def encode_plain(what: str, value: Any) -> bytes:
    """The JSON of plain values. Raises InvalidInputError."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError) as error:
        raise _unsendable(f"parameters of {what}", value, error) from None


def encode_params(type_name: str, fields: Mapping[str, Any]) -> bytes:
    """The JSON of a generated parameters type, without optional fields that are None. Raises InvalidInputError."""
    required = _required_of(type_name)
    sent = {
        name: field if type(field) in _PLAIN else _as_sent(name, field)
        for name, field in fields.items()
        if field is not None or name in required
    }
    try:
        value = _adapter(type_name).validator.validate_python(sent)
    except ValueError as error:
        raise InvalidInputError(f"{type_name}: {_problems_of(error)}") from None
    return _dump(type_name, value, sent)


# Values that are sent as they are; most are.
_PLAIN = frozenset({str, int, float, bool, dict, type(None)})


def _as_sent(name: str, field: Any) -> Any:
    """A field with its paths as text. Raises InvalidInputError for an object where its id is expected."""
    if isinstance(field, os.PathLike):
        return os.fspath(field)
    if isinstance(field, list | tuple):
        return [os.fspath(each) if isinstance(each, os.PathLike) else each for each in field]
    if name.endswith("_id") and isinstance(getattr(field, "id", None), str):
        raise InvalidInputError(f"{name} is a {type(field).__name__}; expected its id: give its .id")
    return field


def _problems_of(error: ValueError) -> str:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())


@functools.cache
def _adapter(type_name: str) -> TypeAdapter[Any]:
    """What validates and dumps a type, remembered here: an import in a function costs as much as a small payload."""
    from .generated import models

    return models.adapter(type_name)


@functools.cache
def _required_of(type_name: str) -> frozenset[str]:
    from .generated import models

    # A type that is a union has no fields of its own; what its branches require is never null.
    declared = getattr(getattr(models, type_name), "model_fields", {})
    return frozenset(name for name, field in declared.items() if field.is_required())


def _dump(type_name: str, value: Any, fields: Mapping[str, Any] | None = None) -> bytes:
    try:
        return _adapter(type_name).serializer.to_json(value, by_alias=True, exclude_unset=True)
    except ValueError as error:
        raise _unsendable(type_name, fields, error) from None


def _unsendable(what: str, value: Any, error: Exception) -> InvalidInputError:
    odd = lone_surrogate(value)
    reason = str(error) if odd is None else f"{odd!r} has bytes that are not UTF-8; use a name that is"
    return InvalidInputError(f"{what} cannot be sent as UTF-8 JSON: {reason}")


def _finish_with(method: str, type_name: str | None) -> Callable[[bytes], Any]:
    def finish(result: bytes) -> Any:
        if type_name is None:
            return msgspec.json.decode(result)
        try:
            return _adapter(type_name).validator.validate_json(result)
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
    """What a handle on a thread needs of the answer that names it: to build all of it takes longer than to send it."""

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


def schema_of(output_type: Any) -> dict[str, Any]:
    """The JSON schema of a pydantic model, dataclass or other type, as strict as structured output wants it.

    Raises InvalidInputError for what has no schema.
    """
    from pydantic import PydanticUserError, TypeAdapter

    try:
        schema: dict[str, Any] = _closed(TypeAdapter(output_type).json_schema())
        return schema
    except (PydanticUserError, TypeError) as error:
        raise InvalidInputError(f"output_type {output_type!r} has no JSON schema: {error}") from None


def _closed(schema: Any) -> Any:
    """Objects take no other properties than the named ones, and all of those: strict mode accepts nothing else."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items() if key != "default"}
    if isinstance(closed.get("properties"), dict) and schema.get("type") == "object":
        closed["additionalProperties"] = False
        closed["required"] = list(closed["properties"])
    return closed


def parse_output(output_type: Any, result: TurnResult) -> Any:
    """The final response as `output_type`. Raises OutputTypeError."""
    from pydantic import TypeAdapter, ValidationError

    if result.final_response is None:
        why = f" that can be read (undecoded: {', '.join(result.undecoded)})" if result.undecoded else ""
        message = f"turn {result.id} ended without a final response{why}; expected {output_type!r}"
        raise OutputTypeError(message, result)
    try:
        return TypeAdapter(output_type).validate_json(result.final_response)
    except ValidationError as error:
        raise OutputTypeError(f"the final response of turn {result.id} does not fit: {error}", result) from None


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
        raise TurnFailedError(f"turn {turn_id} ended without a readable turn/completed")
    assert last is not None
    return last


def is_busy(error: JsonRpcError) -> bool:
    """True for the refusal of a turn, or of its steering, because compaction or a review runs on the thread."""
    return "ActiveTurnNotSteerable" in str(error) or "activeTurnNotSteerable" in repr(error.data)


def is_not_active_yet(error: Exception) -> bool:
    """Whether an interrupt came before the turn was under way, or while it ends of another: to be told again."""
    if isinstance(error, RequestTimeoutError):
        return True
    # Right after another turn of the thread was interrupted, it says that it expected that one.
    return "no active turn" in str(error) or "expected active turn id" in str(error)
