"""Errors of the system as one sentence: the thing, the system's message, and the remedy."""

from __future__ import annotations

import errno
import os

from codex_app_server._runtime.paths import shown

_PERMISSION = "give this user the permission, or name another"
_FULL = "make room on its disk"
_REMEDIES = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "its file system is mounted read-only; name another",
    errno.ENOENT: "make it, or name another",
    errno.ENOTDIR: "a part of the path is a file; name another",
    errno.EISDIR: "name a file",
    errno.EEXIST: "remove it, or name another",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.ELOOP: "correct the links that lead to it, or name another",
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit of the size of files, ulimit -f",
    errno.EMFILE: "raise the limit of open files, ulimit -n",
    errno.EAGAIN: "raise the limit of processes and threads, ulimit -u, or end some",
    errno.ENOMEM: "free some memory, or raise its limit, ulimit -v",
}
# Name, option of the shell and its unit, and the value from which on it has never been met.
_LIMITS = (("RLIMIT_AS", "-v", 1024, 2**36), ("RLIMIT_NPROC", "-u", 1, 1024))


def describe(error: OSError) -> str:
    """The error with the path that it names and a remedy, where there is one to know."""
    if is_directory_gone():
        return "the working directory has been removed; change to one that exists"
    words = error.strerror or str(error)
    if error.filename is not None:
        words = f"{shown(os.fsdecode(error.filename))}: {words}"
    remedy = _REMEDIES.get(error.errno or 0)
    return words if remedy is None else f"{words}; {remedy}"


def is_directory_gone() -> bool:
    """Return True if the working directory of this process has been removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def limits() -> str:
    """Low limits of this process that may have ended a child or kept it waiting, as a shell shows them; or empty."""
    import resource

    found = []
    for name, option, unit, enough in _LIMITS:
        soft = resource.getrlimit(getattr(resource, name))[0]
        if soft != resource.RLIM_INFINITY and soft < enough:
            found.append(f"ulimit {option} {soft // unit}")
    return f"; limits of this shell: {', '.join(found)}" if found else ""
