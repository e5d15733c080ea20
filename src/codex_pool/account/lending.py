"""Lender: a ChatGPT login on this machine whose access tokens others may use, but not renew.

Borrowers get an auth.json with a stand-in where the refresh token was. When they refresh, the stand-in comes here, and
the tokens of the login are the answer: renewed, if the borrower has the newest. So one process asks the issuer, under
the lock of the file that all holders take, and the refresh token stays on its machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from . import issuer
from .auth_content import Login, digest
from .auth_file import AuthFile, LockTimeoutError, UnreadableError
from .holder import Answer
from .loop import Account

REFRESH_TOKEN = "refresh_token"
OTHER_ACCOUNT = b'{"error":{"code":"refresh_token_invalidated","message":"another account has logged in since"}}'


class Lender:
    """See the module's docstring. `path` is that of the auth.json; `environ` names the issuer, as codex reads it."""

    def __init__(self, path: str, environ: Mapping[str, str]) -> None:
        self._path = path
        self._file = AuthFile(path)
        self._account = Account(self._file, environ.get(issuer.URL_VARIABLE) or issuer.ISSUER_URL)

    def copy(self) -> bytes:
        """Return an auth.json for borrowers. Raises UnreadableError, also for a file without a ChatGPT login."""
        content, login = self._file.read()
        if login is None:
            raise UnreadableError(f"{self._path} holds no ChatGPT login with a refresh token")
        record = json.loads(content)
        record["tokens"] = {**record["tokens"], REFRESH_TOKEN: stand_in(login)}
        # All else that could be used without the run.
        return json.dumps({key: value for key, value in record.items() if key != "OPENAI_API_KEY"}, indent=2).encode()

    def renew(self, posted: str) -> Answer:
        """Answer a borrower whose stand-in is `posted`; it may take as long as the issuer and the lock of the file."""
        try:
            answer, login = self._account.renew(lambda login: stand_in(login) == posted, time.monotonic())
        except (LockTimeoutError, OSError) as error:
            return issuer.failure(503, str(error))
        if login is None:
            return issuer.failure(503, f"{self._path} holds no ChatGPT login any more; log in again")
        if not posted.startswith(_of_account(login)):
            return Answer(401, OTHER_ACCOUNT)
        if answer.status != 200:
            return answer
        return Answer(200, json.dumps({**login.tokens, REFRESH_TOKEN: stand_in(login)}).encode())


def stand_in(login: Login) -> str:
    """Return the text that takes the place of a login's refresh token; another one for each access token."""
    return f"{_of_account(login)}{digest(login.tokens['access_token'])[:32]}"


def _of_account(login: Login) -> str:
    return f"lent-{login.account[:16]}-"
