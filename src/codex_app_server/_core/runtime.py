"""Runtime: the version of codex that a client talks to, and the refusal of what it does not have.

A runtime ignores an option that it does not know, and answers a method that it does not know with a list of all that it
has. Both are refused here instead, by name, with the version that has them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import msgspec

from .._protocol import runtime_version
from .._protocol.runtime_version import Lack
from ..errors import AppServerError, InvalidInputError, InvalidRequestError, MethodNotFoundError
from ..generated.routing import REQUESTS

log = logging.getLogger("codex_app_server")

_METHOD_NOT_FOUND = -32601
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_NULL = b"null"


class Runtime:
    """See the module's docstring. `lacks` has what the runtime does not have, by method."""

    __slots__ = ("lacks", "version")

    def __init__(self) -> None:
        self.version: str | None = None
        self.lacks: Mapping[str, Lack] = {}

    def note(self, user_agent: str | None) -> None:
        """Note what the runtime has answered to `initialize`; of a version other than that of the types warn once."""
        version = self.version = runtime_version.version_of(user_agent)
        self.lacks = runtime_version.lacking(version)
        if version is not None and version not in runtime_version.in_use:
            runtime_version.in_use[version] = None
            text = runtime_version.warning(version)
            if text is not None:
                log.warning("%s", text)

    def refusal(self, method: str, params: bytes | None) -> AppServerError | None:
        """The error for a request that this runtime would not understand as it is meant; None if it would."""
        lack = self.lacks.get(method)
        if lack is None:
            return None
        if lack.method:
            return MethodNotFoundError(
                _METHOD_NOT_FOUND, f"{method} {lack.method}; the runtime is codex {self.version}"
            )
        for name, value in _decode_fields(params or b"{}").items():
            if name in lack.fields and bytes(value) != _NULL:
                return InvalidInputError(
                    f"{method}: option {_snake(name)!r} {lack.fields[name]}; the runtime is codex {self.version}, "
                    "which would ignore it: leave it out, or use another runtime"
                )
        return None

    def explained(self, method: str, error: AppServerError) -> AppServerError | None:
        """The error about an answer that does not fit its type, or a method that the runtime lacks, with both versions.

        None for any other error.
        """
        versions = runtime_version.both(self.version)
        if type(error) is AppServerError:
            return AppServerError(f"{error}; {versions}")
        is_refused = isinstance(error, InvalidRequestError) and f"unknown variant `{method}`" in error.message
        if is_refused and method in REQUESTS:
            # What follows are the names of all methods that there are.
            return MethodNotFoundError(_METHOD_NOT_FOUND, f"the runtime does not know {method}; {versions}", None)
        return None


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", lambda found: f"_{found[1].lower()}", name)
