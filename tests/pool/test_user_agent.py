"""The userAgent of one client of many, made of that of the pool's own connection."""

from __future__ import annotations

import json

import pytest

from codex_pool.protocol.user_agent import ClientInfo, for_client, problem_with

OWN = "codex_pool/0.163.0 (Debian 12.0.0; x86_64) xterm (codex_pool; 4.0)"


def agent(client: ClientInfo, own: str = OWN) -> str:
    answer = json.loads(for_client(json.dumps({"userAgent": own, "codexHome": "/h"}).encode(), client))
    assert answer["codexHome"] == "/h"
    text: str = answer["userAgent"]
    return text


# As codex 0.163.0 answers them, but for the number of its release.
@pytest.mark.parametrize(("name", "version", "expected"), [
    ("codex-tui", "0.163.0", "codex-tui/0.163.0 (Debian 12.0.0; x86_64) xterm (codex-tui; 0.163.0)"),
    ("my client", "9.9", "my client/0.163.0 (Debian 12.0.0; x86_64) xterm (my client; 9.9)"),
    ("a/b", "1 2", "a/b/0.163.0 (Debian 12.0.0; x86_64) xterm (a/b; 1 2)"),
    ("a(b)", "c;d", "a(b)/0.163.0 (Debian 12.0.0; x86_64) xterm (a(b); c;d)"),
    ("", "", "/0.163.0 (Debian 12.0.0; x86_64) xterm (;)"),
    ("name é", "1", "name é/0.163.0 (Debian 12.0.0; x86_64) xterm (name é; 1)"),
])  # fmt: skip
def test_it_is_that_of_the_client(name: str, version: str, expected: str) -> None:
    assert agent(ClientInfo(name, version)) == expected


def test_what_cannot_be_read_is_left_as_it_is() -> None:
    assert agent(ClientInfo("x"), "y") == "y"
    for initialized in (b"{}", b"[]", b"null", b"{", b'{"userAgent":7}'):
        assert for_client(initialized, ClientInfo("x")) == initialized


def test_a_name_that_is_no_value_of_a_header_is_refused() -> None:
    assert problem_with(ClientInfo("a\nb")) == "Invalid clientInfo.name: 'a\nb'. Must be a valid HTTP header value."
    assert problem_with(ClientInfo("x" * 2000)) is not None
    assert problem_with(ClientInfo("a é\tb")) is None
