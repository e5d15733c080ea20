"""OnBusy: the effect of a start on a thread that runs a turn already."""

from __future__ import annotations

from typing import Literal, get_args

from ..errors import InvalidInputError

OnBusy = Literal["error", "queue", "steer"]


def check_on_busy(on_busy: str) -> None:
    """Raises InvalidInputError for what is no OnBusy."""
    if on_busy not in get_args(OnBusy):
        raise InvalidInputError(f"on_busy is {on_busy!r}; expected 'error', 'queue' or 'steer'")
