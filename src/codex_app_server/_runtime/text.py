"""Texts for people: cut to a length, on one line, counts and durations. Pure."""

from __future__ import annotations


def cut(text: str, characters: int, mark: str = "...") -> str:
    """Return a text of at most so many characters; one that is longer ends in `mark`."""
    return text if len(text) <= characters else text[: characters - len(mark)] + mark


def one_line(text: str, characters: int, mark: str = "...") -> str:
    """Return the beginning of a text on one line, as `cut` does."""
    return cut(" ".join(text.split()), characters, mark)


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return a count with its noun: "1 sample", "1,200 samples"; `many` where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Return a duration in words: "59 s", "3 min 05 s", "2 h 04 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min {whole % 60:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
