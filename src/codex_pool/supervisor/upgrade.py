"""Upgrade: another codex binary for the workers of a pool that runs, without a failed turn. Pure.

    --begin--> checking --passed--> replacing, one slot at a time --all are replaced--> done
                  `--failed--> failed  `--a step failed--> going back --all are as before--> failed

While it is checked, a canary (`canary_child`) tries the binary out beside the workers, which nothing happens to. Then
each slot is recycled: its successor is ready before its worker gets nothing new, and that one finishes its turns. The
first slot shows how the binary works as a worker. A successor that is not ready in time, or a worker of the new binary
that dies, fails the upgrade: the slots that have the new binary are recycled once more, with the one before.

A binary is a build, by its number: the same path is another build once there is another file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .commands import CommandError, Result
from .core import SupervisorCore
from .effects import Effect
from .slots import Build, Slot

State = Literal["", "checking", "replacing", "going back", "done", "failed"]
UNDER_WAY = ("checking", "replacing", "going back")


@dataclass(slots=True)
class _Step:
    """A slot that is being replaced, or was, with the counts that it had before."""

    failed_starts: int
    restarts: int


class Upgrade:
    """See the module's docstring. `first` is the binary that the pool was started with; `builds` are all so far."""

    def __init__(self, core: SupervisorCore, first: Build) -> None:
        self._core = core
        self.builds = [first]
        # The build of the pool before, and the one that it is to have.
        self._before = self._wanted = 0
        self._steps: dict[int, _Step] = {}
        self._version = ""
        self.state: State = ""
        self._problem = ""

    def kept(self) -> tuple[int, int, str, str, str]:
        """Return the state that is kept beside `builds`, as `restore` takes it."""
        return self._before, self._wanted, self._version, self.state, self._problem

    def restore(self, before: int, wanted: int, version: str, state: State, problem: str) -> None:
        """Go on after an upgrade that was over."""
        self._before, self._wanted, self._version, self.state, self._problem = before, wanted, version, state, problem

    @property
    def build(self) -> Build:
        """The binary that the pool runs; while it is being replaced, the one before."""
        return self.builds[self._core.build]

    def begin(self, build: Build) -> Result:
        """Have a binary tried out, then run; `passed` or `failed` comes next, if the result is a change.

        Raises CommandError.
        """
        if self.state in UNDER_WAY:
            asked = self.builds[-1]
            if self.state != "going back" and build == asked:
                return self._result(f"the upgrade to {build.path} is under way already", changed=False)
            raise CommandError(
                f"an upgrade to {asked.path} is under way ({self.state}); repeat this once it is over, "
                "`codex-pool status` shows it"
            )
        if not self._core.is_ready:
            raise CommandError("the pool is still starting; repeat this once it is ready")
        if build == self.build:
            message = f"the workers run {build.path} already; `codex-pool recycle` replaces them all the same"
            return self._result(message, changed=False)
        self._before, self._wanted = self._core.build, len(self.builds)
        self.builds.append(build)
        self.state, self._problem, self._version, self._steps = "checking", "", "", {}
        message = f"{build.path} is tried out; then the workers are replaced one after the other, and turns go on"
        return self._result(message, changed=True)

    def passed(self, version: str) -> None:
        """The canary has done all that it was to do."""
        if self.state == "checking":
            self.state, self._version = "replacing", version

    def failed(self, problem: str) -> None:
        """The canary has failed: the workers go on as they are."""
        if self.state == "checking":
            self.state, self._problem = "failed", f"{problem}; the workers go on with {self.build.path}"

    def step(self, now: float) -> list[Effect]:
        """Begin to replace the next worker, if the one before is, or go back. Called after each event."""
        if self.state not in ("replacing", "going back"):
            return []
        out: list[Effect] = []
        slots = [slot for slot in self._core.slots if slot.held != "removed"]
        if self.state == "replacing" and (problem := self._problem_in(slots)) is not None:
            out += self._go_back(slots, problem)
        for slot in slots:
            if slot.held:
                # Its next worker has it.
                slot.build = self._wanted
        left = [slot for slot in slots if not slot.held and not self._is_replaced(slot)]
        if not left:
            self._end()
        elif self.state == "replacing":
            left = self._next(left)
        for slot in left:
            worker = slot.worker
            if worker is not None and worker.state == "ready" and worker.build != self._wanted and not slot.renewal:
                out += self._core.renew(worker.name, self._why, now)
        return out

    def _next(self, left: list[Slot]) -> list[Slot]:
        """Return the slot that is being replaced, or the next one, which has the new build from then on."""
        begun = [slot for slot in left if slot.build == self._wanted]
        # A slot with a worker that drains cannot be recycled before that has ended.
        free = [slot for slot in left if slot.worker is not None and slot.retired is None and slot.successor is None]
        if begun or not free:
            return begun
        slot = free[0]
        slot.build = self._wanted
        self._steps[slot.number] = _Step(slot.failed_starts, slot.restarts)
        return [slot]

    @property
    def row(self) -> dict[str, Any]:
        """The upgrade as status shows it; {} if there was none."""
        if not self.state:
            return {}
        slots = [slot for slot in self._core.slots if not slot.held]
        return {
            "state": self.state,
            "codexBin": self.builds[-1].path,
            "before": self.builds[self._before].path,
            # As the canary has read it, "" before.
            "codexVersion": self._version,
            "slots": len(slots),
            # Those whose worker has the binary.
            "replaced": sum(slot.worker is not None and slot.worker.build == len(self.builds) - 1 for slot in slots),
            # Why it has failed, "" if it has not.
            "problem": self._problem,
        }

    # The rest.

    @property
    def _why(self) -> str:
        what = "upgrade to" if self.state == "replacing" else "the upgrade has failed; back to"
        return f"{what} {self.builds[self._wanted].path}"

    def _is_replaced(self, slot: Slot) -> bool:
        worker = slot.worker
        return worker is not None and worker.build == self._wanted == slot.build and worker.state == "ready"

    def _problem_in(self, slots: list[Slot]) -> str | None:
        for slot in slots:
            before = self._steps.get(slot.number)
            if before is None:
                continue
            if slot.failed_starts > before.failed_starts:
                return f"slot {slot.number}: its new worker could not start: {slot.problem}"
            if slot.restarts > before.restarts and slot.last_build == self._wanted:
                return f"slot {slot.number}: its new worker has ended: {slot.last_reason}"
        return None

    def _go_back(self, slots: list[Slot], problem: str) -> list[Effect]:
        failed, self._wanted = self._wanted, self._before
        path = self.builds[self._before].path
        self.state, self._problem = "going back", f"{problem}; the workers go back to {path}"
        out: list[Effect] = []
        for slot in slots:
            slot.build = self._before
            if slot.worker is None or slot.worker.build != failed:
                # It goes on with the worker that it has.
                slot.renewal, slot.failed_starts, slot.problem = "", 0, ""
            for worker in slot.workers:
                if worker.state == "starting" and worker.build == failed:
                    out += self._core.suspect(worker.name, "the upgrade has failed")
        return out

    def _end(self) -> None:
        if self.state == "replacing":
            self.state = "done"
            self._core.build = self._wanted
        else:
            self.state = "failed"
            self._problem = self._problem.replace("the workers go back to", "the workers are back on")

    def _result(self, message: str, *, changed: bool) -> Result:
        return {"changed": changed, "message": message, "upgrade": self.row}
