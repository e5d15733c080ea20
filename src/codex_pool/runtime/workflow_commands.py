"""Workflow commands of GitHub Actions: lines of a step's output that its runner acts upon. Pure.

The runner takes a line for a command that begins, after spaces, with `::`, and one that has `##[` anywhere (the form of
its first version, which it still reads). It reads stdout and stderr alike. So text of agents, datasets and scorers must
not bring any: `neutral` and `json_line` see to that where GITHUB_ACTIONS is `true`.
"""

from __future__ import annotations

from collections.abc import Mapping


def is_on(environ: Mapping[str, str]) -> bool:
    """True where output goes to a runner of GitHub Actions."""
    return environ.get("GITHUB_ACTIONS") == "true"


def neutral(text: str) -> str:
    """The text without a command in it: the first character of one as an escape such as `\\x3a`."""
    if "##[" in text:
        text = text.replace("##[", "\\x23#[")
    if "::" not in text:
        return text
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        begun = line.lstrip()
        if begun.startswith("::"):
            lines[number] = f"{line[: len(line) - len(begun)]}\\x3a{begun[1:]}"
    return "".join(lines)


def json_line(line: str) -> str:
    """The same of a JSON object on one line, which stays the same value: it does not begin with a colon."""
    return line.replace("##[", "##\\u005b")


def command(name: str, title: str, message: str) -> str:
    """A command such as `error` or `warning`, with a title. Both texts may hold anything, lines too."""
    data = _escaped(message)
    return f"::{name} title={_escaped(title).replace(':', '%3A').replace(',', '%2C')}::{data}".replace("##[", "##%5B")


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
