"""The operations of a soak, from a seed: what is done to the daemon, and after how many turns. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Shares of the turns before the first operation, and by the last one: what is measured before and after is quiet.
FROM, TO = 0.15, 0.75
KILLED = ("broker", "ingress", "gateway")


@dataclass(frozen=True)
class Operation:
    """An operation at a number of turns: a verb with its exit code, a signal, or a kill, which may come during a verb.

    `kill`: the process that is killed `kill_after_s` after the verb was begun, "" for none.
    """

    at: int
    verb: tuple[str, ...] = ()
    exit_code: int = 0
    reload: bool = False
    kill: str = ""
    kill_after_s: float = 0.0

    def __str__(self) -> str:
        parts = ["reload by SIGHUP"] if self.reload else []
        parts += [" ".join(self.verb)] if self.verb else []
        parts += [f"kill of the {self.kill}"] if self.kill else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Binaries:
    """Paths of the codex binaries of a soak: the one at the start, another one, and one that cannot start."""

    first: str
    other: str
    broken: str


def plan(
    turns: int, seed: int, binaries: Binaries, *, recycles: int, kills: int, scales: tuple[int, ...]
) -> list[Operation]:
    """Plan the operations: `recycles`, `kills` of each process of KILLED, the numbers of workers in their order, two
    upgrades of codex, one of codex-pool, and two reloads. Every second kill comes during a recycle."""
    chance = random.Random(seed)
    found: list[Operation] = [Operation(0, ("recycle",)) for _ in range(recycles)]
    for number, name in enumerate(name for name in KILLED for _ in range(kills)):
        if number % 2 == 0 and number < len(found):
            found[number] = Operation(0, ("recycle",), kill=name, kill_after_s=round(chance.uniform(0.3, 2.0), 2))
        else:
            found.append(Operation(0, kill=name))
    found += [Operation(0, reload=True)] * 2
    found += [Operation(0, ("upgrade", "--codex-bin", binaries.other))]
    found += [Operation(0, ("upgrade", "--codex-bin", binaries.broken), exit_code=1)]
    found += [Operation(0, ("upgrade", "--self"))]
    chance.shuffle(found)
    for place, workers in zip(sorted(chance.sample(range(len(found)), len(scales))), scales, strict=True):
        found.insert(place, Operation(0, ("scale", str(workers))))
    first, step = turns * FROM, turns * (TO - FROM) / len(found)
    return [_at(each, round(first + number * step)) for number, each in enumerate(found)]


def _at(operation: Operation, turns: int) -> Operation:
    return Operation(
        turns, operation.verb, operation.exit_code, operation.reload, operation.kill, operation.kill_after_s
    )
