"""OpenItems: the items of a turn that are under way, as far as silence is to be expected of them. Pure.

A tool is silent while it runs. A message and the model's reasoning come piece by piece, so that an open one explains
no silence; and a stream that was cut never completes those that it had begun.
"""

from __future__ import annotations

# The app-server runs these itself, also while the stream from the model is cut and begun again.
_OWN_TOOLS = frozenset(
    {
        "commandExecution",
        "fileChange",
        "mcpToolCall",
        "dynamicToolCall",
        "collabAgentToolCall",
        "imageView",
        "sleep",
    }
)
# Items that hold text of the model or the user, and those that are mere markers.
_NO_TOOLS = frozenset(
    {
        "userMessage",
        "hookPrompt",
        "agentMessage",
        "plan",
        "reasoning",
        "contextCompaction",
        "enteredReviewMode",
        "exitedReviewMode",
    }
)


class OpenItems:
    """The open items that explain a silence: tools. Those that the provider runs, and unknown ones, end with a cut."""

    __slots__ = ("_of_the_stream", "_own")

    def __init__(self) -> None:
        self._own: set[str] = set()
        self._of_the_stream: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._own or self._of_the_stream)

    def started(self, item_id: str, kind: str) -> None:
        """An item of this type has begun."""
        if kind in _OWN_TOOLS:
            self._own.add(item_id)
        elif kind not in _NO_TOOLS:
            self._of_the_stream.add(item_id)

    def completed(self, item_id: str) -> None:
        self._own.discard(item_id)
        self._of_the_stream.discard(item_id)

    def cut(self) -> None:
        """Note that the stream from the model was cut, as an `error` that will be retried reports."""
        self._of_the_stream.clear()

    def clear(self) -> None:
        self._own.clear()
        self._of_the_stream.clear()
