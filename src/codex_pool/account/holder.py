"""Decisions about one login: who gets which tokens, and when the issuer is asked. Pure.

For a refresh request with token P, while the file holds the login L:

    P is the refresh token of L                     ask the issuer with P, write the answer to the file
    P is one that the file held before L, same account
        L is fresh                                  answer with the tokens of L
        else                                        ask the issuer with the refresh token of L, write the answer
    anything else, or no login in the file          ask the issuer with P: it is of another login; write nothing

An app-server writes the tokens of its answer to the file as well, and may do so late: tokens that are known to have
been exchanged are never taken from the file, see `newest`.

An app-server in which several turns got 401 asks for each of them, with the token that it has just got for the one
before. So a token that was issued on demand less than JUST_ISSUED_S ago is given again.

A request that was waiting while the issuer was asked with the same token gets the same answer. New tokens, and a
refusal that will not change - the token was used, has expired, is revoked - are remembered for ANSWER_KEPT_S: so
app-servers that keep their login elsewhere than in the file do not use a token twice either.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from codex_app_server._runtime.backoff import backoff_s
from codex_app_server._runtime.bounded import BoundedDict

from .auth_content import Login, digest

# Ahead of the time at which app-servers refresh: this share of the time until then, within these bounds.
AHEAD_SHARE = 0.1
AHEAD_MIN_S = 1.0
AHEAD_MAX_S = 3600.0
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
ANSWER_KEPT_S = 60.0
JUST_ISSUED_S = 1.0
# Tokens of other logins whose last answer is kept for those who wait.
FLIGHTS_KEPT = 64
# Digests of refresh tokens that the file has held.
LINEAGE_KEPT = 64
# From codex-rs/login/src/auth/manager.rs: what it takes for final.
PERMANENT_CODES = ("refresh_token_expired", "refresh_token_reused", "refresh_token_invalidated")


@dataclass(frozen=True, slots=True)
class Answer:
    """The HTTP answer to a refresh request."""

    status: int
    body: bytes

    @property
    def permanent(self) -> bool:
        """True if codex takes it for a refusal that will not change."""
        if self.status == 200:
            return False
        try:
            error = json.loads(self.body)
            error = error.get("error", error)
            code = error.get("code") if isinstance(error, dict) else error
        except (ValueError, AttributeError, RecursionError):
            code = None
        return self.status == 401 or str(code).lower() in PERMANENT_CODES


@dataclass(frozen=True, slots=True, repr=False)
class Ask:
    """Ask the issuer with this refresh token; `write`: its answer belongs into the file."""

    refresh_token: str
    write: bool


@dataclass(frozen=True, slots=True)
class Lineage:
    """The account of a file, and the digests of the refresh tokens that it has held, oldest first."""

    account: str = ""
    seen: tuple[str, ...] = ()

    def with_login(self, login: Login) -> Lineage:
        """The same, with the refresh token of this login; of another account nothing is kept."""
        token = digest(login.refresh_token)
        if login.account != self.account:
            return Lineage(login.account, (token,))
        if token in self.seen:
            return self
        return Lineage(self.account, (*self.seen, token)[-LINEAGE_KEPT:])

    def has_held(self, login: Login, refresh_token: str) -> bool:
        """True if the file held this token when it was of the same account as now."""
        return login.account == self.account and digest(refresh_token) in self.seen


class Holder:
    """See the module's docstring. Times of requests are monotonic (`at`), those of tokens are of the clock (`now`).

    The clock may be stepped. So tokens count as used up too once their holder has seen them for as long as they last;
    and those that seem to have expired as soon as they came are not exchanged at once.
    """

    def __init__(self) -> None:
        # Digest of the token asked with -> when the issuer answered, its answer, and the login with its tokens.
        self._flights: BoundedDict[str, tuple[float, Answer, Login | None]] = BoundedDict(FLIGHTS_KEPT)
        # The refresh token that was issued last because an app-server had asked, and when.
        self._on_demand = ("", 0.0)
        self._failures = 0
        # The refresh token in the file, since when this holder has seen it, and when it may be exchanged ahead of time.
        self._watched = ""
        self._watched_since = 0.0
        self._not_before = 0.0

    def newest(self, login: Login) -> Login:
        """The login that this one has become by exchanges of this holder; the same object if there was none."""
        for _ in range(FLIGHTS_KEPT):
            renewed = self._flights[key][2] if (key := digest(login.refresh_token)) in self._flights else None
            if renewed is None or renewed.account != login.account or renewed.refresh_token == login.refresh_token:
                break
            login = renewed
        return login

    def decide(
        self, posted: str, login: Login | None, lineage: Lineage, *, arrived_at: float, at: float, now: float
    ) -> Answer | Ask:
        """Decide about a refresh request that came at `arrived_at`; no other refresh is under way."""
        if login is None or not (posted == login.refresh_token or lineage.has_held(login, posted)):
            ask = Ask(posted, write=False)
        elif self.is_fresh(login, at, now) and (posted != login.refresh_token or self._just_issued(login, at)):
            return Answer(200, json.dumps(login.tokens).encode())
        else:
            ask = Ask(login.refresh_token, write=True)
        known = self._flights.get(digest(ask.refresh_token))
        if known is not None:
            answered_at, answer, _ = known
            lasting = answer.status == 200 or answer.permanent
            if answered_at >= arrived_at or (lasting and at < answered_at + ANSWER_KEPT_S):
                return answer
        return ask

    def is_fresh(self, login: Login, at: float, now: float) -> bool:
        """True if an app-server that gets these tokens has no reason to refresh them soon."""
        seen_s = at - self._watched_since if login.refresh_token == self._watched else 0.0
        return login.fresh(now) and login.fresh(login.issued_at + seen_s)

    def _just_issued(self, login: Login, at: float) -> bool:
        token, issued_at = self._on_demand
        return token == login.refresh_token and at < issued_at + JUST_ISSUED_S

    def answered(self, ask: Ask, answer: Answer, renewed: Login | None, *, at: float, on_demand: bool = True) -> None:
        """The issuer, or the attempt to reach it, has given this answer. `renewed`: the login with its tokens;
        `on_demand`: an app-server has asked for them."""
        if renewed is not None and on_demand:
            self._on_demand = (renewed.refresh_token, at)
        self._flights[digest(ask.refresh_token)] = (at, answer, renewed)
        if not ask.write:
            return
        if answer.status == 200:
            self._failures = 0
        else:
            self._not_before = at + backoff_s(self._failures, RETRY_FIRST_S, RETRY_MAX_S)
            self._failures += 1

    def due_in_s(self, login: Login, *, at: float, now: float, jitter: float) -> float | None:
        """Time in seconds until the tokens are to be refreshed ahead of time; None if not at all, as after a refusal.

        `jitter` in [0, 1), the same for the life of a holder: of several one comes first, the others find its tokens.
        """
        until, usable_s = login.refreshable_until, login.refreshable_until - login.issued_at
        if login.refresh_token != self._watched:
            # New tokens are not exchanged at once, even if they seem to have expired: the clock may be wrong.
            self._not_before = at + max(0.0, usable_s / 2) if self._watched else at
            self._watched, self._watched_since = login.refresh_token, at
        known = self._flights.get(digest(login.refresh_token))
        # Too short-lived: app-servers ask before each request, whatever they have.
        if usable_s <= 0 or (known is not None and known[1].permanent):
            return None
        ahead_s = min(AHEAD_MAX_S, max(AHEAD_MIN_S, AHEAD_SHARE * usable_s * (1 + jitter / 2)))
        left_s = min(until - now, self._watched_since + usable_s - at)
        return max(0.0, left_s - ahead_s, self._not_before - at)
