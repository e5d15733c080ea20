"""The synchronous twins are what scripts/generate_sync.py makes of the asyncio modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SCRIPT = SCRIPTS / "generate_sync.py"


@pytest.mark.generate
def test_the_generated_files_are_those_of_their_sources() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("source", "twin"),
    [
        ("async def f() -> None:\n    await g()\n", "def f() -> None:\n    g()\n"),
        ("async with a as b:\n    return [x async for x in b]\n", "with a as b:\n    return [x for x in b]\n"),
        ("class AsyncThread(_AsyncBase): ...\n", "class Thread(_Base): ...\n"),
        ("    def __aenter__(self): ...\n", "    def __enter__(self): ...\n"),
        ("def f(op: Awaitable[T], g: 'AsyncCodex'): ...\n", "def f(op: T, g: 'Codex'): ...\n"),
        ("x = 1\nloop.check()  # asyncio only\n@awaited\ny = 2\n", "x = 1\ny = 2\n"),
        ('"""One of AsyncMailbox; `await f()`."""\n', '"""One of SyncMailbox; `f()`."""\n'),
        ("# an AsyncTurnHandle is awaited\n", "# an TurnHandle is awaited\n"),
        ("except (TimeoutError, CancelledError):\n", "except (TimeoutError, KeyboardInterrupt):\n"),
    ],
)
def test_translation(monkeypatch: pytest.MonkeyPatch, source: str, twin: str) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import generate_sync

    indented = f"if True:\n{source}" if source.startswith(" ") else source
    expected = f"if True:\n{twin}" if source.startswith(" ") else twin
    assert generate_sync.translate(indented, "x.py").partition("\n")[2] == expected


def test_an_await_in_an_f_string_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import generate_sync

    with pytest.raises(ValueError, match="line 2: an await in an f-string"):
        generate_sync.check_translatable('async def f():\n    return f"{await x}"\n')
