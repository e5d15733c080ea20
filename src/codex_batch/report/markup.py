"""Templates of the page, filled so that no value in them can become markup: text is escaped. Pure, its own files aside.

Autoescaping holds for what a template prints directly. Texts joined inside of one (`~`) or marked `safe` are not made
printable, so no template does either with what comes from a run.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

# What HTML cannot carry (control characters, lone surrogates) and what reorders the text around it.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069\ufffe\uffff]")


def printable(value: Any) -> Any:
    """Return a value as text that shows itself; markup stays as it is, and None is nothing."""
    if isinstance(value, Markup):
        return value
    return "" if value is None else _UNPRINTABLE.sub("\ufffd", str(value))


def coordinate(value: float) -> str:
    """Return a length or a place in a plot to a tenth of its unit."""
    return f"{value:.1f}".removesuffix(".0")


@cache
def environment() -> Environment:
    """The templates of this package."""
    made = Environment(
        loader=PackageLoader("codex_batch.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    made.filters["coordinate"] = coordinate
    return made


def render(template: str, **values: object) -> str:
    """Fill a template."""
    return environment().get_template(template).render(values)
