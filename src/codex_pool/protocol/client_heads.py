"""Heads of the messages between a client and the broker; `wire` encodes and decodes them. Pure."""

from __future__ import annotations

from .wire_types import Interest, Position, Priority, Run, TaggedHead, WhenGone

# client -> broker


class Hello(TaggedHead, frozen=True):
    """The first message of a connection, which names the client. Answered by Welcome or Refused.

    Body: nothing for a new session; for one that reconnects, `encode_positions` of the turns that it follows.
    `when_gone` is what happens to its turns if it stays away; `priority` is that of its turns in the queue.
    """

    session: str
    client: str
    priority: Priority = "interactive"
    when_gone: WhenGone = "interrupt"
    # This client assembles long answers that are sent as AnswerParts.
    accepts_parts: bool = False
    # It gets every turn of the threads that it is subscribed to, whoever starts it. With `when_gone` "keep" its turns
    # are kept after Bye as well.
    all_turns: bool = False
    # This client understands pool/queued and pool/dequeued; one that does not gets a `warning` when a turn has to wait.
    knows_queue: bool = True
    # This client takes packs.
    accepts_packs: bool = False
    # Of a client of the gateway: the kind of listener that it came in by, "unix" or "ws".
    listener: str = ""


class Call(TaggedHead, frozen=True):
    """Body: one line - a request, a notification, or the answer to a request of the app-server.

    `interest` selects the notifications of a turn that this starts. `again` marks a request that was sent
    before, on a connection that is gone, and has not been answered.
    """

    interest: Interest = "full"
    again: bool = False
    # How long the client waits for the answer, from when the request leaves the queue; 0 is without limit.
    timeout_s: int = 60


class Ack(TaggedHead, frozen=True):
    """Acknowledges the notifications that have been received of turns of this worker."""

    worker: str
    positions: list[Position]


class Beat(TaggedHead, frozen=True):
    """Sign of life. Sent in both directions at least every BEAT_S; any other message counts as one too."""


class Bye(TaggedHead, frozen=True):
    """The session is over: its running turns are interrupted, unless it gets all turns and keeps its own."""


# broker -> client


class Welcome(TaggedHead, frozen=True):
    """Body: the result of `initialize`, as JSON. `workers` is how many app-servers are ready.

    `resumed`: the session was known, here or to a worker, and its turns go on where they were.
    """

    workers: int
    resumed: bool = False


class Refused(TaggedHead, frozen=True):
    """The session was refused. `message` gives the reason and the remedy."""

    message: str


class Lines(TaggedHead, frozen=True):
    """Body: lines that are routed by their content: answers, requests, notifications outside of turns."""


class AnswerPart(TaggedHead, frozen=True, tag="piece"):
    """Body: a part of one line, which is the answer to a request of this id (in JSON); `number` counts from 0.

    A long answer is sent in parts, so that other messages pass between them. The parts of one answer come in order; a
    number that does not follow belongs to an answer that is sent again, from 0.
    """

    request_id: str
    number: int
    last: bool = False


class Events(TaggedHead, frozen=True):
    """Bodies: one per run of notifications of one turn; see `wire`."""

    thread_id: str
    turn_id: str
    after: int
    last: int
    runs: list[Run]
    ended: bool = False
    # The worker that runs the turn, for `Ack`.
    worker: str = ""
    # The session gets the turn from behind this number on.
    start: int = 0


class Pack(TaggedHead, frozen=True):
    """Several messages of notifications; see `packs`. Body: one, all their bodies joined.

    `heads` are theirs, `sizes` those of the bodies of each in bytes. Sent to sessions that accept packs.
    """

    heads: list[bytes]
    sizes: list[list[int]]


class Ended(TaggedHead, frozen=True):
    """Bodies: one, the last lines of a turn whose worker cannot number them any more, because it died."""

    thread_id: str
    turn_id: str


class Closed(TaggedHead, frozen=True):
    """The pool ends the session. `message` gives the reason.

    With `again` it ends only this connection: the client sends Hello on a new one.
    """

    message: str
    again: bool = False
