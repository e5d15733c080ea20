"""Checks of a soak: metrics against what clients have counted, and metrics over time. Pure."""

from __future__ import annotations

from typing import Any

from .clients import Load
from .daemon import Metrics

TURNS, TOKENS = "codex_pool_turns_total", "codex_pool_tokens_total"
# Counters that go on whatever is replaced.
LASTING = (TURNS, TOKENS, "codex_pool_turn_duration_seconds_count", "codex_pool_turn_queue_seconds_count")


def decreases(before: Metrics, after: Metrics) -> list[str]:
    """Counters that are less than they were."""
    return [
        f"{' '.join(key)} went from {before[key]:g} to {after.get(key, 0):g}"
        for key in before
        if key[0] in LASTING and after.get(key, 0) < before[key]
    ]


def sums(load: Load, metrics: Metrics, tokens_of_a_turn: dict[str, int]) -> list[str]:
    """What of the metrics does not add up to the clients' counts.

    A turn whose request was not answered before the connection was lost may have been, or not.
    """
    found = []
    known, unsure = load.turns, load.unanswered.total()
    completed = metrics.get((TURNS, "completed"), 0)
    if not known <= completed <= known + unsure:
        found.append(f"turns: clients know of {known}, and of {unsure} perhaps; {TURNS} has {completed:g}")
    found += [
        f"{TURNS} has {value:g} that were {key[1]}"
        for key, value in metrics.items()
        if key[0] == TURNS and key[1] != "completed" and value
    ]
    for name in {*load.completed, *load.unseen}:
        of_name = load.completed[name] + load.unseen[name]
        for kind, each in tokens_of_a_turn.items():
            counted = metrics.get((TOKENS, name, kind), metrics.get((TOKENS, kind, name), 0))
            if not of_name * each <= counted <= (of_name + load.unanswered[name]) * each:
                found.append(f"{kind} tokens of {name}: {of_name} turns of {each}; {TOKENS} has {counted:g}")
    return found


def usage_sums(load: Load, rows: list[dict[str, Any]], tokens_of_a_turn: dict[str, int]) -> list[str]:
    """What of `codex-pool usage` does not add up to the clients' counts."""
    found = []
    by_name = {row["principal"]: row for row in rows}
    for name in {*load.completed, *load.unseen}:
        row = by_name.get(name, {})
        known = load.completed[name] + load.unseen[name]
        turns = row.get("turns", 0)
        if not known <= turns <= known + load.unanswered[name]:
            found.append(f"usage: {known} turns of {name}, and {load.unanswered[name]} perhaps; it has {turns}")
        found += [
            f"usage: {turns} turns of {name} with {each} {kind} tokens each; it has {row.get(f'{kind}Tokens')}"
            for kind, each in tokens_of_a_turn.items()
            if row.get(f"{kind}Tokens") != turns * each
        ]
    return found
