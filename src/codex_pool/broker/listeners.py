"""Sockets that the broker listens on: bound, and bound again when their files are not those that it has bound.

A listening socket whose file was removed or replaced is not found by later clients; those that have connected stay. At
the start of a pool what is at such a path is refused unless it is a socket. Later it is moved aside: the path belongs
to the pool, which holds the endpoint.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from ..protocol import endpoints
from ..runtime.problems import Problems


class Listener:
    """A path at which `bind` makes a socket listen, in place of a socket that is there. `what` is its name."""

    def __init__(self, what: str, path: Path, bind: Callable[[], None]) -> None:
        self.what = what
        self._path = path
        self._bind = bind
        self._identity: tuple[int, int] | None = None

    @property
    def is_bound(self) -> bool:
        """True while its file is the one that was bound."""
        return self._identity is not None and self._identity == self._look()

    def bind(self) -> None:
        """Raises OSError, and EndpointError if something is there that is not a socket."""
        endpoints.check_socket(self._path)
        self._bind()
        self._identity = self._look()

    def bind_again(self) -> str:
        """Bind it whatever is there; returns what was there, "" at the first time. Raises OSError, EndpointError."""
        found = "its file was removed"
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                found = f"what was there instead is {endpoints.move_aside(self._path)} now"
            else:
                found = f"another socket was there, of {self._other()}"
        is_first = self._identity is None
        self.bind()
        return "" if is_first else found

    def remove(self) -> None:
        """Remove its file, unless that is another one by now."""
        if self.is_bound:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _look(self) -> tuple[int, int] | None:
        try:
            status = self._path.lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _other(self) -> str:
        try:
            return f"process {endpoints.listener_of(self._path) or 'unknown'}"
        except OSError:
            return "no process that listens"


class Listeners:
    """The sockets of a broker, in the order in which they are bound. `holds`: the supervisor holds the endpoint."""

    def __init__(self, listeners: list[Listener], problems: Problems, log: Callable[[str], None]) -> None:
        self._listeners = listeners
        self._problems = problems
        self._log = log
        self.holds = True

    def bind(self) -> None:
        """Bind all, or raise EndpointError."""
        for listener in self._listeners:
            try:
                listener.bind()
            except OSError as error:
                self.remove()
                raise endpoints.EndpointError(f"cannot listen on {_named(error)}") from None

    def look(self, now: float) -> None:
        """Bind those that are not bound, as far as that can be done."""
        for listener in self._listeners:
            if listener.is_bound:
                self._problems.solved(listener.what, now)
            elif self._problems.is_due(listener.what, now):
                if self.holds:
                    self._bind_again(listener, now)
                else:
                    self._problems.failed(
                        listener.what, "it is not bound: the supervisor does not hold the endpoint", now
                    )

    def is_bound(self, what: str) -> bool:
        return any(listener.is_bound for listener in self._listeners if listener.what == what)

    def remove(self) -> None:
        """Remove the files of those that are bound."""
        for listener in self._listeners:
            listener.remove()

    def _bind_again(self, listener: Listener, now: float) -> None:
        try:
            found = listener.bind_again()
        except OSError as error:
            self._problems.failed(listener.what, f"cannot listen on {_named(error)}", now)
        except endpoints.EndpointError as error:
            self._problems.failed(listener.what, str(error), now)
        else:
            if found:
                self._log(f"the {listener.what} is bound again: {found}")
            self._problems.solved(listener.what, now)


def _named(error: OSError) -> str:
    return f"{error.filename}: {error.strerror or os.strerror(error.errno or 0)}"
