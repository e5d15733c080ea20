"""Awaited: what a coroutine method returns, with a remedy for who forgets to await it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


_REMEDY = "write `await` before the call"


class Awaited(Coroutine[Any, Any, T]):
    """The coroutine itself, as far as asyncio goes; any other use raises an error that asks for the missing await."""

    __slots__ = ("_called", "_coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, T], called: str) -> None:
        self._coroutine = coroutine
        self._called = called

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()

    def send(self, value: Any, /) -> Any:
        return self._coroutine.send(value)

    def throw(self, type: Any, value: Any = None, traceback: TracebackType | None = None, /) -> Any:
        # With one argument: the form with three is deprecated.
        if value is None:
            return self._coroutine.throw(type)
        return self._coroutine.throw(value if isinstance(value, BaseException) else type(value))

    def close(self) -> None:
        self._coroutine.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("cr_", "__")):
            return getattr(self._coroutine, name)
        raise AttributeError(f"{self._called}(...) was not awaited, so that it has no {name!r}: {_REMEDY}")

    def __aiter__(self) -> NoReturn:
        raise TypeError(f"{self._called}(...) was not awaited, and cannot be iterated over: {_REMEDY}")

    __iter__ = __aiter__

    def __repr__(self) -> str:
        return f"<{self._called}(...), not awaited: {_REMEDY}>"


def awaited(function: F) -> F:
    """Decorate a coroutine function whose result is used: using it without await raises a clear error."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return Awaited(function(*args, **kwargs), function.__qualname__)

    # Frameworks and mocks ask what it is. Before 3.12 only asyncio can be told.
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(call)
    else:
        call._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]
