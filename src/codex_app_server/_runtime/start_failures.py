"""The reason for which a process could not be started, as a typed error with one sentence of remedy. Pure but for a
look at the files concerned."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Mapping, Sequence

from ..errors import BinaryNotFoundError, StartError, StartErrorKind
from .paths import shown

# What the system lacks, and what to do about it.
_RESOURCES: dict[int, tuple[StartErrorKind, str]] = {
    errno.EAGAIN: (
        "too_many_processes",
        "the limit of processes or threads is reached; end some, or raise it (ulimit -u, or the pids limit of the "
        "container)",
    ),
    errno.ENOMEM: ("out_of_memory", "there is not enough memory; free some, or raise the limit of the container"),
    errno.EMFILE: ("too_many_files", "this process has too many open files; close some, or raise ulimit -n"),
    errno.ENFILE: ("too_many_files", "the system has too many open files; close some, or raise fs.file-max"),
    errno.ETXTBSY: (
        "binary_busy",
        "the file is open for writing, as while it is being installed; try again when that is done",
    ),
}
_HEAD_BYTES = 256
_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}


def start_error(
    error: OSError, argv: Sequence[str], environ: Mapping[str, str], cwd: str | os.PathLike[str] | None = None
) -> StartError:
    """The typed error for an OSError of `subprocess.Popen(argv, env=environ, cwd=cwd)`."""
    program = os.fspath(argv[0])
    subject = f"cannot start {shown(program)}"
    if error.errno in _RESOURCES:
        kind, words = _RESOURCES[error.errno]
        return StartError(f"{subject}: {words}", kind)
    if error.errno == errno.E2BIG:
        return StartError(f"{subject}: {_too_long(argv, environ)}", "arguments_too_long")
    if cwd is not None and (problem := directory_problem(cwd)) is not None:
        return StartError(
            f"{subject}: its working directory {shown(cwd)} {problem}; give cwd an existing directory",
            "working_directory",
        )
    path = _found(program, environ, cwd)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if path is None:
            return BinaryNotFoundError(f"{subject}: No such file or directory; check the path, or install it")
        return StartError(f"{subject}: {_missing_interpreter(path)}", "interpreter_not_found")
    if error.errno == errno.EACCES:
        return StartError(f"{subject}: {_not_permitted(path)}", "not_executable")
    if error.errno == errno.ENOEXEC:
        return StartError(f"{subject}: {_not_a_program(path)}", "not_a_program")
    return StartError(f"{subject}: {error.strerror or error}", "other")


def working_directory(cwd: str | os.PathLike[str] | None) -> str:
    """`cwd`, by default that of this process, as an absolute path. Raises StartError when this process has none."""
    try:
        return os.path.abspath(cwd or ".")
    except FileNotFoundError:
        raise StartError(
            "cannot start codex: the working directory of this process has been removed; give cwd, or change it",
            "working_directory",
        ) from None


def directory_problem(path: str | os.PathLike[str]) -> str | None:
    """Return why a process cannot work in `path`, as text to follow its name; None if it can."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except PermissionError:
        return "cannot be reached: permission denied for a directory above it"
    except (OSError, ValueError) as error:
        return f"cannot be used: {getattr(error, 'strerror', None) or error}"
    if not stat.S_ISDIR(mode):
        return "is not a directory"
    if not os.access(path, os.X_OK):
        return "cannot be entered: permission denied"
    return None


def file_problem(path: str) -> tuple[str, bool] | None:
    """Return why a file cannot be started, as text to follow its path, and whether it is missing; None if it can."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist", True
    except PermissionError:
        return "cannot be reached: permission denied for a directory above it", False
    except (OSError, ValueError) as error:
        return f"cannot be used: {getattr(error, 'strerror', None) or error}", False
    if stat.S_ISDIR(mode):
        return "is a directory; name the file in it", False
    if not os.access(path, os.X_OK):
        return "is not executable; chmod +x it or name another", False
    return None


def _found(program: str, environ: Mapping[str, str], cwd: str | os.PathLike[str] | None) -> str | None:
    """The file that was to be started, as the system looked for it."""
    if os.path.dirname(program):
        places = [os.path.join(os.fspath(cwd or ""), program)]
    else:
        places = [os.path.join(place, program) for place in os.get_exec_path(environ)]
    return next((place for place in places if os.path.lexists(place)), None)


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def _missing_interpreter(path: str) -> str:
    if not os.path.exists(path):
        return "it is a link to a file that does not exist; correct the link"
    head = _head(path)
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].strip(b" \t").split(maxsplit=1)
        name = head[2:].split(b"\n", 1)[0].strip(b" \t").decode("utf-8", "replace")
        interpreter = words[0].decode("utf-8", "replace") if words else ""
        if name.endswith("\r"):
            return f"its first line names {name!r} as its interpreter; save it with Unix line endings"
        return f"its first line names the interpreter {interpreter}, which does not exist; install it, or correct that"
    return "the loader that it asks for does not exist here; use a build for this system"


def _not_permitted(path: str | None) -> str:
    if path is None:
        return "permission denied; check the directories that lead to it"
    problem = file_problem(path)
    if problem is not None:
        return f"it {problem[0]}"
    if _head(path).startswith(b"#!"):
        return "permission denied, maybe for the interpreter that its first line names; make that executable"
    return "permission denied; check that its file system is not mounted with noexec"


def _not_a_program(path: str | None) -> str:
    head = _head(path) if path is not None else b""
    if not head:
        return "the file is empty; install it again"
    if head.startswith(b"\x7fELF") and len(head) > 19:
        order = "little" if head[5] == 1 else "big"
        machine = int.from_bytes(head[18:20], order)  # type: ignore[arg-type]
        name = _MACHINES.get(machine, f"machine {machine}")
        return f"it is built for another kind of processor ({name}); use a build for this machine"
    if head.startswith((b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")):
        return f"it is built for another operating system; use a build for {sys.platform}"
    return "it is neither a program nor a script whose first line begins with #!; name the codex binary"


def _too_long(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    sizes = {f"argument {number}": len(os.fsencode(word)) for number, word in enumerate(argv)}
    sizes |= {f"variable {name}": len(os.fsencode(name)) + len(os.fsencode(value)) for name, value in environ.items()}
    longest = max(sizes, key=lambda name: sizes[name])
    return (
        f"its arguments and environment have {sum(sizes.values()):,} bytes, more than the system takes; the longest is "
        f"{longest} with {sizes[longest]:,}; shorten it, or move settings into config.toml"
    )
