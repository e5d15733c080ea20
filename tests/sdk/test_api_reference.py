"""docs/api-reference.md against the code: every public name, and every signature as it is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import public_api
import pytest

import codex_app_server
from codex_app_server.generated.options import OPTION_NAMES
from codex_app_server.presets import PRESETS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "api-reference.md").read_text(encoding="utf-8")
VALUES = {name: getattr(codex_app_server, name) for name in codex_app_server.__all__}
ERRORS = {name: value for name, value in VALUES.items() if inspect.isclass(value) and issubclass(value, Exception)}
CLASSES = {name: value for name, value in VALUES.items() if inspect.isclass(value) and name not in ERRORS}
FUNCTIONS = {name: value for name, value in VALUES.items() if inspect.isfunction(value)}
CALLS = {
    "`thread_start`": "ThreadStartOptions",
    "`thread_resume`": "ThreadResumeOptions",
    "`thread_fork`": "ThreadForkOptions",
    "`thread_list`": "ThreadListOptions",
    "`run` and `turn`": "TurnStartOptions",
}


def entries(heading: str) -> list[str]:
    """The signatures below a heading of the third level."""
    found = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no heading {heading}"
    return re.findall(r"^- `(.+?)`(?::|$)", found[1], re.MULTILINE)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_documented_as_it_is(name: str) -> None:
    assert entries(f"`{name}`") == public_api.members(CLASSES[name])


def test_functions_are_documented_as_they_are() -> None:
    listed = set(re.findall(r"^- `(.+?)`(?::|$)", PAGE, re.MULTILINE))
    for name, function in FUNCTIONS.items():
        assert public_api.signature(name, function) in listed


def test_errors_are_documented_with_their_bases() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \((.+?)\) \|", PAGE, re.MULTILINE))
    assert rows == {name: ", ".join(base.__name__ for base in cls.__bases__) for name, cls in ERRORS.items()}


def test_options_are_all_documented() -> None:
    for call, options in CALLS.items():
        line = re.search(rf"^- {re.escape(call)}: (.*)$", PAGE, re.MULTILINE)
        assert line is not None, call
        names = OPTION_NAMES[options] | PRESETS.get(options, frozenset())
        assert re.findall(r"`(\w+)`", line[1]) == sorted(names)


def test_nothing_public_is_left_out_and_nothing_else_is_named() -> None:
    rest = set(VALUES) - set(CLASSES) - set(ERRORS) - set(FUNCTIONS)
    assert rest == {"Input", "InputItem", "RunInput", "__version__"}
    assert all(f"`{name}`" in PAGE for name in rest)
    assert set(re.findall(r"^### `(\w+)`", PAGE, re.MULTILINE)) == {*CLASSES, "__version__"}


def test_the_twins_have_the_same_names() -> None:
    for name, cls in CLASSES.items():
        twin = CLASSES.get(f"Async{name}")
        if twin is not None:
            names, twins = ({line.split("(")[0] for line in public_api.members(both)} for both in (cls, twin))
            names = {text.split(":")[0].removeprefix("Async") for text in names}
            twins = {text.removeprefix("async ").split(":")[0].removeprefix("Async") for text in twins}
            # What asyncio alone needs: starting is awaited, which a constructor cannot be; streams end by aclose.
            assert twins - names <= {"start", "spawn", "aclose"}
            assert names - twins <= {"close"}


def test_the_comparison_lists_every_public_name() -> None:
    page = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    listed = [name for row in re.findall(r"^\| (`.+?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(codex_app_server.__all__)


@pytest.mark.parametrize("page", ["api-reference.md", "faq.md", "compatibility.md", "getting-started.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = DOCS / path if path else DOCS / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
