"""Modules of src/ are short enough to be read at once."""

from __future__ import annotations

from pathlib import Path

SRC = Path(__file__).parents[2] / "src"
MAX_LINES = 400
# What scripts write is not counted: files in `generated`, and the lines between these two.
BEGIN, END = "    # Made of PoolOptions by scripts/pool_options.py,", "    # End of what is made of PoolOptions."
# Modules that are to be split; each may only become shorter.
LONGER = {
    "codex_app_server/testing/_null_app_server.py": 420,
    "codex_pool/broker/core.py": 482,
    "codex_pool/gateway/listeners/server.py": 436,
}


def written_lines(text: str) -> int:
    """Number of the lines that people have written."""
    before, begin, rest = text.partition(BEGIN)
    if begin:
        text = before + rest.partition(END)[2]
    return text.count("\n")


def test_no_module_is_longer_than_the_limit() -> None:
    lengths = {
        path.relative_to(SRC).as_posix(): written_lines(path.read_text(encoding="utf-8"))
        for path in SRC.rglob("*.py")
        if "generated" not in path.relative_to(SRC).parts
    }
    too_long = {name: lines for name, lines in lengths.items() if lines > LONGER.get(name, MAX_LINES)}
    assert not too_long, f"more than {MAX_LINES} lines; give a part with state or a subject of its own its own module"


def test_what_a_script_writes_is_not_counted() -> None:
    assert written_lines("one\ntwo\n") == 2
    assert written_lines(f"one\n{BEGIN} down\nwritten\n{END}\ntwo\n") == 3
