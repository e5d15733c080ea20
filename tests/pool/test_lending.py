"""A login that is lent: borrowers get access tokens, the issuer is asked once, and the refresh token stays here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codex_app_server.testing.issuer import LoopbackIssuer
from codex_pool.account.auth_content import parse_login
from codex_pool.account.auth_file import UnreadableError
from codex_pool.account.lending import Lender


@pytest.fixture
def issuer() -> Iterator[LoopbackIssuer]:
    with LoopbackIssuer() as issuer:
        yield issuer


@pytest.fixture
def file(issuer: LoopbackIssuer, tmp_path: Path) -> Path:
    return issuer.write_auth_json(tmp_path)


def tokens(auth_json: bytes) -> dict[str, str]:
    found: dict[str, Any] = json.loads(auth_json)
    return dict(found["tokens"])


def test_a_borrower_gets_no_refresh_token_and_codex_takes_the_copy_for_a_login(
    issuer: LoopbackIssuer, file: Path
) -> None:
    own = tokens(file.read_bytes())
    copy = Lender(str(file), issuer.environ).copy()
    assert own["refresh_token"].encode() not in copy
    lent = parse_login(copy)
    assert lent is not None and lent.tokens["access_token"] == own["access_token"]


def test_borrowers_that_ask_together_cost_one_question_and_all_get_its_tokens(
    issuer: LoopbackIssuer, file: Path
) -> None:
    lender = Lender(str(file), issuer.environ)
    stand_in = tokens(lender.copy())["refresh_token"]
    issuer.answer_after_s = 0.05
    answers: list[dict[str, str]] = []
    asking = [
        threading.Thread(target=lambda: answers.append(json.loads(lender.renew(stand_in).body))) for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert issuer.counts == {"refreshed": 1}
    own = tokens(file.read_bytes())
    assert {each["access_token"] for each in answers} == {own["access_token"]}
    # The stand-in is another one, as a borrower expects of a refresh token, and the real one is nowhere.
    assert {each["refresh_token"] for each in answers}.isdisjoint({stand_in, own["refresh_token"]})
    # With that stand-in the next tokens are asked for.
    assert lender.renew(answers[0]["refresh_token"]).status == 200 and issuer.counts["refreshed"] == 2


def test_what_cannot_be_renewed_is_refused_for_good_or_for_a_while(
    issuer: LoopbackIssuer, file: Path, tmp_path: Path
) -> None:
    lender = Lender(str(file), issuer.environ)
    stand_in = tokens(lender.copy())["refresh_token"]
    with LoopbackIssuer(account_id="another") as other:
        other.write_auth_json(tmp_path)
        answer = lender.renew(stand_in)
        assert answer.permanent and b"another account" in answer.body
        assert other.asked == 0
    file.write_text('{"OPENAI_API_KEY": "sk-key"}')
    answer = lender.renew(stand_in)
    assert (answer.status, answer.permanent) == (503, False)
    with pytest.raises(UnreadableError, match="no ChatGPT login"):
        lender.copy()
