"""constraints.txt: one exact version of everything that is installed for development, on every supported Python."""

from __future__ import annotations

import functools
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
# Each with its first and some later micro versions: what asks for a later one than the first is found by the first.
PYTHONS = [f"3.{minor}.{micro}" for minor in (10, 11, 12, 13) for micro in range(20)]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text:
            requirement = Requirement(text)
            found.setdefault(canonical(requirement.name), []).append(requirement)
    return found


PINS = pins()


@functools.cache
def installed() -> dict[str, Distribution]:
    return {canonical(one.metadata["Name"]): one for one in distributions() if one.metadata["Name"]}


def holds(pin: Requirement, python: str) -> bool:
    where = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    return pin.marker is None or pin.marker.evaluate(where)


def pinned(name: str, python: str) -> list[str]:
    """The versions that a Python gets."""
    return [str(pin.specifier) for pin in PINS[name] if holds(pin, python)]


def needed() -> dict[str, Distribution]:
    """Return what is installed here because this project or its extras want it, itself left out."""
    found: dict[str, Distribution] = {}
    extras = set(installed()["codex-pool"].metadata.get_all("Provides-Extra") or ())
    waiting = [("codex-pool", frozenset(extras))]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        if name not in installed():
            # Of an extra that is not installed here.
            continue
        found[name] = installed()[name]
        for text in installed()[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is not None and not any(
                requirement.marker.evaluate({"extra": extra}) for extra in wanted or {""}
            ):
                continue
            step = (canonical(requirement.name), frozenset(requirement.extras))
            if step not in seen:
                seen.add(step)
                waiting.append(step)
    del found["codex-pool"]
    return found


def test_every_python_gets_exactly_one_version_of_each() -> None:
    wrong = {(name, python): pinned(name, python) for name in PINS for python in PYTHONS}
    assert {place: versions for place, versions in wrong.items() if len(versions) != 1} == {}
    loose = [
        str(pin) for of_name in PINS.values() for pin in of_name if not re.fullmatch("==[^*,]+", str(pin.specifier))
    ]
    assert loose == []


def test_what_is_installed_is_what_is_pinned() -> None:
    python = ".".join(map(str, sys.version_info[:3]))
    found = needed()
    assert {"pytest", "pydantic", "openai-codex-cli-bin"} <= set(found)
    assert [name for name in found if name not in PINS] == []
    other = {name: (one.version, pinned(name, python)) for name, one in found.items()}
    assert {name: pair for name, pair in other.items() if pair[1] != [f"=={pair[0]}"]} == {}


def test_no_pin_holds_for_a_python_that_its_package_refuses() -> None:
    wrong = {}
    for name in set(PINS) & set(installed()):
        requires = SpecifierSet("".join(installed()[name].metadata.get_all("Requires-Python") or ()))
        version = f"=={installed()[name].version}"
        wrong[name] = [python for python in PYTHONS if pinned(name, python) == [version] and python not in requires]
    assert wrong and not any(wrong.values()), wrong


def test_it_names_no_place_to_get_packages_from() -> None:
    text = (
        (ROOT / "constraints.txt").read_text() + (ROOT / "Makefile").read_text() + (ROOT / "pyproject.toml").read_text()
    )
    assert re.findall(r"--index-url|--extra-index-url|--find-links|https?://\S+", text) == []
