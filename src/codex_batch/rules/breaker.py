"""Breaker: pauses a run for what is wrong with everything, not with one sample, instead of failing the rest. Pure.

A sample that met such a trouble goes back into the queue, its attempt kept. The pause is over when the trouble is: one
sample at a time is tried meanwhile, after half a minute first, then less and less often. There is nothing to do but to
remove the cause.
"""

from __future__ import annotations

from dataclasses import dataclass

from codex_app_server._runtime.backoff import backoff_s
from codex_app_server._runtime.text import duration, plural

from .retry import DISK_FULL, SANDBOX_ERROR, TOOLS_UNAVAILABLE, Outcome, waited_in_vain

FIRST_TRY_S = 30.0
LONGEST_TRY_S = 600.0
# A sample goes back so often; then the sample itself is the cause.
PUT_BACK_LIMIT = 3
_GOES_ON = "the run tries again by itself in {wait}; Ctrl-C ends it, and the same command goes on later"
_GOES_ON_THEN = "the run goes on by itself then; Ctrl-C ends it, and the same command goes on later"


@dataclass(frozen=True, slots=True)
class Trouble:
    """One kind of trouble. It pauses the run after so many attempts in a row that met it, with none completed."""

    name: str
    after: int
    message: str
    remedy: str
    goes_on: str = _GOES_ON


UNAUTHORIZED = Trouble(
    "unauthorized", 1, "the model's service refuses the login", "log in again (codex-pool login), or mend the key"
)
SERVICE = Trouble(
    "service", 5, "the model's service does not answer as it should", "look at base_url and model in the configuration"
)
NETWORK = Trouble("network", 1, "there is no way to the model's service", "look at the network, and at base_url")
SANDBOX = Trouble(
    "sandbox",
    5,
    "codex's sandbox does not work here",
    "install what it needs (bubblewrap, on Linux), or choose another sandbox for the samples",
)
TOOLS = Trouble(
    "tools",
    5,
    "tools of the agents cannot be started here",
    "look at the shell, at the limits of processes, open files and memory, and at the MCP servers",
)
USAGE = Trouble("usage", 1, "the account's usage limit is used up", "wait for its reset, or buy more")
DISK = Trouble("disk", 1, "the disk is full", "make room on the disk of {directory}", _GOES_ON_THEN)
DATABASE = Trouble(
    "database",
    1,
    "another program has locked the run's database",
    "close what has it open, such as a database browser or a backup",
    _GOES_ON_THEN,
)

# codex, git and all else that is run for a sample report it in words only.
_WORDS_OF_FULL = ("No space left on device", "Disk quota exceeded")

