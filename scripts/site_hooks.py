"""Hooks of mkdocs: pages and files of the repository that are not in docs/, and links between all of them.

In the repository a page links to another one by its path there, `docs/guides/batch.md` from README.md and
`../examples/README.md` from docs/faq.md. The site has docs/ as its root, and beside its pages those of `PAGES`; files
that a page links to are copied. A link to a directory leads to the next README.md at or above it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Pages outside of docs/.
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "examples/README.md",
    "examples/clients/javascript/README.md",
    "examples/plugin/README.md",
)
# What other links lead to, of which the site gets a copy.
COPIED = ("LICENSE", "examples", "notebooks", "bench/intervals.py")

_LINK = re.compile(r"(\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(\))")
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files that are not in docs/."""
    names = [*PAGES]
    for name in COPIED:
        path = ROOT / name
        found = [each for each in (sorted(path.rglob("*")) if path.is_dir() else [path]) if each.is_file()]
        names += [str(each.relative_to(ROOT)) for each in found if each.suffix not in (".pyc", ".md")]
    for name in names:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Adapt the links of a page to the layout of the site."""
    source = page.file.src_uri
    place = source if source in PAGES else f"docs/{source}"

    def adapted(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), match[2]))
        link = posixpath.relpath(site_path(target), posixpath.dirname(source) or ".")
        return f"{match[1]}{link}{match[3] or ''}{match[4]}"

    text = [_LINK.sub(adapted, part) for part in _FENCE.split(markdown)]
    fences = [*_FENCE.findall(markdown), ""]
    return "".join(piece for pair in zip(text, fences, strict=True) for piece in pair)


def site_path(target: str) -> str:
    """Return the path in the site of a file or directory of the repository, or the path itself if it does not exist."""
    path = ROOT / target
    while path.is_dir() and path != ROOT and not (path / "README.md").is_file():
        path = path.parent
    if path.is_dir():
        path /= "README.md"
    name = path.relative_to(ROOT).as_posix()
    return name.removeprefix("docs/")
