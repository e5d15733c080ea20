"""Write the synchronous twins of the asyncio modules: `generate_sync.py`, or `generate_sync.py --check`.

Each source in SOURCES is translated token by token: `async` and `await` are dropped, names are replaced by NAMES, and
phrases of strings and comments by PHRASES. Three more things are replaced before that:

    statement  # asyncio only      the line is left out
    @awaited, @on_a_loop           the line is left out
    Awaitable[T]                   becomes T

ruff sorts the imports, removes those that nothing uses any more, and formats. With --check nothing is written; the exit
code is 1 if a file differs from what would be written.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_SDK = "src/codex_app_server"
_MODULES = ("client", "codex", "login", "retry", "thread", "turn")
SOURCES = {
    **{
        f"{_SDK}/_async/{name}.py": f"{_SDK}/_sync/{name}.py"
        for name in ("client", "codex", "thread", "turn", "login", "retry")
    },
    f"{_SDK}/compat/openai_codex/async_api.py": f"{_SDK}/compat/openai_codex/sync_api.py",
    "tests/sdk/test_deadlines_async.py": "tests/sdk/test_deadlines_sync.py",
}

# Names that do not simply lose their "Async".
NAMES = {
    "AsyncDriver": "SyncDriver",
    "AsyncLifecycle": "SyncLifecycle",
    "AsyncMailbox": "SyncMailbox",
    "CancelledError": "KeyboardInterrupt",
    "StopAsyncIteration": "StopIteration",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "_async": "_sync",
    "aclose": "close",
    "anext": "next",
    "aretry_on_overload": "retry_on_overload",
    "aretry_while": "retry_while",
    "astream_text": "stream_text",
    "async_api": "sync_api",
}
# In strings and comments, before the names in them are replaced.
PHRASES = {
    "an app-server for asyncio.": "an app-server, ready to use.",
    "one app-server, for asyncio.": "one app-server. Any number of threads may call it at once.",
    "over one transport, on one event loop.": "over one transport.",
    "the timeout, cancellation -": "the timeout, Ctrl-C -",
    "it is left to a task.": "it is left to another thread.",
    ", WrongEventLoopError.": ".",
    " Raises WrongEventLoopError.": "",
    "`await ": "`",
    """An app-server for asyncio. Starts at its first use, once however many tasks ask; use it with `async with`.

    `transport` replaces the child process, e.g. by a pool.
""": """An app-server, ready to use. Starts it and shakes hands in the constructor; use it as a context manager.

    `transport` replaces the child process, e.g. by a pool. Raises AppServerError; nothing is left behind then.
""",
    """ may be a function or a coroutine function; it runs as a task, which is cancelled
    when the request is resolved otherwise. `params` is of the request's generated type, what it returns is the
    response's type or a dict in the wire's own names. Without a handler, and when it raises, requests are declined.
""": """ answers the app-server's own requests: `params` is of the request's generated
    type, what it returns is the response's type or a dict in the wire's own names. It runs on a thread of its own for
    each and may take its time; an answer that comes after the request was resolved otherwise is dropped. Without a
    handler, and when it raises, requests are declined.
""",
    """`aclose`, or leaving it as a context manager, interrupts a turn that has
    not ended, unless its handle is detached.
""": """Ctrl-C while it waits, `close`, or leaving it as a context manager
    interrupts a turn that has not ended, unless its handle is detached.
""",
    """cancelling the task that waits for the next piece, `aclose`, or leaving
    it as a context manager interrupts a turn that has not ended, unless its handle is detached.
""": """Ctrl-C while it waits, `close`, or leaving it as a context manager
    interrupts a turn that has not ended, unless its handle is detached.
""",
}
MARK = re.compile(r"^.*# asyncio only\n|^ *@(?:awaited|on_a_loop)\n", re.MULTILINE)
AWAITABLE = re.compile(r"\bAwaitable\[(\w+)\]")
_IMPORTS_AND_STYLE = "I,F401,SIM117,UP028,C416,C419"


def translate(source: str, origin: str) -> str:
    """The synchronous twin of a module, not yet formatted."""
    source = AWAITABLE.sub(r"\1", MARK.sub("", source))
    lines = source.splitlines(keepends=True)
    out: list[str] = []
    row, column = 1, 0
    skip_space = False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.ENDMARKER:
            break
        between = _between(lines, (row, column), token.start)
        out.append(between.lstrip(" ") if skip_space else between)
        skip_space = token.type == tokenize.NAME and token.string in ("async", "await")
        if not skip_space:
            out.append(_translated(token))
        row, column = token.end
    header = f"# Generated by scripts/generate_sync.py from {origin}; change that one.\n"
    return header + "".join(out)


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The text between two tokens."""
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]] if start[0] <= len(lines) else ""
    first = lines[start[0] - 1][start[1] :]
    return first + "".join(lines[start[0] : end[0] - 1]) + (lines[end[0] - 1][: end[1]] if end[0] <= len(lines) else "")


def _translated(token: tokenize.TokenInfo) -> str:
    if token.type == tokenize.NAME:
        return name_of(token.string)
    if token.type in (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)):
        text = token.string
        for phrase, twin in PHRASES.items():
            text = text.replace(phrase, twin)
        return re.sub(r"\w+", lambda word: name_of(word[0]), text)
    return token.string


def name_of(name: str) -> str:
    """The synchronous name for one of asyncio."""
    return NAMES.get(name) or re.sub(r"^(_?)Async(?=[A-Z])", r"\1", name)


def check_translatable(source: str) -> None:
    """Raises ValueError for an await within an f-string, of which older Pythons see no tokens."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr) and any(isinstance(part, ast.Await) for part in ast.walk(node)):
            raise ValueError(f"line {node.lineno}: an await in an f-string is not translated; use a variable")


def generate(source: Path) -> str:
    """The synchronous twin of a module, formatted. Raises ValueError, and CalledProcessError where ruff fails."""
    target = str(ROOT / SOURCES[source.relative_to(ROOT).as_posix()])
    text = translate(
        source.read_text(encoding="utf-8"), source.name if source.parent.name != "_async" else f"_async/{source.name}"
    )
    fix = ["check", "--quiet", "--fix", "--unsafe-fixes", "--exit-zero", "--select", _IMPORTS_AND_STYLE]
    for command in (fix, ["format", "--quiet"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", target, "-"],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            cwd=ROOT,
        )
        text = done.stdout
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the synchronous twins of the asyncio modules.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    check = parser.parse_args().check
    differing = 0
    for source, target in SOURCES.items():
        path = ROOT / target
        text = generate(ROOT / source)
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if text == before:
            continue
        differing += 1
        if check:
            lines = difflib.unified_diff(
                before.splitlines(True), text.splitlines(True), target, f"{target} (generated)"
            )
            sys.stdout.writelines(lines)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {target}")
    if check and differing:
        print(
            f"error: {differing} of {len(SOURCES)} generated files differ; run scripts/generate_sync.py",
            file=sys.stderr,
        )
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
