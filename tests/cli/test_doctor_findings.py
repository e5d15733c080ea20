"""Findings of `codex-pool doctor`, from facts alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codex_pool_cli.checks.facts import (
    Binary,
    Clock,
    Disk,
    Endpoint,
    Facts,
    Home,
    Key,
    Keys,
    Limits,
    Login,
    Sandbox,
    Software,
)
from codex_pool_cli.checks.findings import GIB, findings_of

GOOD = Facts(
    software=Software((3, 11, 7), "0.1.0", {"gateway": True}),
    binary=Binary("/bin/codex", "0.163.0"),
    sandbox=Sandbox(started=True),
    limits=Limits(65536, 10_000, 200),
    disks=(Disk("CODEX_HOME", "/home", 9 * GIB, 100_000),),
    clock=Clock(2026, 0.0),
    homes=(Home("/home", exists=True),),
    login=Login("chatgpt", "openai"),
    endpoint=Endpoint("ipc:///run/x.sock"),
    keys=Keys("/keys", exists=False),
)
STATUS = {"uptimeMs": 5000, "workers": [{"slot": 0, "state": "ready"}, {"slot": 1, "state": "starting"}]}


def test_a_machine_that_is_well_has_findings_of_level_ok_only() -> None:
    assert {each.level for each in findings_of(GOOD)} == {"ok"}


@pytest.mark.parametrize(
    ("change", "check", "level", "words"),
    [
        ({"software": Software((3, 9, 1), "0.1.0", {})}, "python", "failure", "3.10 or newer"),
        ({"software": Software((3, 11, 1), "0.1.0", {"gateway": False})}, "extras", "warning", "--listen-unix"),
        ({"binary": Binary(None, problem="no codex")}, "codex", "failure", "--codex-bin"),
        ({"binary": Binary("/c", "0.1.0", warning="older than tested")}, "codex", "warning", "older than tested"),
        ({"sandbox": Sandbox(started=False, message="bwrap: no")}, "sandbox", "failure", "bwrap: no"),
        ({"sandbox": Sandbox(started=False, namespaces=0)}, "sandbox", "failure", "sysctl"),
        ({"sandbox": Sandbox(started=True, wrote=True)}, "sandbox", "failure", "could write"),
        ({"limits": Limits(100, None)}, "descriptors", "failure", "ulimit -n"),
        ({"limits": Limits(512, None)}, "descriptors", "warning", "LimitNOFILE"),
        ({"limits": Limits(None, 1000, 950)}, "processes", "failure", "ulimit -u"),
        ({"limits": Limits(None, 1000)}, "processes", "unknown", "not known"),
        ({"disks": (Disk("logs", "/l", 1024),)}, "disk", "failure", "make room"),
        ({"disks": (Disk("logs", "/l", 9 * GIB, 500),)}, "disk", "failure", "500 files"),
        ({"clock": Clock(1970, 0.0)}, "clock", "failure", "1970"),
        ({"clock": Clock(2026, -30.0)}, "clock", "warning", "-30.0 s"),
        ({"clock": Clock(2026, 0.0, 7200.0)}, "clock", "warning", "2 h"),
        ({"homes": (Home("/h", exists=False),)}, "home", "warning", "codex-pool login"),
        ({"homes": (Home("/h", exists=True, mode=0o755),)}, "home", "warning", "chmod 700 /h"),
        ({"homes": (Home("/h", exists=True, config_problem="no TOML"),)}, "config", "failure", "no TOML"),
        ({"homes": (Home("/h", exists=True, log_bytes=3 * GIB),)}, "growth", "warning", "3.0 GiB of logs"),
        ({"homes": (Home("/h", exists=True, is_counted=False),)}, "growth", "unknown", "more than"),
        ({"login": Login(None, "openai")}, "login", "failure", "codex-pool login"),
        ({"login": Login("apikey", "openai", mode=0o644)}, "login", "failure", "chmod 600"),
        ({"login": Login(None, "corp", missing_variable="CORP_KEY")}, "login", "failure", "$CORP_KEY"),
        ({"login": Login("chatgpt", "openai", refreshed_ago_s=9e6)}, "login", "warning", "refreshed"),
        ({"endpoint": Endpoint("ipc:///x", directory_problem="mode 0777")}, "endpoint", "failure", "0777"),
        ({"endpoint": Endpoint("ipc:///x", is_held=True, holder_pid=7)}, "endpoint", "failure", "pid 7"),
        ({"endpoint": Endpoint("ipc:///x", cleaned_by="tmpwatch")}, "endpoint", "warning", "XDG_RUNTIME_DIR"),
        ({"endpoint": Endpoint("ipc:///x", status=STATUS)}, "daemon", "warning", "1 of 2"),
        ({"endpoint": Endpoint("ipc:///x", status={"workers": [], "uptimeMs": 0})}, "daemon", "failure", "0 of 0"),
        ({"keys": Keys("/k", exists=True, problems=("mode 0644",))}, "keys", "failure", "0644"),
        ({"keys": Keys("/k", exists=True, keys=(Key("ana", False, ()),))}, "keys", "warning", "no directory"),
        ({"keys": Keys("/k", exists=True, keys=(Key("ana", True, (), (), -5.0),))}, "keys", "warning", "expired"),
        ({"keys": Keys("/k", exists=True, keys=(Key("b", False, ("/w",), ("/w",)),))}, "keys", "warning", "/w"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(change: dict[str, object], check: str, level: str, words: str) -> None:
    found = [each for each in findings_of(replace(GOOD, **change)) if each.level != "ok"]  # type: ignore[arg-type]
    assert [(each.check, each.level) for each in found] == [(check, level)]
    assert words in f"{found[0].message} {found[0].remedy}" and found[0].remedy


def test_what_is_not_known_is_never_ok() -> None:
    found = findings_of(Facts(unknown={"sandbox": "no answer within 15 s"}))
    assert {each.level for each in found} == {"unknown"}
    assert next(each.message for each in found if each.check == "sandbox") == "no answer within 15 s"


def test_problems_of_the_daemon_are_findings() -> None:
    status = {
        "uptimeMs": 1,
        "workers": [{"slot": 0, "state": "ready", "failedStarts": 2, "problem": "no such model"}],
        "problems": [{"what": "lock", "message": "read-only"}],
        "log": {"lostLines": 3},
    }
    found = findings_of(replace(GOOD, endpoint=Endpoint("ipc:///x", status=status)))
    texts = [each.message for each in found if each.level == "warning"]
    assert texts == [
        "slot 0: 2 starts failed: no such model",
        "lock: read-only",
        "3 lines of the daemon's log were lost",
    ]


def test_a_home_without_a_config_is_named_as_such() -> None:
    facts = replace(GOOD, homes=(Home("/h", exists=True, has_config=False),))
    (found,) = (each for each in findings_of(facts) if each.check == "config")
    assert (found.level, found.message) == ("ok", "/h has no config.toml: the defaults of codex count")
