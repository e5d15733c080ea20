"""Helpers that tests of scorers share: a sample, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codex_batch.scoring import ScoreContext


@dataclass(frozen=True)
class Asked:
    """A sample as scorers see it."""

    id: str = "a"
    epoch: int = 1
    variant: str = ""
    prompts: tuple[str, ...] = ("What is 6 times 7?",)
    target: Any = None
    metadata: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()
    output_schema: dict[str, Any] | None = field(default=None)


def context(
    response: str | None, target: Any = None, *, artifacts: Path = Path("/nowhere"), **more: Any
) -> ScoreContext:
    sample = Asked(target=target, **{key: more.pop(key) for key in list(more) if key in Asked.__dataclass_fields__})
    return ScoreContext(sample=sample, final_response=response, responses=(response,), artifacts=artifacts, **more)
