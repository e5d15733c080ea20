"""The holder's decisions: whose tokens are given, when the issuer is asked, what is remembered. Pure."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from codex_pool.account.auth_content import RUNTIME_MAX_AGE_S, RUNTIME_WINDOW_S, Login, claims, parse_login, with_tokens
from codex_pool.account.holder import (
    ANSWER_KEPT_S,
    JUST_ISSUED_S,
    LINEAGE_KEPT,
    RETRY_MAX_S,
    Answer,
    Ask,
    Holder,
    Lineage,
)

NOW = 1_800_000_000.0
HOUR = 3600.0


def jwt(**found: Any) -> str:
    text = base64.urlsafe_b64encode(json.dumps(found).encode()).rstrip(b"=").decode()
    return f"e30.{text}.c2ln"


def auth_json(
    refresh_token: str, *, issued_at: float = NOW, lifetime_s: float = HOUR, user: str = "u", **more: Any
) -> bytes:
    tokens = {
        "id_token": jwt(**{"https://api.openai.com/auth": {"chatgpt_user_id": user}}),
        "access_token": jwt(exp=issued_at + lifetime_s, iat=issued_at, of=refresh_token),
        "refresh_token": refresh_token,
        "account_id": "workspace",
    }
    return json.dumps(
        {"OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": "2027-01-15T08:00:00Z", **more}
    ).encode()


def login(refresh_token: str, **options: Any) -> Login:
    found = parse_login(auth_json(refresh_token, **options))
    assert found is not None
    return found


def granted(refresh_token: str, **options: Any) -> Answer:
    return Answer(200, json.dumps(login(refresh_token, **options).tokens).encode())


def refused(code: str = "refresh_token_reused", status: int = 401) -> Answer:
    return Answer(status, json.dumps({"error": {"code": code, "message": "no"}}).encode())


def decide(holder: Holder, posted: str, found: Login | None, lineage: Lineage, at: float = 0.0, **times: float) -> Any:
    return holder.decide(posted, found, lineage, at=at, **{"arrived_at": at, "now": NOW, **times})


# What is in the file.


def test_a_login_is_read() -> None:
    found = login("r1")
    assert (found.refresh_token, found.issued_at) == ("r1", NOW)
    assert found.refreshable_until == NOW + HOUR - RUNTIME_WINDOW_S
    assert "r1" not in repr(found)


def test_an_access_token_without_a_time_counts_from_the_last_refresh() -> None:
    record = json.loads(auth_json("r1"))
    record["tokens"]["access_token"] = "opaque"
    record["last_refresh"] = "2027-01-15T08:00:00.123456789Z"
    found = parse_login(json.dumps(record).encode())
    assert found is not None
    assert found.refreshable_until == found.issued_at + RUNTIME_MAX_AGE_S == 1_800_000_000 + RUNTIME_MAX_AGE_S


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"OPENAI_API_KEY": "sk-x"}',
        auth_json("r1", auth_mode="apikey"),
        auth_json("r1", auth_mode="chatgptAuthTokens"),
        auth_json("r1", OPENAI_API_KEY="sk-x"),
        b'{"tokens": {"access_token": "a", "refresh_token": ""}}',
        b'{"tokens": {"access_token": 1, "refresh_token": "r"}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_login_of_codexs_own_is_none(content: bytes) -> None:
    assert parse_login(content) is None


def test_only_tokens_and_time_are_replaced() -> None:
    before = auth_json("r1", auth_mode="chatgpt", later={"x": 1})
    after = json.loads(with_tokens(before, login("r2").tokens, NOW))
    assert after["later"] == {"x": 1} and after["tokens"]["account_id"] == "workspace"
    assert after["last_refresh"] == "2027-01-15T08:00:00Z"
    assert parse_login(json.dumps(after).encode()) == login("r2")


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: f"x.{base64.urlsafe_b64encode(data).decode()}.x"))
def test_claims_of_anything(token: str) -> None:
    assert isinstance(claims(token), dict)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda c: (
            st.lists(c)
            | st.dictionaries(
                st.sampled_from(
                    ["tokens", "access_token", "refresh_token", "id_token", "last_refresh", "auth_mode", "exp"]
                ),
                c,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_login_or_none(value: Any) -> None:
    found = parse_login(json.dumps(value).encode())
    assert found is None or found.refresh_token


# Who gets what.


def test_the_token_of_the_file_is_exchanged_and_written() -> None:
    assert decide(Holder(), "r1", login("r1"), Lineage()) == Ask("r1", write=True)


def test_a_token_that_the_file_held_before_gets_what_it_holds_now() -> None:
    lineage = Lineage().with_login(login("r1")).with_login(login("r2"))
    answer = decide(Holder(), "r1", login("r2"), lineage)
    assert json.loads(answer.body) == login("r2").tokens


def test_if_that_is_about_to_expire_it_is_exchanged() -> None:
    lineage = Lineage().with_login(login("r1"))
    assert decide(Holder(), "r1", login("r2", issued_at=NOW - HOUR), lineage) == Ask("r2", write=True)


def test_an_unknown_token_is_of_another_login_and_never_gets_the_tokens_of_this_one() -> None:
    lineage = Lineage().with_login(login("r1"))
    assert decide(Holder(), "other", login("r1"), lineage) == Ask("other", write=False)
    assert decide(Holder(), "other", None, lineage) == Ask("other", write=False)


def test_after_another_user_of_the_same_workspace_has_logged_in_old_tokens_are_unknown() -> None:
    lineage = Lineage().with_login(login("r1")).with_login(login("b1", user="b"))
    assert decide(Holder(), "r1", login("b1", user="b"), lineage) == Ask("r1", write=False)


def test_the_lineage_is_bounded() -> None:
    lineage = Lineage()
    for n in range(LINEAGE_KEPT * 2):
        lineage = lineage.with_login(login(f"r{n}"))
    assert len(lineage.seen) == LINEAGE_KEPT and lineage.has_held(login("x"), f"r{LINEAGE_KEPT * 2 - 1}")


# Single flight.


def test_who_waited_gets_the_same_answer_and_who_comes_later_asks_again() -> None:
    for posted, found in (("r1", login("r1")), ("other", None)):
        holder, lineage = Holder(), Lineage()
        ask = decide(holder, posted, found, lineage, at=10.0)
        answer = Answer(502, b"{}")
        holder.answered(ask, answer, None, at=20.0)
        assert decide(holder, posted, found, lineage, at=20.0, arrived_at=15.0) is answer
        assert decide(holder, posted, found, lineage, at=21.0) == ask


def test_a_refusal_that_stays_is_remembered_for_a_while_and_only_while_the_file_holds_the_token() -> None:
    holder, lineage = Holder(), Lineage().with_login(login("r1"))
    holder.answered(Ask("r1", write=True), refused(), None, at=0.0)
    assert decide(holder, "r1", login("r1"), lineage, at=1.0) == refused()
    assert decide(holder, "r1", login("r1"), lineage, at=ANSWER_KEPT_S + 1) == Ask("r1", write=True)
    assert json.loads(decide(holder, "r1", login("r2"), lineage, at=1.0).body) == login("r2").tokens


@pytest.mark.parametrize(
    "answer", [Answer(500, b""), refused("invalid_request", 400), Answer(429, b"[]"), Answer(502, b"\xff")]
)
def test_other_errors_are_not_remembered(answer: Answer) -> None:
    holder = Holder()
    holder.answered(Ask("r1", write=True), answer, None, at=0.0)
    assert not answer.permanent
    assert decide(holder, "r1", login("r1"), Lineage(), at=1.0) == Ask("r1", write=True)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(401, b""),
        refused("refresh_token_expired", 400),
        Answer(400, b'{"code": "Refresh_Token_Invalidated"}'),
        Answer(403, b'{"error": "refresh_token_reused"}'),
    ],
)
def test_what_codex_takes_for_final(answer: Answer) -> None:
    assert answer.permanent


def test_several_turns_of_one_app_server_get_one_exchange() -> None:
    holder, lineage = Holder(), Lineage().with_login(login("r1"))
    holder.answered(Ask("r1", write=True), granted("r2"), login("r2"), at=10.0)
    # The second turn waited for the first one, and asks with the token that this has got.
    answer = decide(holder, "r2", login("r2"), lineage, at=10.1)
    assert json.loads(answer.body) == login("r2").tokens
    assert decide(holder, "r2", login("r2"), lineage, at=10.0 + JUST_ISSUED_S) == Ask("r2", write=True)


def test_tokens_refreshed_ahead_may_be_refused_at_once() -> None:
    holder = Holder()
    holder.answered(Ask("r1", write=True), granted("r2"), login("r2"), at=10.0, on_demand=False)
    assert decide(holder, "r2", login("r2"), Lineage(), at=10.1) == Ask("r2", write=True)


def test_a_login_that_is_not_in_the_file_gets_its_new_tokens_again() -> None:
    holder = Holder()
    holder.answered(Ask("k1", write=False), granted("k2"), None, at=0.0)
    assert decide(holder, "k1", None, Lineage(), at=10.0) == granted("k2")
    assert decide(holder, "k1", None, Lineage(), at=ANSWER_KEPT_S + 1) == Ask("k1", write=False)


# Late writers.


def test_tokens_that_have_been_exchanged_are_not_taken_from_the_file() -> None:
    holder = Holder()
    holder.answered(Ask("r1", write=True), granted("r2"), login("r2"), at=1.0)
    holder.answered(Ask("r2", write=True), granted("r3"), login("r3"), at=2.0)
    assert holder.newest(login("r1")) == holder.newest(login("r2")) == login("r3")
    other = login("r1", user="b")
    assert holder.newest(other) is other


# Ahead of time.


def due(holder: Holder, found: Login, now: float, at: float = 0.0, jitter: float = 0.0) -> float | None:
    return holder.due_in_s(found, at=at, now=now, jitter=jitter)


@given(st.floats(301, 30 * 86400), st.floats(0, 0.999))
def test_it_is_ahead_of_app_servers_and_not_by_more_than_it_must(lifetime_s: float, jitter: float) -> None:
    found = login("r1", lifetime_s=lifetime_s)
    due_s = due(Holder(), found, NOW, jitter=jitter)
    assert due_s is not None
    usable_s = lifetime_s - RUNTIME_WINDOW_S
    assert 0.0 <= due_s < usable_s
    assert due_s >= min(usable_s * 0.8, usable_s - 1.0) - 1e-3


def test_tokens_that_app_servers_refresh_before_each_request_are_left_to_them() -> None:
    assert due(Holder(), login("r1", lifetime_s=RUNTIME_WINDOW_S), NOW) is None


def test_it_is_tried_again_ever_more_slowly_and_not_after_a_refusal() -> None:
    holder, late = Holder(), NOW + HOUR
    assert due(holder, login("r1"), late) == 0.0
    waits = []
    for _ in range(9):
        holder.answered(Ask("r1", write=True), Answer(502, b"{}"), None, at=100.0, on_demand=False)
        waits.append(due(holder, login("r1"), late, at=100.0))
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, RETRY_MAX_S, RETRY_MAX_S, RETRY_MAX_S]
    holder.answered(Ask("r1", write=True), refused(), None, at=100.0)
    assert due(holder, login("r1"), late, at=200.0) is None
    assert due(holder, login("r2"), NOW, at=200.0) is not None


def test_a_clock_that_is_wrong_does_not_make_it_ask_all_the_time() -> None:
    holder, late = Holder(), NOW + 2 * HOUR
    assert due(holder, login("r1"), late, at=100.0) == 0.0
    # New tokens that seem to have expired as well, from this holder or another one.
    assert due(holder, login("r2"), late, at=101.0) == (HOUR - RUNTIME_WINDOW_S) / 2
    assert due(holder, login("r2"), late, at=101.0 + HOUR) == 0.0


@pytest.mark.parametrize("expires", ["NaN", "Infinity", "-1", "1" + "0" * 400, "true", "1e300"])
def test_a_time_that_is_none_counts_as_none(expires: str) -> None:
    payload = base64.urlsafe_b64encode(f'{{"exp": {expires}}}'.encode()).decode()
    record = json.loads(auth_json("r1"))
    record["tokens"]["access_token"] = f"e30.{payload}.c2ln"
    found = parse_login(json.dumps(record).encode())
    assert found is not None
    assert found.refreshable_until == NOW + RUNTIME_MAX_AGE_S


class AccountMachine(RuleBasedStateMachine):
    """Two pools and some app-servers on one file, and an issuer that rotates: nobody is refused, none gets another's.

    An app-server does as codex does: it takes the file's tokens if they are others than its own, else it asks; what it
    is given it writes to the file, at once or late.
    """

    @initialize()
    def begin(self) -> None:
        self.now, self.at, self.count = NOW, 0.0, 1
        self.valid, self.reused = {"r1"}, 0
        self.file = auth_json("r1")
        self.lineage = Lineage().with_login(login("r1"))
        self.holders = [Holder(), Holder()]
        self.app_servers = [login("r1")] * 4
        self.late: list[tuple[int, dict[str, str]]] = []

    def issue(self, ask: Ask) -> Answer:
        if ask.refresh_token not in self.valid:
            self.reused += 1
            return refused()
        self.valid.remove(ask.refresh_token)
        self.count += 1
        self.valid.add(f"r{self.count}")
        return granted(f"r{self.count}", issued_at=self.now)

    def refresh(self, pool: int, posted: str, on_demand: bool) -> Answer:
        holder = self.holders[pool]
        found = parse_login(self.file)
        assert found is not None
        newest = holder.newest(found)
        self.lineage = self.lineage.with_login(found).with_login(newest)
        if newest is not found:
            self.file = with_tokens(self.file, newest.tokens, self.now)
        decided = holder.decide(posted, newest, self.lineage, arrived_at=self.at, at=self.at, now=self.now)
        if isinstance(decided, Answer):
            return decided
        answer = self.issue(decided)
        renewed = newest.renewed(answer.body, self.now) if decided.write and answer.status == 200 else None
        holder.answered(decided, answer, renewed, at=self.at, on_demand=on_demand)
        if renewed is not None:
            self.lineage = self.lineage.with_login(renewed)
            self.file = with_tokens(self.file, renewed.tokens, self.now)
        return answer

    @rule(seconds=st.sampled_from([0.1, 2.0, 600.0, 3400.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.at += seconds

    @rule(number=st.integers(0, 3), late=st.booleans())
    def an_app_server_gets_401(self, number: int, late: bool) -> None:
        found = parse_login(self.file)
        assert found is not None
        if found != self.app_servers[number]:
            self.app_servers[number] = found
            return
        answer = self.refresh(number % 2, found.refresh_token, True)
        assert answer.status == 200
        tokens = json.loads(answer.body)
        self.app_servers[number] = login(tokens["refresh_token"], issued_at=self.now)
        if late:
            self.late.append((number % 2, tokens))

    @rule(number=st.integers(0, 3))
    def a_request_was_on_its_way(self, number: int) -> None:
        assert self.refresh(number % 2, self.app_servers[number].refresh_token, True).status == 200

    @rule(pool=st.integers(0, 1))
    def ahead_of_time(self, pool: int) -> None:
        found = parse_login(self.file)
        assert found is not None
        assert self.refresh(pool, found.refresh_token, False).status == 200

    @rule()
    def an_outsider_refreshes(self) -> None:
        found = parse_login(self.file)
        assert found is not None
        newest = self.holders[1].newest(self.holders[0].newest(found))
        answer = self.issue(Ask(newest.refresh_token, write=True))
        self.file = with_tokens(self.file, json.loads(answer.body), self.now)
        # The holders look at the file every other second.
        found = parse_login(self.file)
        assert found is not None
        self.lineage = self.lineage.with_login(found)

    @rule()
    def an_app_server_writes_late(self) -> None:
        # Its own pool puts it right, as it does within seconds; the other one may have exchanged the tokens since.
        while self.late:
            pool, tokens = self.late.pop()
            before = self.file
            self.file = with_tokens(self.file, tokens, self.now)
            found = parse_login(self.file)
            assert found is not None
            if self.holders[pool].newest(found).refresh_token not in self.valid:
                self.file = before

    @rule(pool=st.integers(0, 1))
    def a_holder_dies(self, pool: int) -> None:
        self.holders[pool] = Holder()
        self.late = [late for late in self.late if late[0] != pool]

    @rule(pool=st.integers(0, 1))
    def another_login_asks(self, pool: int) -> None:
        other = f"other{self.count}"
        self.valid.add(other)
        answer = self.refresh(pool, other, True)
        assert json.loads(answer.body)["refresh_token"] == f"r{self.count}"
        self.valid.discard(f"r{self.count}")
        found = parse_login(self.file)
        assert found is not None and found.refresh_token != f"r{self.count}"

    @invariant()
    def nothing_is_used_twice(self) -> None:
        assert self.reused == 0


TestAccountMachine = AccountMachine.TestCase
TestAccountMachine.settings = settings(max_examples=40, stateful_step_count=25)
