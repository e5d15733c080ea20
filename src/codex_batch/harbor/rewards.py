"""Rewards: what a verifier left in /logs/verifier, as numbers by key. Pure.

reward.json, an object of numbers, counts before reward.txt, one number, whose key is `reward`. A file that is
missing, empty, no number or not finite gives no reward, which is not a reward of 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from .task import REWARD, VERIFIER_LOGS

TEXT, JSON = "reward.txt", "reward.json"
Rewards = Mapping[str, float]


class NoReward(ValueError):
    """A verifier that left no reward; the message gives the file and the reason, `kind` is Harbor's name for it."""

    def __init__(self, message: str, kind: str = "VerifierOutputParseError") -> None:
        self.kind = kind
        super().__init__(message)


def rewards_of(files: Mapping[str, bytes]) -> dict[str, float]:
    """The rewards of the files of a verifier, by name. Raises NoReward."""
    if JSON in files:
        return _of_json(files[JSON])
    if TEXT in files:
        return {REWARD: _of_text(files[TEXT])}
    raise NoReward(
        f"the verifier left neither {VERIFIER_LOGS}/{TEXT} nor {VERIFIER_LOGS}/{JSON}; expected one of them: "
        "test.sh is to write it whatever the tests come to",
        kind="RewardFileNotFoundError",
    )


def _of_text(data: bytes) -> float:
    where = f"{VERIFIER_LOGS}/{TEXT}"
    if not data:
        raise NoReward(f"{where}: is empty; expected a number", kind="RewardFileEmptyError")
    text = data.decode("utf-8", "backslashreplace").strip()
    try:
        value = float(text)
    except ValueError:
        raise NoReward(f"{where}: is {_shown(text)}; expected a number") from None
    return _finite(value, where)


def _of_json(data: bytes) -> dict[str, float]:
    where = f"{VERIFIER_LOGS}/{JSON}"
    if not data:
        raise NoReward(f"{where}: is empty; expected an object of numbers", kind="RewardFileEmptyError")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NoReward(f"{where}: is no JSON: {error}; expected an object of numbers") from None
    if not isinstance(found, dict) or not found:
        raise NoReward(f"{where}: is {_shown(json.dumps(found))}; expected an object with at least one number")
    rewards = {}
    for key, value in found.items():
        if not key.isprintable():
            raise NoReward(
                f"{where}: the name {_shown(key)} cannot be printed; expected letters, digits, '_', '-' and '.'"
            )
        if not isinstance(value, int | float):
            raise NoReward(f"{where}: {_shown(key)}: is {_shown(json.dumps(value))}; expected a number")
        try:
            rewards[key] = _finite(float(value), f"{where}: {_shown(key)}")
        except OverflowError:
            raise NoReward(f"{where}: {_shown(key)}: is too large; expected a finite number") from None
    return rewards


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise NoReward(f"{where}: is {value}; expected a finite number")
    return value


def _shown(text: str) -> str:
    text = repr(text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def below(rewards: Rewards, least: Rewards) -> str | None:
    """Return which reward is below its least one, in words; None if none is. One that is missing is below any."""
    for key, wanted in least.items():
        value = rewards.get(key)
        if value is None:
            return f"{key}: there is no such reward; min_reward is {wanted:g}"
        if value < wanted:
            return f"{key}: is {value:g}; min_reward is {wanted:g}"
    return None


def of_steps(steps: Sequence[Rewards], *, is_mean: bool) -> dict[str, float]:
    """The rewards of a task, of those of its steps that were run.

    The mean is by key over these steps; one that lacks the key counts as 0 there.
    """
    if not is_mean:
        return dict(steps[-1])
    keys = dict.fromkeys(key for rewards in steps for key in rewards)
    return {key: sum(rewards.get(key, 0.0) for rewards in steps) / len(steps) for key in keys}
