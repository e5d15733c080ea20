"""Fenced blocks of the documentation, with the comment before a fence that says how it is run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    "examples/clients/javascript/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")),
)
# What a command may need that no test can have.
NEEDS = ("Docker", "podman", "ssh", "a cluster", "an account", "a terminal", "an editor", "Node.js", "Ray")

_FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- run: (?P<run>[^\n]*?) -->\n(?P=indent))?"
    r"```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_COMMENT = re.compile(r"<!-- run:")


@dataclass(frozen=True)
class Fence:
    """A fenced block. `run`: "" for one that is run as it stands, "background", or "no, needs ..."."""

    page: str
    line: int
    language: str
    text: str
    run: str

    @property
    def needs(self) -> str:
        """Return what the block needs that a test does not have, "" if it needs nothing."""
        return self.run.removeprefix("no, needs ") if self.run.startswith("no, needs ") else ""


def fences(page: str) -> list[Fence]:
    """The fenced blocks of a page, in their order; raises ValueError for a comment that belongs to none."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        body = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        found.append(Fence(page, line, match["language"], body, match["run"] or ""))
    if sum(bool(fence.run) for fence in found) != len(_COMMENT.findall(text)) - text.count("`<!-- run:"):
        raise ValueError(f"{page}: a comment `<!-- run: ... -->` does not stand before a fence")
    return found
