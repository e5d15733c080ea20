"""HTML that cannot be broken by what stands in it: text becomes markup here only, and is escaped. Pure."""

from __future__ import annotations

import html
import re

# What HTML cannot carry (control characters, lone surrogates) and what reorders the text around it.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069\ufffe\uffff]")
_VOID = frozenset({"br", "hr", "img", "input", "meta"})


class Html(str):
    """Markup, in contrast to text."""

    __slots__ = ()


def text(value: object) -> Html:
    """Any value as text that shows itself; markup stays as it is."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", str(value)), quote=True))


def join(parts: object) -> Html:
    """Markup or text, and lists of them, one after the other; None is nothing."""
    if parts is None:
        return Html("")
    if isinstance(parts, (list, tuple)):
        return Html("".join(join(part) for part in parts))
    return text(parts)


def element(name: str, *children: object, **attributes: object) -> Html:
    """One element. `class_` is class, `aria_label` aria-label; None and False leave an attribute out, True is bare."""
    written = "".join(
        f" {key}" if value is True else f' {key}="{text(value)}"'
        for key, value in ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")
