"""Steering: what the pool's operator has the supervisor do. Pure: commands in, results and effects out.

    command    params                         does
    pause      {}                             new turns wait
    resume     {worker?}                      ends `pause` and `drain`; with a worker only the drain of that one's slot
    drain      {worker?, approval_grace?}     new turns are refused; of a worker: it ends once its turns are over, and
                                              its slot stays empty
    scale      {workers}                      starts slots, or drains and removes the last ones
    recycle    {worker?}                      replaces a worker, or all of them one after the other
    stop       {now}                          the daemon ends, once its turns are over unless `now`

`mode` goes to each broker. A worker is named by its slot (`2`, `w2`) or the beginning of its name. No command ends a
turn, but for `stop`, and for turns that wait for a person beyond `approval_grace`, in seconds.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from codex_app_server._runtime.text import plural

from ..broker.mode import Grace, Mode
from .commands import CommandError, Result
from .core import SupervisorCore
from .effects import Effect, StopAsked
from .slots import Slot

_RECYCLED = "asked for by the operator"


class Steering:
    """See the module's docstring. `can_stop`: the pool is that of a daemon, not of a program that ends it itself."""

    def __init__(self, core: SupervisorCore, *, can_stop: bool, drain_timeout_s: float | None) -> None:
        self._core = core
        self._can_stop = can_stop
        self._drain_timeout_s = drain_timeout_s
        self._stops_now = False
        self.mode = Mode()

    def command(self, name: str, params: dict[str, Any], now: float) -> tuple[Result, list[Effect]]:
        """Carry out a command. Raises CommandError."""
        if name != "stop":
            if not self._core.is_ready:
                raise CommandError("the pool is still starting; repeat this once it is ready")
            if self.mode.stopping:
                raise CommandError("the pool is stopping")
        worker = params.get("worker")
        match name:
            case "pause":
                return self._pause(), []
            case "resume":
                return self._resume(worker, now)
            case "drain":
                return self._drain(worker, params.get("approval_grace"), now)
            case "scale":
                return self._scale(params["workers"], now)
            case "recycle":
                return self._recycle(worker, now)
            case "stop":
                return self._stop(at_once=bool(params.get("now")))
        raise CommandError(f"there is no command {name}")

    def drain_to_stop(self) -> None:
        """Take no new turns: the daemon ends once those that run are over."""
        self._set(draining=True, stopping=True)

    def forget(self) -> bool:
        """Drop the graces of workers that have ended; True if there were any."""
        names = {worker.name for slot in self._core.slots for worker in slot.workers}
        graces = {name: grace for name, grace in self.mode.graces.items() if not name or name in names}
        changed = graces != self.mode.graces
        self._set(graces=graces)
        return changed

    # Commands.

    def _pause(self) -> Result:
        if self.mode.paused:
            return _result(False, "already paused")
        self._set(paused=True)
        return _result(True, "paused: new turns wait, those that run go on")

    def _resume(self, given: str | None, now: float) -> tuple[Result, list[Effect]]:
        drained = [slot for slot in self._core.slots if slot.held == "drained"]
        if given is not None:
            slot = self._find(given)
            if slot not in drained:
                return _result(False, f"slot {slot.number} is not drained"), []
            return self._refill([slot], [f"slot {slot.number} gets a worker again"], now)
        done = []
        if self.mode.paused:
            done.append("no longer paused")
        if self.mode.draining:
            done.append("no longer draining")
        done += [f"slot {slot.number} gets a worker again" for slot in drained]
        graces = {name: grace for name, grace in self.mode.graces.items() if name}
        self._set(paused=False, draining=False, graces=graces)
        return self._refill(drained, done, now)

    def _refill(self, slots: list[Slot], done: list[str], now: float) -> tuple[Result, list[Effect]]:
        effects = [effect for slot in slots for effect in self._core.refill(slot, now)]
        self.forget()
        return _result(bool(done), "; ".join(done) or "neither paused nor draining"), effects

    def _drain(self, given: str | None, grace_s: float | None, now: float) -> tuple[Result, list[Effect]]:
        if grace_s is not None and not (math.isfinite(grace_s) and grace_s >= 0):
            raise CommandError(f"the approval grace is {grace_s}; expected a number of seconds, 0 or more")
        if given is None:
            changed = not self.mode.draining
            message = "draining: new threads and turns are refused, turns that run go on" if changed else (
                "already draining"
            )  # fmt: skip
            self._set(draining=True)
            changed |= self._add_grace("", grace_s, now)
            return {**_result(changed, message), "waitsFor": "all"}, []
        slot = self._find(given)
        others = [each for each in self._core.slots if each is not slot and not each.held]
        if not others and not slot.held:
            raise CommandError(
                f"slot {slot.number} is the only one that takes work; drain the whole pool (without a worker), "
                "or recycle it"
            )
        names = [worker.name for worker in slot.workers]
        effects = self._core.hold(slot, "drained", "drained by the operator", now) if not slot.held else []
        changed = bool(effects)
        state = "drained" if not names else f"draining {' and '.join(names)}"
        for name in names:
            changed |= self._add_grace(name, grace_s, now)
        message = f"slot {slot.number}: {state}" if effects else f"slot {slot.number}: already {state}"
        return {**_result(changed, message), "slot": slot.number, "workers": names}, effects

    def _add_grace(self, name: str, grace_s: float | None, now: float) -> bool:
        if grace_s is None or (name in self.mode.graces and self.mode.graces[name].seconds == grace_s):
            return False
        self._set(graces={**self.mode.graces, name: Grace(now + grace_s, grace_s)})
        return True

    def _scale(self, workers: int, now: float) -> tuple[Result, list[Effect]]:
        if workers < 1:
            raise CommandError(f"{workers} workers; expected 1 or more (`codex-pool drain` ends what runs)")
        before = self._core.wanted
        kept = [slot for slot in self._core.slots if slot.number < workers]
        if workers <= len(kept) and all(slot.held == "drained" for slot in kept):
            raise CommandError("the slots that would be left are drained; resume one of them first")
        if workers == before:
            return {**_result(False, f"there are {plural(workers, 'worker')} already"), "before": before}, []
        effects = self._core.scale(workers, now)
        ending = [worker.name for slot in self._core.slots if slot.held == "removed" for worker in slot.workers]
        message = f"from {plural(before, 'worker')} to {workers}" + (
            f"; {', '.join(ending)} end once their turns are over" if ending else ""
        )
        return {**_result(True, message), "before": before, "workers": ending}, effects

    def _recycle(self, given: str | None, now: float) -> tuple[Result, list[Effect]]:
        slots = self._core.slots if given is None else [self._find(given)]
        effects: list[Effect] = []
        names = []
        for slot in slots:
            worker = slot.worker
            replaced = slot.retired is not None and slot.recycling == _RECYCLED
            if slot.held or worker is None or worker.state != "ready" or replaced or slot.renewal or slot.successor:
                continue
            names.append(worker.name)
            effects += self._core.renew(worker.name, _RECYCLED, now)
        if not names:
            what = "every worker is" if given is None else f"slot {slots[0].number} is drained, or its worker"
            return _result(False, f"{what} being started or replaced already"), []
        message = f"{', '.join(names)}: replaced" + (", one after the other" if len(names) > 1 else "")
        return {**_result(True, f"{message}; turns that run go on"), "workers": names}, effects

    def _stop(self, *, at_once: bool) -> tuple[Result, list[Effect]]:
        if not self._can_stop:
            raise CommandError("this pool belongs to a program, which ends it; only a daemon can be stopped")
        if self._stops_now or (self.mode.stopping and not at_once):
            return {**_result(False, "already stopping"), "waitsFor": "all"}, []
        self._stops_now = at_once
        self._set(draining=True, stopping=True)
        limit = "" if self._drain_timeout_s is None else f", for up to {self._drain_timeout_s:g} s"
        message = "stopping now; turns that run end" if at_once else f"stopping; turns that run are waited for{limit}"
        return {**_result(True, message), "waitsFor": "all"}, [StopAsked(at_once)]

    # The rest.

    def _set(self, **changes: Any) -> None:
        self.mode = msgspec.structs.replace(self.mode, **changes)

    def _find(self, given: str) -> Slot:
        """Return the slot that is meant. Raises CommandError."""
        slots = self._core.slots
        number = given.removeprefix("w")
        found = [slot for slot in slots if number == str(slot.number)]
        if not found and given:
            found = [slot for slot in slots if any(worker.name.startswith(given) for worker in slot.workers)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(worker.name for slot in slots for worker in slot.workers)
        problem = f"{len(found)} workers begin with {given!r}" if found else f"there is no worker {given!r}"
        raise CommandError(f"{problem}; name one by its slot or its name: {names or 'there are none'}")


def _result(changed: bool, message: str) -> Result:
    return {"changed": changed, "message": message}
