"""Every page of docs/ is in the navigation of the documentation site, once: `make docs` refuses one that is not."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_page_is_in_the_navigation_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", text.partition("\nnav:\n")[2], re.MULTILINE)
    assert len(listed) == len(set(listed))
    # scripts/site_hooks.py adds pages that are elsewhere in the repository.
    elsewhere = {page for page in listed if not (ROOT / "docs" / page).exists()}
    assert all((ROOT / page).exists() for page in elsewhere), elsewhere
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages == set(listed) - elsewhere
