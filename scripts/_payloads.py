"""Emits `generated/payloads.py`: what a notification's payload may be, for type checkers."""

from __future__ import annotations

from _schema import Protocol

PRELUDE = '''
"""The payloads of all notifications, as one type. Known to type checkers only, so importing this costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    from .models import (
        {names},
    )

    NotificationPayload: TypeAlias = (
        {union}
    )
'''


def emit_payloads(protocol: Protocol) -> str:
    """The text of payloads.py."""
    names = sorted(set(protocol.notifications.values()))
    return PRELUDE.format(names=",\n        ".join(names), union="\n        | ".join(names)).lstrip("\n")
