"""TurnTable: the turns that run, and those that have ended. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..auth.policy import NEW_THREAD
from ..protocol import wire
from .entities import Thread, Turn, Worker, bound
from .quotas import NEXT_TURN_S, waiting_turns_of_key

if TYPE_CHECKING:
    from .state import BrokerState

MAX_ENDED_PER_WORKER = 4096
MAX_OWNERS = 10_000


class TurnTable(dict[str, Turn]):
    """Turns that run, by their ids, and how many have ended in which way."""

    def __init__(self, state: BrokerState) -> None:
        super().__init__()
        self._state = state
        self.ended: Counter[str] = Counter(dict.fromkeys(wire.TURN_ENDS, 0))
        # Tokens that turns have used since this broker began, by the principal of their thread.
        self.tokens_of: dict[str, wire.Tokens] = {}
        # Turns that have ended, and the worker that may still report it.
        self._ended_on: dict[str, str] = {}

    def begin(
        self,
        turn_id: str,
        thread_id: str,
        sessions: list[wire.SessionId],
        worker: Worker,
        waits_since: float | None = None,
        waits_for: str = "",
        began_at: float = 0.0,
    ) -> Thread | None:
        """Note that this worker runs a turn, which these sessions follow; the thread, if it is known."""
        state = self._state
        worker.turns.add(turn_id)
        before = self.get(turn_id)
        began_at = began_at or state.now
        turn = self[turn_id] = Turn(thread_id, worker.name, list(sessions), began_at, began_at)
        if before is not None:
            turn.began_at, turn.heard_at = before.began_at, before.heard_at
            turn.tokens, turn.waits_for = before.tokens, before.waits_for
        thread = state.threads.get(thread_id)
        if thread is not None:
            thread.turns.add(turn_id)
        state.threads.note_activity(thread_id)
        state.events.record(state.now, "turn started", turn_id, thread=thread_id, worker=worker.name)
        if waits_since is not None:
            self.note_waiting(worker, turn_id, waits_since, waits_for)
        return thread

    def note_activity(self, activity: wire.Activity) -> None:
        """Take over what a worker reports of the activity of turns."""
        for each in activity.turns:
            turn = self.get(each.turn_id)
            if turn is not None:
                turn.heard_at = each.heard_at
                self.note_tokens(turn, each.tokens)

    def note_tokens(self, turn: Turn, tokens: wire.Tokens | None) -> None:
        """Note the tokens of a turn so far, and count what is new for the owner of its thread."""
        if tokens is None or tokens == turn.tokens:
            return
        owner = self._state.threads.owner_of(turn.thread_id)
        new = tokens - turn.tokens if turn.tokens is not None else tokens
        self.tokens_of[owner] = self.tokens_of.pop(owner, wire.Tokens()) + new
        bound(self.tokens_of, MAX_OWNERS)
        turn.tokens = tokens

    def note_waiting(self, worker: Worker, turn_id: str, since: float | None, method: str = "") -> None:
        """Note that a turn of this worker waits for a person, or, with None, that it goes on."""
        if turn_id in self:
            self[turn_id].waits_for = method
        if since is None:
            worker.waiting.pop(turn_id, None)
        elif turn_id in worker.turns:
            worker.waiting[turn_id] = since
        self._share_permits(worker)

    def share_permits(self) -> None:
        """Find again, for each worker, which of the turns that wait for a person hold no permit: the bounds differ."""
        for worker in self._state.workers.values():
            self._share_permits(worker)

    def leave(self, worker: Worker, turn_id: str) -> None:
        """Note that this worker does not run the turn any more."""
        worker.turns.discard(turn_id)
        self._state.busy.eased(worker)
        if worker.waiting.pop(turn_id, None) is not None:
            self._share_permits(worker)

    def _share_permits(self, worker: Worker) -> None:
        """Find which of the turns that wait for a person hold no permit: those that have waited longest, within the
        bounds of a worker and of a principal with a key. The turn on the side holds none anyway."""
        limit, of_key = self._state.waiting_turns_per_worker, Counter[str]()
        worker.without_permit.clear()
        for turn_id in worker.waiting:
            thread_id = self[turn_id].thread_id if turn_id in self else ""
            owner = self._state.threads.owner_of(thread_id)
            if len(worker.without_permit) >= limit:
                break
            if thread_id == worker.side_thread != "" or (owner and of_key[owner] >= waiting_turns_of_key(limit)):
                continue
            of_key[owner] += 1
            worker.without_permit.add(turn_id)
        self._state.busy.eased(worker)

    @property
    def waiting(self) -> int:
        """The number of turns that wait for a person."""
        return sum(len(worker.waiting) for worker in self._state.workers.values())

    def note_end(self, turn_id: str, worker: str) -> None:
        """Remember that this turn has ended."""
        self._ended_on[turn_id] = worker
        self._state.events.record(self._state.now, "turn ended", turn_id, worker=worker)
        bound(self._ended_on, MAX_ENDED_PER_WORKER * max(self._state.slots, len(self._state.workers)))

    @property
    def recently_ended(self) -> dict[str, str]:
        """Turns that have ended, and the worker that ran each; of the last ones only."""
        return self._ended_on

    def is_known(self, turn_id: str) -> bool:
        """True if a worker runs this turn, or may still report how it ended."""
        return turn_id in self or self._ended_on.get(turn_id) in self._state.workers

    @property
    def load(self) -> int:
        """The number of turns that all workers run or are about to run and that hold a permit."""
        return sum(worker.load for worker in self._state.workers.values())

    def of_sub_agents(self) -> list[Turn]:
        """The turns of sub-agents that run."""
        return [turn for turn in self.values() if turn.thread_id in self._state.threads.parents]

    # By principal.

    def count_of(self, principal: str) -> int:
        """Count the turns of this principal that run, are about to, or wait."""
        state = self._state
        workers = state.workers.values()
        starting = [worker.requests[number] for worker in workers for number in worker.starting]
        held = [request for request in state.requests.held_of(principal) if request.starts_turn]
        count = sum(request.principal == principal for request in starting) + len(held)
        owner_of = state.threads.owner_of
        running = Counter(turn.thread_id for turn in self.values() if owner_of(turn.thread_id) == principal)
        # A goal that has been set begins turns without a request.
        begin = [
            thread_id
            for thread_id, thread in state.threads.items()
            if thread.begins_at > state.now - NEXT_TURN_S
            and thread.record.owner == principal
            and thread_id not in running
        ]
        return count + running.total() + len(begin)

    def running_of(self, principal: str) -> int:
        """Count the turns of this principal that run or are about to, those of sub-agents among them."""
        state = self._state
        workers = state.workers.values()
        starting = sum(
            worker.requests[number].principal == principal for worker in workers for number in worker.starting
        )
        return starting + sum(state.threads.owner_of(turn.thread_id) == principal for turn in self.values())

    def threads_to_be(self, principal: str) -> int:
        """Count the requests of this principal that are to create a thread."""
        requests = self._state.requests
        to_be = [*requests.by_number.values(), *requests.held_of(principal)]
        return sum(request.principal == principal and request.method in NEW_THREAD for request in to_be)

    def of_keys(self, worker: Worker) -> int:
        """Count the turns of principals with keys that this worker runs, or is about to, and that hold a permit."""
        owner_of, turns = self._state.threads.owner_of, worker.turns - worker.without_permit
        running = sum(bool(owner_of(self[turn].thread_id)) for turn in turns if turn in self)
        return running + sum(bool(worker.requests[number].principal) for number in worker.starting)

    # Faults.

    def faults(self) -> list[str]:
        """Turns and workers that disagree; looks at every turn."""
        workers = self._state.workers
        found = [
            f"turn {turn_id[:64]} is with worker {turn.worker}, which does not run it"
            for turn_id, turn in self.items()
            if turn.worker not in workers or turn_id not in workers[turn.worker].turns
        ]
        for name, worker in workers.items():
            found += [f"worker {name} runs turn {each[:64]}, which is not known" for each in worker.turns - self.keys()]
            if not worker.without_permit <= worker.waiting.keys() <= worker.turns:
                found.append(f"worker {name} has turns that wait and do not run, or do not wait and hold no permit")
        return found
