"""Failures to start are named for what they are, with a remedy; what dies at once is named by its own last error."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from codex_app_server import (
    AppServerConfig,
    AppServerError,
    AsyncCodex,
    BinaryNotFoundError,
    Codex,
    HomeError,
    InvalidInputError,
    StartError,
)
from codex_app_server import TransportClosedError as Closed
from codex_app_server._runtime.start_failures import directory_problem, file_problem, start_error
from codex_app_server._runtime.stderr import cause
from codex_app_server.config import find_codex
from codex_pool import Pool, PoolStartError

ELF_OF_ANOTHER = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xf3\x00" + bytes(44)


# Errors of the system.


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EAGAIN, "too_many_processes", "ulimit -u"),
        (errno.ENOMEM, "out_of_memory", "not enough memory"),
        (errno.EMFILE, "too_many_files", "ulimit -n"),
        (errno.ENFILE, "too_many_files", "fs.file-max"),
        (errno.ETXTBSY, "binary_busy", "open for writing"),
        (errno.E2BIG, "arguments_too_long", r"variable BIG with 1,003; shorten it"),
        (errno.ENOEXEC, "not_a_program", "neither a program nor a script"),
        (errno.ENOENT, "interpreter_not_found", "asks for does not exist"),
        (errno.EACCES, "not_executable", "is not executable; chmod"),
        (errno.EIO, "other", "Input/output error"),
    ],
)
def test_each_error_has_its_kind(number: int, kind: str, words: str, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("text")
    found = start_error(OSError(number, os.strerror(number)), [str(program), "x"], {"BIG": "x" * 1000}, tmp_path)
    assert type(found) is StartError
    assert found.kind == kind
    assert str(found).startswith(f"cannot start {program}: ") and words in str(found)
    assert "\n" not in str(found)


def test_what_is_missing_is_told_apart(tmp_path: Path) -> None:
    missing = OSError(errno.ENOENT, "No such file or directory")
    found = start_error(missing, ["/no/program"], {}, tmp_path)
    assert (type(found), found.kind) == (BinaryNotFoundError, "binary_not_found")
    found = start_error(missing, ["/bin/sh"], {}, tmp_path / "gone")
    assert (type(found), found.kind) == (StartError, "working_directory")
    assert str(found).endswith(f"its working directory {tmp_path}/gone does not exist; give cwd an existing directory")
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    assert "a link to a file that does not exist" in str(start_error(missing, [str(link)], {}, None))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"echo hello\n", "neither a program nor a script"),
        (ELF_OF_ANOTHER, "another kind of processor (riscv)"),
        (b"MZ\x90\x00", "another operating system"),
    ],
)
def test_what_is_no_program(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "codex"
    path.write_bytes(content)
    path.chmod(0o755)
    with pytest.raises(StartError) as caught:
        Codex(AppServerConfig(codex_bin=path))
    assert caught.value.kind == "not_a_program" and words in str(caught.value)


def test_directories_and_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert directory_problem(tmp_path) is None
    assert directory_problem(file) == "is not a directory"
    assert directory_problem(file / "below") == directory_problem(tmp_path / "gone") == "does not exist"
    assert "cannot be used" in str(directory_problem(tmp_path / ("x" * 300)))
    assert file_problem(str(file)) == ("is not executable; chmod +x it or name another", False)
    assert file_problem(str(tmp_path)) == ("is a directory; name the file in it", False)
    assert file_problem(str(tmp_path / "gone")) == ("does not exist", True)


def test_what_another_user_cannot_reach() -> None:
    """Run in a process of another user, where this one may become one; else as this user, who has no rights either."""
    closed = Path("/tmp") / f"cp-closed-{os.getpid()}"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0o600)
    source = Path(sys.modules["codex_app_server"].__file__ or "").parent.parent
    program = (
        f"import sys; sys.path.insert(0, {str(source)!r})\n"
        "from codex_app_server._runtime.start_failures import directory_problem, file_problem\n"
        "import os\n"
        "os.geteuid() == 0 and os.setuid(65534)\n"
        f"print(directory_problem({str(closed)!r}), directory_problem({str(closed / 'inner')!r}), "
        f"file_problem({str(closed / 'inner')!r}), sep='|')\n"
    )
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, cwd="/")
    finally:
        closed.chmod(0o700)
        shutil.rmtree(closed)
    beyond = "cannot be reached: permission denied for a directory above it"
    assert done.stdout == f"cannot be entered: permission denied|{beyond}|{(beyond, False)}\n", done.stderr


# Through a client and through a pool alike.


def busy(path: Path) -> AppServerConfig:
    shutil.copy("/bin/true", path / "codex")
    return AppServerConfig(codex_bin=path / "codex")


def script(text: bytes) -> Callable[[Path], AppServerConfig]:
    def make(path: Path) -> AppServerConfig:
        (path / "codex").write_bytes(text)
        (path / "codex").chmod(0o755)
        return AppServerConfig(codex_bin=path / "codex")

    return make


def vanished(path: Path) -> AppServerConfig:
    (path / "gone").mkdir()
    config = AppServerConfig(cwd=path / "gone")
    (path / "gone").rmdir()
    return config


def replaced(path: Path) -> AppServerConfig:
    config = vanished(path)
    (path / "gone").write_text("")
    return config


CASES: dict[str, tuple[Callable[[Path], AppServerConfig], str, str]] = {
    "missing": (lambda path: AppServerConfig(codex_bin=path / "codex"), "binary_not_found", "not found at"),
    "directory": (lambda path: AppServerConfig(codex_bin=path), "not_executable", "is a directory"),
    "interpreter": (script(b"#!/no/such\n"), "interpreter_not_found", "the interpreter /no/such, which does not exist"),
    "line endings": (script(b"#!/bin/sh\r\n"), "interpreter_not_found", "Unix line endings"),
    "no program": (script(b"hello"), "not_a_program", "neither a program nor a script"),
    "processor": (script(ELF_OF_ANOTHER), "not_a_program", "another kind of processor"),
    "cwd gone": (vanished, "working_directory", "does not exist"),
    "cwd is a file": (replaced, "working_directory", "is not a directory"),
    "arguments": (
        lambda path: AppServerConfig(config_overrides=(f"a={'x' * 200_000}",)),
        "arguments_too_long",
        "shorten it",
    ),
    "busy": (busy, "binary_busy", "open for writing"),
}


@pytest.mark.parametrize("through", ["client", "pool"])
@pytest.mark.parametrize("case", CASES)
def test_the_reason_is_named(case: str, through: str, tmp_path: Path, home: Path) -> None:
    make, kind, words = CASES[case]
    config = make(tmp_path)
    config.env = {"CODEX_HOME": str(home)}
    with (
        (tmp_path / "codex").open("ab") if case == "busy" else open(os.devnull, "rb"),
        pytest.raises(StartError) as caught,
    ):
        if through == "client":
            Codex(config)
        else:
            Pool(1, config, log_file=tmp_path / "log").start()
    assert caught.value.kind == kind
    assert isinstance(caught.value, BinaryNotFoundError) == (kind == "binary_not_found")
    assert words in str(caught.value) and "in a row" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_too_many_open_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 8, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        os.close(held.pop())
        with pytest.raises(StartError, match="ulimit -n") as caught:
            Codex(AppServerConfig(launch_args_override=("/bin/true",)))
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.kind == "too_many_files"


@pytest.mark.parametrize(
    "fields",
    [
        {"env": {"A=B": "x"}},
        {"env": {"A": "x\0"}},
        {"launch_args_override": ("/bin/echo", "a\0b")},
        {"config_overrides": ("a=\0",)},
    ],
)
def test_what_no_system_takes_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="cannot start"):
        Codex(AppServerConfig(**fields))  # type: ignore[arg-type]


def test_a_removed_working_directory_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for start in (Pool(1).start, Codex, AsyncCodex):
        with pytest.raises(StartError, match="the working directory of this process has been removed") as caught:
            start()
        assert caught.value.kind == "working_directory"
    with pytest.raises(BinaryNotFoundError, match="codex binary not found at here/codex"):
        find_codex("here/codex")


# A bare name.


def test_a_bare_name_is_looked_for_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, here = (tmp_path / name for name in ("first", "second", "here"))
    for place in (first, second, here):
        place.mkdir()
    for place in (second, here):
        (place / "my-codex").write_text("#!/bin/sh\n")
        (place / "my-codex").chmod(0o755)
    (first / "my-codex").write_text("not executable")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", os.pathsep.join(["", ".", str(first), str(second)]))
    assert find_codex("my-codex") == second / "my-codex"
    assert find_codex("./my-codex") == here / "./my-codex"
    assert find_codex(Path("my-codex")) == here / "my-codex"
    assert AppServerConfig(codex_bin="my-codex", env={"PATH": str(second)}).argv()[0] == str(second / "my-codex")
    with pytest.raises(StartError, match="first/my-codex is not executable") as caught:
        AppServerConfig(codex_bin="my-codex", env={"PATH": str(first)}).argv()
    assert caught.value.kind == "not_executable"
    with pytest.raises(BinaryNotFoundError, match=r"no program 'my-codex' on PATH; .* write \./my-codex"):
        AppServerConfig(codex_bin="my-codex", env={"PATH": "."}).argv()
    with pytest.raises(BinaryNotFoundError, match="codex_bin is empty"):
        find_codex("")
    monkeypatch.setenv("HOME", str(second))
    (second / "link").symlink_to("my-codex")
    assert find_codex("~/link") == second / "link"


# Words of the dead.

RECORD = "\x1b[2m2026-11-29T02:01:48.873036Z\x1b[0m \x1b[31mERROR\x1b[0m \x1b[2mcodex_app_server\x1b[0m\x1b[2m:\x1b[0m "
BACKTRACE = "\n\nStack backtrace:\n   0: <unknown>\n   1: std::main\n             at /rustc/main.rs:3\n"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", ""),
        ("\n \n", ""),
        ("cannot open the database", "cannot open the database"),
        ("first\nlast\n", "last"),
        ('WARNING: proceeding, even though\nError: no "/x" there' + BACKTRACE, 'no "/x" there'),
        ("Error: invalid type: integer `3`\nin `model`\n" + BACKTRACE, "invalid type: integer `3` in `model`"),
        ("Error: top\n\nCaused by:\n    0: first\n    1: second" + BACKTRACE, "top: first: second"),
        ("Error: top\n\nCaused by:\n    only\n\nLocation:\n    x.rs:3:4", "top: only"),
        (
            "Error: \n   0: \x1b[91mtop\x1b[0m\n   1: deeper\n\nLocation:\n   a/b.rs:3\n\n  ━━ BACKTRACE ━━\n  3: foo",
            "top: deeper",
        ),
        (
            "error: unexpected argument '--x' found\n\nUsage: codex [OPTIONS]\n\nFor more information, try '--help'.",
            "unexpected argument '--x' found",
        ),
        ("thread 'main' panicked at core/x.rs:12:5:\nall is lost\nnote: run with `RUST_BACKTRACE=1`", "all is lost"),
        ("thread 'main' panicked at 'all is lost', core/x.rs:12:5\nnote: run with", "all is lost"),
        (
            "thread 'main' (7) panicked at core/x.rs:1:5:\nlost\nstack backtrace:\n   0: unwind\n         at /x.rs",
            "lost",
        ),
        (
            RECORD + "Invalid configuration; using defaults. /x:1:2: oh",
            "Invalid configuration; using defaults. /x:1:2: oh",
        ),
        (RECORD + "Codex could not find bubblewrap on PATH. Install it.", ""),
        (RECORD + "one\n" + RECORD.replace("ERROR", "WARN") + "two", "one"),
        ("Error: early\n" + RECORD + "late", "early"),
        ("Error: " + "x" * 1000, "x" * 397 + "..."),
        ("env: 'node': No such file or directory", "env: 'node': No such file or directory"),
    ],
)
def test_the_cause_is_one_sentence(said: str, expected: str) -> None:
    assert cause(said.split("\n")) == expected


def no_database(path: Path, home: Path) -> AppServerConfig:
    return AppServerConfig(env={"CODEX_HOME": str(home), "CODEX_SQLITE_HOME": "/proc/nope"})


def wrong_type(path: Path, home: Path) -> AppServerConfig:
    return AppServerConfig(env={"CODEX_HOME": str(home)}, config_overrides=("model=3",))


def no_provider(path: Path, home: Path) -> AppServerConfig:
    return AppServerConfig(env={"CODEX_HOME": str(home)}, config_overrides=('model_provider="none"',))


@pytest.mark.real
@pytest.mark.parametrize("through", ["client", "pool"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_database, "failed to initialize sqlite state runtime under /proc/nope"),
        (wrong_type, "invalid type: integer `3`, expected a string in `model`"),
        (no_provider, "Model provider `none` not found"),
    ],
)
def test_a_real_app_server_that_cannot_begin(
    make: Callable[[Path, Path], AppServerConfig], words: str, through: str, tmp_path: Path, home: Path
) -> None:
    if through == "pool" and make is no_database:
        # Its databases are the pool's own.
        (home / "codex-pool").write_text("")
        words = "Not a directory"
    config = make(tmp_path, home)
    with pytest.raises(AppServerError) as caught:
        if through == "client":
            Codex(config)
        else:
            Pool(1, config, log_file=tmp_path / "log").start()
    assert isinstance(caught.value, Closed)
    assert isinstance(caught.value, PoolStartError) == (through == "pool")
    said = str(caught.value)
    assert words in said
    assert not any(noise in said for noise in ("backtrace", "<unknown>", "\x1b", "WARNING", "Location"))
    assert len(said.splitlines()) <= 2
    if through == "client":
        assert any("Stack backtrace" in line for line in caught.value.stderr_lines)


@pytest.mark.parametrize("through", ["client", "pool"])
def test_a_home_that_cannot_be_made_is_named(through: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home, words in ((tmp_path / "file", "is not a directory"), (tmp_path / "file" / "below", "cannot be made")):
        config = AppServerConfig(env={"CODEX_HOME": str(home)})
        with pytest.raises(HomeError, match=f"CODEX_HOME {home} {words}") as caught:
            Codex(config) if through == "client" else Pool(1, config).start()
        assert caught.value.kind == "home"