_REFUSED = ("401", "403")
_BY_KIND = {
    "unauthorized": UNAUTHORIZED,
    "httpConnectionFailed": SERVICE,
    "responseStreamConnectionFailed": SERVICE,
    SANDBOX_ERROR: SANDBOX,
    TOOLS_UNAVAILABLE: TOOLS,
    "usageLimitExceeded": USAGE,
}


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of the run. `message` is for people and names the remedy; `try_at` is when a sample is tried next."""

    trouble: Trouble
    message: str
    try_at: float


class Breaker:
    """Observes how every attempt ended; decides whether samples may start. Times are monotonic seconds.

    `directory` is where room is to be made when an error reports a full disk without naming it. With `max_failures`
    the run ends when so many samples have failed for good: `failed_too_often` is then the reason.
    """

    def __init__(self, *, max_failures: int | None = None, directory: str = "the run directory") -> None:
        self.pause: Pause | None = None
        self.failures = 0
        self._max_failures = max_failures
        self._directory = directory
        self._in_a_row: dict[str, int] = {}
        self._tried_again = 0
        self._trying = False

    def ended(self, outcome: Outcome, put_back: int, now: float) -> bool:
        """Note that an attempt ended; return True if its sample goes back into the queue, as it did `put_back` times.

        Look at `pause` afterwards. An outcome that another attempt follows (`--retries`) does not come here.
        """
        kind = "" if outcome.error is None else outcome.error["kind"]
        # A sample that fills the disk each time, and leaves room at its end, would never be recorded.
        goes_back = put_back < PUT_BACK_LIMIT
        if kind == DISK_FULL:
            # Whether there is room is found out by looking; there may be again.
            self._trying = False
            return goes_back
        trouble = _BY_KIND.get(kind) if outcome.status == "failed" else None
        if trouble is SERVICE and outcome.error is not None and outcome.error.get("http_status") in _REFUSED:
            # codex calls every answer that it did not expect by one name.
            trouble = UNAUTHORIZED
        if waited_in_vain(outcome):
            trouble = NETWORK
        message = "" if outcome.error is None else outcome.error["message"]
        # A sandbox may report that it has no space left when it means namespaces.
        if outcome.status == "failed" and kind != SANDBOX_ERROR and any(words in message for words in _WORDS_OF_FULL):
            trouble = DISK
        if trouble is None:
            # An interrupted attempt shows nothing about the service; any other that ended reached the model.
            if outcome.status in ("completed", "limit") or (self._trying and outcome.status == "failed"):
                self._mended()
            self._trying = False
            return False
        self._met(trouble, message, now)
        return goes_back or (self.pause is not None and trouble is not DISK)

    def waiting(self, message: str, now: float) -> None:
        """Note that a turn waits for the network: codex does so as long as it takes, and the turn goes on then."""
        if self.pause is None:
            self._met(NETWORK, message, now)

    def going_on(self) -> None:
        """Note that a turn that waited for the network goes on."""
        if self.pause is not None and self.pause.trouble is NETWORK:
            self._mended()
            self._trying = False

    def disk_full(self, message: str, now: float, directory: str) -> None:
        """Pause: there is no room on the disk of this directory."""
        if self.pause is None:
            self._met(DISK, message, now, directory)

    def disk_mended(self) -> None:
        """Go on: there is room on the disk again."""
        if self.pause is not None and self.pause.trouble is DISK:
            self._mended()
            self._trying = False

    def database_locked(self, path: str, now: float) -> None:
        """Pause: another program has the database locked."""
        if self.pause is None:
            self._met(DATABASE, path, now)

    def database_free(self) -> None:
        """Go on: the database is free again."""
        if self.pause is not None and self.pause.trouble is DATABASE:
            self._mended()
            self._trying = False

    def recorded(self, outcome: Outcome) -> None:
        """Note that a sample has its record."""
        self.failures += outcome.status in ("failed", "lost", "stalled")

    @property
    def failed_too_often(self) -> str | None:
        """The reason why the run is to end, None if it is not."""
        if self._max_failures is None or self.failures < self._max_failures:
            return None
        have_failed = plural(self.failures, "sample has", "samples have")
        return f"{have_failed} failed, as many as --max-failures allows; nothing more is started"

    def may_start(self, now: float) -> bool:
        """Return True if one more sample may start; call `started` when it does."""
        if self.pause is None:
            return True
        return not self._trying and now >= self.pause.try_at

    def started(self) -> None:
        """Note that a sample has started; during a pause it is the one that is tried."""
        self._trying = self.pause is not None

    def wait_s(self, now: float) -> float | None:
        """Seconds until a sample may be tried; None without a pause, and while one is tried."""
        if self.pause is None or self._trying:
            return None
        return max(0.0, self.pause.try_at - now)

    def given_up(self) -> None:
        """Note that a try had no result: it was interrupted, or never got so far."""
        self._trying = False

    def _met(self, trouble: Trouble, cause: str, now: float, directory: str | None = None) -> None:
        count = self._in_a_row[trouble.name] = self._in_a_row.get(trouble.name, 0) + 1
        if self.pause is not None:
            # What still ran when the pause began is no new try.
            if not self._trying:
                return
            self._tried_again += 1
        elif count < trouble.after:
            return
        self._trying = False
        detail = " ".join(cause.split())[:200]
        what = f"{trouble.message}{f' ({detail})' if detail else ''}"
        remedy = trouble.remedy.format(directory=directory or self._directory)
        wait_s = backoff_s(self._tried_again, FIRST_TRY_S, LONGEST_TRY_S)
        goes_on = trouble.goes_on.format(wait=duration(wait_s))
        message = f"paused: {what}; {remedy}; {goes_on}"
        self.pause = Pause(trouble, message, now + wait_s)

    def _mended(self) -> None:
        self.pause = None
        self._in_a_row.clear()
        self._tried_again = 0
