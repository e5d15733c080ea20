"""Objects of one process: in a child that was forked from it they are inert.

A fork copies descriptors, locks and the memory of objects, but no thread. What owns a process, a thread, a socket or a
lock is therefore *bound* to the process that made it. In a child made by `fork`

 - its descriptors are released at once, so that the child keeps no pipe or socket of its parent open. Each is replaced
   by /dev/null: the number stays taken, so closing it later closes nothing else, and bytes in an inherited buffer are
   written nowhere;
 - its locks are never acquired: another thread may have held them, and is not there any more;
 - `close`, the end of a `with` block and garbage collection do nothing; every other use raises WrongProcessError.

The first is done by one hook of `os.register_at_fork`, over weak references. A fork made in C runs no hooks: all uses
compare process ids too, and the first one that finds another id does what the hook would have done.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import WrongProcessError

# How long a fork waits for a thread that is making descriptors which the child must release.
OPENING_LIMIT_S = 5.0
_NULL = os.O_RDWR | getattr(os, "O_CLOEXEC", 0)

_bound: dict[int, weakref.ref[ProcessBound]] = {}
# What a child never releases: to be collected would mean to be closed.
_kept: list[Any] = []
_process_id = os.getpid()
_opening = threading.RLock()
# The threads that fork now, and hold the lock meanwhile.
_forking: set[int] = set()


class ProcessBound:
    """An object of use only in the process that made it."""

    # What messages call it.
    _called = "object"
    _made_in: int

    def _bind_to_process(self) -> None:
        """Belong to this process. Called by the constructor."""
        self._made_in = os.getpid()
        key = id(self)
        _bound[key] = weakref.ref(self, lambda _: _bound.pop(key, None))

    @property
    def _is_inherited(self) -> bool:
        """True if this process is a child, made by fork, of the one that made the object."""
        return is_inherited(getattr(self, "_made_in", 0))

    def _check_process(self) -> None:
        """Raises WrongProcessError in any other process than the one that made the object."""
        check_process(self._made_in, self._called)

    def _let_go(self) -> None:
        """Release what was inherited, in a forked child, by `let_go` and `keep` alone."""


class Held(ProcessBound):
    """An open descriptor, such as that of a lock, that a forked child does not keep. Use it as a context manager.

    `open_it` opens it: a lock of an open file is held for as long as any process has that open.
    """

    def __init__(self, open_it: Callable[[], int]) -> None:
        self._descriptor = -1
        with opening():
            self._descriptor = open_it()
            self._bind_to_process()

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _let_go(self) -> None:
        let_go(self._descriptor)


def is_inherited(made_in: int) -> bool:
    """True if this process was forked from the process `made_in`, which made an object; 0: it never was made."""
    if made_in == os.getpid() or made_in == 0:
        return False
    _let_go_of_all()
    return True


def check_process(made_in: int, called: str) -> None:
    """Raises WrongProcessError in any other process than `made_in`; `called` is what the message calls the object."""
    here = os.getpid()
    if made_in != here:
        _let_go_of_all()
        raise WrongProcessError(called, made_in, here)


def let_go(*descriptors: int | None) -> None:
    """Replace inherited descriptors by /dev/null, in a forked child. Raises nothing; ignores None and -1."""
    for descriptor in descriptors:
        if descriptor is None or descriptor < 0:
            continue
        with contextlib.suppress(OSError):
            try:
                null = os.open(os.devnull, _NULL)
            except OSError:
                # Too many are open: this one makes room.
                os.close(descriptor)
                null = os.open(os.devnull, _NULL)
            if null != descriptor:
                os.dup2(null, descriptor, inheritable=False)
                os.close(null)


def descriptor_of(file: Any) -> int | None:
    """Return the descriptor of a file or socket, None if it is closed."""
    try:
        return int(file.fileno())
    except (AttributeError, OSError, ValueError):
        return None


def keep(*things: Any) -> None:
    """Hold things in a forked child so that they are never collected, which would close them."""
    _kept.extend(things)


@contextlib.contextmanager
def opening() -> Iterator[None]:
    """Held while descriptors are made and bound to an object: no fork copies them in between."""
    lock = _opening
    with lock:
        yield


def _let_go_of_all() -> None:
    global _process_id, _opening
    here = os.getpid()
    if here == _process_id:
        return
    _process_id = here
    _opening = threading.RLock()
    _forking.clear()
    for reference in list(_bound.values()):
        bound = reference()
        if bound is not None and bound._made_in != here:
            # One that fails must not keep the others from it.
            with contextlib.suppress(Exception):
                bound._let_go()


def _before_fork() -> None:
    if _opening.acquire(timeout=OPENING_LIMIT_S):
        _forking.add(threading.get_ident())


def _after_fork_in_parent() -> None:
    if threading.get_ident() in _forking:
        _forking.discard(threading.get_ident())
        _opening.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_let_go_of_all)
