"""Table of what switches save, and the same as JSON. Pure: measured rounds in, lines out."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..tables import aligned
from .savings import MIN_ROUNDS, Figures, Saving, medians, rounds_of, savings
from .switches import Switch

_WIDTH = 100
_MIB = 1 << 20
_UNITS = (("cpu_ms", 1, "ms"), ("memory_bytes", _MIB, "MiB"), ("start_ms", 1, "ms"))


def lines_of(base: str, switches: Sequence[Switch], measured: Mapping[str, Sequence[Figures]]) -> list[str]:
    """Format all that was measured; `base` is the name of what the switches are compared with."""
    rounds, middle = rounds_of(measured), medians(measured[base])
    head = ("switch", "CPU of a turn", "memory", "start", "given up")
    rows = [_row(switch, _savings(base, switch, measured), rounds) for switch in switches]
    few = f" Fewer than {MIN_ROUNDS} rounds prove little: try again while the machine has less to do."
    above = (
        f"Saved by each switch, against an app-server as a pool starts it: {middle['cpu_ms']:.0f} ms of CPU "
        f"for a turn on a new thread, {middle['memory_bytes'] / _MIB:.0f} MiB of memory, ready after "
        f"{middle['start_ms']:.0f} ms. Medians of {rounds} round{'' if rounds == 1 else 's'} on the loopback model."
    )
    below = (
        "~0: not told apart from noise; below 0: it costs so much. *: a pool sets it by itself. Nothing was changed. "
        "The others are yours to set, for codex-pool serve, batch or run: options as they stand here, variables (in "
        "capitals) in the environment that the command starts in. The agent's commands inherit the variables of "
        "certificates, unless shell_environment_policy.set gives them others."
    )
    return [
        *textwrap.wrap(above + (few if rounds < MIN_ROUNDS else ""), _WIDTH),
        "",
        *aligned([head, *rows], left={0, 4}),
        "",
        *textwrap.wrap(below, _WIDTH),
        "",
        *_settings([switch for switch in switches if not switch.is_set]),
    ]


def as_plain(base: str, switches: Sequence[Switch], measured: Mapping[str, Sequence[Figures]]) -> dict[str, Any]:
    """Return all that was measured as values of JSON: amounts in ms and bytes, and parts of what it is otherwise."""
    return {
        "rounds": rounds_of(measured),
        "base": medians(measured[base]),
        "switches": [
            {
                "name": switch.name,
                "setting": list(switch.setting),
                "given_up": switch.given_up,
                "set_by_pool": switch.is_set,
                "saved": {
                    kind: {"amount": round(saved.amount, 3), "part": round(saved.part, 4), "clear": saved.is_clear}
                    for kind, saved in _savings(base, switch, measured).items()
                },
            }
            for switch in switches
        ],
    }


def _savings(base: str, switch: Switch, measured: Mapping[str, Sequence[Figures]]) -> dict[str, Saving]:
    """Return what a switch saves; one that the pool sets was measured without it."""
    pair = (measured[base], measured[switch.name])
    return savings(*(reversed(pair) if switch.is_set else pair))


def _row(switch: Switch, saved: Mapping[str, Saving], rounds: int) -> list[str]:
    cells = [_cell(saved[kind], unit, name, rounds) for kind, unit, name in _UNITS]
    return [switch.name + (" *" if switch.is_set else ""), *cells, switch.given_up]


def _cell(saved: Saving, unit: int, name: str, rounds: int) -> str:
    """Format a saving, as in "6 ms (14 %)"; with a question mark where the rounds are too few."""
    if not saved.is_clear and rounds >= MIN_ROUNDS:
        return "~0"
    doubt = "" if saved.is_clear else "?"
    return f"{saved.amount / unit:.0f} {name} ({saved.part * 100:.0f} %){doubt}"


def _settings(switches: Sequence[Switch]) -> list[str]:
    """Format what sets each switch; an option and its value stay on one line."""
    width = max(len(switch.name) for switch in switches) + 2
    lines = []
    for switch in switches:
        text = " ".join(each.replace(" ", "\0") for each in switch.setting)
        wrapped = textwrap.wrap(text, _WIDTH - width, break_long_words=False, break_on_hyphens=False)
        lines += [(switch.name if not number else "").ljust(width) + each for number, each in enumerate(wrapped)]
    return [line.replace("\0", " ") for line in lines]
