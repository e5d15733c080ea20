"""Permissions of an identity: the policy by itself, and a search for parameters that get past it."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codex_app_server.generated.routing import REQUESTS
from codex_pool import trust
from codex_pool.auth.policy import NOT_ALLOWED, AccessPolicy, Counts, Refusal
from codex_pool.auth.principal import DEFAULT_METHODS, POOL_METHODS, Identity, known_pattern, rule_of
from codex_pool.auth.projects import WITHOUT, treatment
from codex_pool.protocol import wire

ROOT = "/srv/alice"
READ_ONLY = '{"type":"readOnly"}'


def record(thread_id: str = "t1", owner: str = "P-alice", **fields: Any) -> wire.ThreadRecord:
    known: dict[str, Any] = {"cwd": ROOT, "sandbox": READ_ONLY, "approval_policy": '"never"'}
    return wire.ThreadRecord(thread_id, False, owner=owner, **{**known, **fields})


def access_policy(**fields: Any) -> AccessPolicy:
    alice = Identity(name="alice", principal="P-alice", **{"cwd_roots": (ROOT,), **fields})
    return AccessPolicy(
        [alice, Identity(name="bob", principal="P-bob", cwd_roots=("/srv/bob",))],
        default_cwd=ROOT,
        realpath=lambda path: path,
    )


def check(
    subject: AccessPolicy,
    method: str,
    params: dict[str, Any] | None = None,
    *,
    thread: wire.ThreadRecord | None = None,
    counts: Counts = Counts(),  # noqa: B008
    who: str = "P-alice",
) -> bytes | Refusal:
    line = json.dumps({"id": 1, "method": method, "params": params}).encode()
    return subject.check(who, method, line, thread, counts)


def refused(verdict: bytes | Refusal, what: str, *words: str) -> None:
    """Check that it was refused for this reason, in an error that says so."""
    assert isinstance(verdict, Refusal), verdict
    assert verdict.code == NOT_ALLOWED and verdict.data == {"kind": "refused", "what": what}, verdict
    for word in words:
        assert word in verdict.message, verdict.message


def passed(verdict: bytes | Refusal) -> dict[str, Any]:
    assert isinstance(verdict, bytes), verdict
    return json.loads(verdict)["params"] or {}


def test_what_a_request_held_is_freed_at_once() -> None:
    """Requests of megabytes in reference cycles would wait until the garbage collector runs, which is seldom."""
    subject = access_policy()
    lines = {
        method: json.dumps({"id": 1, "method": method, "params": {"threadId": "t1", "cwd": ROOT, "x": "x"}}).encode()
        for method in [*REQUESTS, "no/such"]
    }
    gc.collect()
    gc.disable()
    try:
        for method, line in lines.items():
            subject.check("P-alice", method, line, record(), Counts())
        assert gc.collect() == 0
    finally:
        gc.enable()


# Who.


def test_the_pools_own_user_may_do_everything() -> None:
    line = b'{"id":1,"method":"fs/remove","params":{"path":"/"}}'
    assert AccessPolicy().check("", "fs/remove", line, None, Counts()) is line
    assert AccessPolicy().check_answer("", line) is line
    assert AccessPolicy().may_touch("", None) and AccessPolicy().admit("", 10**6) is None


def test_an_identity_that_is_gone_may_do_nothing() -> None:
    subject = access_policy()
    subject.replace([])
    refused(check(subject, "model/list"), "identity", "allow-list", "codex-pool keys renew")
    assert "allow-list" in str(subject.admit("P-alice", 0))
    assert b"error" in subject.check_answer("P-alice", b'{"id":"w/1","result":{"decision":"accept"}}')


def test_sessions_are_bounded() -> None:
    assert access_policy(max_sessions=2).admit("P-alice", 1) is None
    text = access_policy(max_sessions=2).admit("P-alice", 2)
    assert text is not None and "2 sessions" in text and "--max-sessions" in text


# Methods.


@pytest.mark.parametrize(
    "method",
    [
        "fs/readFile",
        "command/exec",
        "config/read",
        "plugin/list",
        "account/read",
        "mcpServerStatus/list",
    ],
)
def test_what_is_not_granted_is_refused_and_can_be_granted(method: str) -> None:
    params = {"path": f"{ROOT}/a"} if method == "fs/readFile" else {}
    refused(check(access_policy(), method, params), "method", method, f"--allow {method}")
    passed(check(access_policy(methods=(method,)), method, params))
    passed(check(access_policy(methods=(method.split("/")[0] + "/*",)), method, params))


def test_a_command_stays_in_the_sandbox_and_the_directories_of_the_key() -> None:
    subject = access_policy(methods=("command/exec",))
    sent = passed(check(subject, "command/exec", {"command": ["x"], "cwd": f"{ROOT}/a", "processId": "p", "tty": True}))
    assert sent["sandboxPolicy"] == {"type": "readOnly"} and sent["processId"] == "p"
    for what, params in {
        "sandboxPolicy": {"sandboxPolicy": {"type": "dangerFullAccess"}},
        "permissionProfile": {"permissionProfile": "mine"},
        "cwd": {"cwd": "/etc"},
        "env": {"env": {"A": "b"}},
        "outputBytesCap": {"outputBytesCap": 2**40},
        "parameter": {"unheardOf": 1},
    }.items():
        refused(check(subject, "command/exec", {"command": ["x"], "cwd": ROOT, **params}), what)
    refused(check(subject, "command/exec", {"command": ["x"], "disableOutputCap": True, "cwd": ROOT}), "outputBytesCap")
    streamed = {"command": ["x"], "cwd": ROOT, "processId": "p", "streamStdoutStderr": True, "disableOutputCap": True}
    passed(check(subject, "command/exec", streamed))
    everything = access_policy(methods=("command/exec", "process/*"), sandbox="danger-full-access")
    passed(check(everything, "command/exec", {"command": ["x"], "cwd": ROOT, "env": {"A": "b"}}))
    passed(check(everything, "process/spawn", {"command": ["x"], "cwd": ROOT, "processHandle": "h"}))
    refused(check(everything, "process/spawn", {"command": ["x"], "cwd": "/etc", "processHandle": "h"}), "cwd")
    for sandbox in ("read-only", "workspace-write"):
        below = access_policy(methods=("process/*",), sandbox=sandbox)
        refused(check(below, "process/spawn", {"command": ["x"], "cwd": ROOT, "processHandle": "h"}), "sandbox")


def test_watches_and_searches_stay_in_the_directories_of_the_key() -> None:
    subject = access_policy(methods=("fs/watch", "fuzzyFileSearch/*"))
    passed(check(subject, "fs/watch", {"watchId": "w", "path": f"{ROOT}/a"}))
    refused(check(subject, "fs/watch", {"watchId": "w", "path": "/etc"}), "path")
    refused(check(subject, "fs/watch", {"watchId": "w", "path": f"{ROOT}/../etc"}), "path")
    passed(check(subject, "fuzzyFileSearch/sessionStart", {"sessionId": "s", "roots": [ROOT]}))
    refused(check(subject, "fuzzyFileSearch/sessionStart", {"sessionId": "s", "roots": [ROOT, "/etc"]}), "roots")


@pytest.mark.parametrize("method", ["", "no/such", "thread/start/", "THREAD/START", "thread/*", "fs/", "fs/*x"])
def test_an_unknown_method_is_refused(method: str) -> None:
    refused(check(access_policy(methods=("command/*",)), method), "method")


def test_by_default_only_methods_of_threads_turns_and_reading_ones() -> None:
    assert {*REQUESTS, *POOL_METHODS} >= DEFAULT_METHODS
    for method in DEFAULT_METHODS:
        room, _, verb = method.partition("/")
        assert room in ("thread", "turn", "review", "pool", "initialize") or verb.endswith(("list", "read")), method
        assert not method.startswith(("fs/", "command/", "config", "plugin/", "account/", "mcpServer", "process/"))


def test_patterns_that_name_nothing_are_known_as_such() -> None:
    assert known_pattern("fs/*") and known_pattern("pool/status") and known_pattern("command/exec")
    assert not known_pattern("fs*") and not known_pattern("*") and not known_pattern("fs/readfile")


@pytest.mark.parametrize("method", ["thread/shellCommand", "process/spawn", "config/value/write", "fs/writeFile"])
def test_a_grant_does_not_open_what_acts_outside_of_the_sandbox(method: str) -> None:
    subject = access_policy(methods=(method,))
    refused(check(subject, method, {"threadId": "t1"}, thread=record()), "sandbox", method, "read-only")


# Threads.


@pytest.mark.parametrize(
    "method",
    [
        *("thread/read", "thread/resume", "thread/fork", "thread/archive", "thread/delete", "thread/items/list"),
        *("turn/start", "turn/steer", "turn/interrupt", "pool/turn/follow", "thread/unsubscribe", "review/start"),
    ],
)
@pytest.mark.parametrize("thread", [None, record(owner="P-bob"), record(owner=""), record("other")])
def test_anothers_thread_is_as_if_it_were_not_there(method: str, thread: wire.ThreadRecord | None) -> None:
    verdict = check(access_policy(), method, {"threadId": "t1"}, thread=thread)
    refused(verdict, "thread", "t1", "alice")
    assert verdict == check(access_policy(), method, {"threadId": "t1"}, thread=None)
    passed(check(access_policy(), method, {"threadId": "t1"}, thread=record()))


def test_a_thread_is_not_named_by_two_names() -> None:
    line = b'{"id":1,"method":"thread/read","params":{"threadId":"t1","threadId":"t2"}}'
    assert isinstance(access_policy().check("P-alice", "thread/read", line, record("t1"), Counts()), Refusal)
    verdict = access_policy().check("P-alice", "thread/read", line, record("t2"), Counts())
    assert isinstance(verdict, bytes) and b"t1" not in verdict
    for params in ({"threadId": ["t1"]}, {"threadId": 1}, {"threadId": "t1", "thread_id": "t2"}):
        assert isinstance(check(access_policy(), "thread/read", params, thread=record()), Refusal)


def test_a_method_is_not_named_by_two_names() -> None:
    line = b'{"id":1,"method":"thread/list","method":"fs/readFile","params":{"path":"/etc/passwd"}}'
    refused(access_policy().check("P-alice", "thread/list", line, None, Counts()), "message")


def test_a_thread_is_not_named_by_its_file() -> None:
    for ceiling in ("read-only", "danger-full-access"):
        verdict = check(
            access_policy(sandbox=ceiling), "thread/resume", {"threadId": "t1", "path": f"{ROOT}/r"}, thread=record()
        )
        refused(verdict, "path", "name the thread by its id")


def test_lists_leave_out_what_may_not_be_touched() -> None:
    subject = access_policy()
    assert subject.may_touch("P-alice", record())
    assert not subject.may_touch("P-alice", record(owner="P-bob")) and not subject.may_touch("P-alice", None)


# The sandbox.


def test_a_thread_that_names_no_sandbox_gets_the_ceiling_and_never_asks() -> None:
    for ceiling in ("read-only", "workspace-write"):
        params = passed(check(access_policy(sandbox=ceiling), "thread/start", {"sandbox": None}))
        filled = {"sandbox": ceiling, "approvalPolicy": "never", "cwd": ROOT, "config": trust.untrusting(ROOT)}
        assert params == filled
        params = passed(check(access_policy(sandbox=ceiling), "thread/resume", {"threadId": "t1"}, thread=record()))
        assert params == {"threadId": "t1", **filled}
    assert passed(check(access_policy(sandbox="danger-full-access"), "thread/start", {})) == {}


def test_a_thread_that_is_wider_than_the_key_allows_now_starts_no_turn() -> None:
    wide = record(sandbox='{"type":"workspaceWrite","writableRoots":[],"networkAccess":false}')
    refused(check(access_policy(), "turn/start", {"threadId": "t1"}, thread=wide), "the thread's sandbox", "workspace")
    narrowed = {"threadId": "t1", "sandboxPolicy": {"type": "readOnly"}}
    passed(check(access_policy(), "turn/start", narrowed, thread=wide))
    refused(check(access_policy(), "turn/start", {"threadId": "t1"}, thread=record(sandbox="")), "the thread's sandbox")
    elsewhere = record(cwd="/srv/bob")
    refused(check(access_policy(), "review/start", {"threadId": "t1"}, thread=elsewhere), "the thread's cwd")
    asking = record(approval_policy='"on-request"')
    refused(check(access_policy(), "turn/start", {"threadId": "t1"}, thread=asking), "the thread's approvalPolicy")


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ({"result": {"decision": "decline"}}, True),
        ({"result": {"decision": "accept"}}, False),
        ({"result": {"decision": "acceptForSession"}}, False),
        ({"result": {"decision": {"acceptWithExecpolicyAmendment": {}}}}, False),
        ({"result": {"permissions": {"network": True}, "scope": "session"}}, False),
        ({"result": {"action": "accept", "content": {}}}, False),
        ({"result": {"action": "decline"}}, True),
        ({"result": {"answers": {}}}, True),
        ({"result": {"contentItems": [], "success": True}}, True),
        ({"result": {"answers": {}, "decision": "accept"}}, False),
        ({"result": None}, False),
        ({"error": {"code": 1, "message": "no"}}, True),
    ],
)
def test_who_has_a_ceiling_cannot_approve_beyond_it(answer: dict[str, Any], kept: bool) -> None:
    line = json.dumps({"id": "w/1", **answer}).encode()
    got = json.loads(access_policy().check_answer("P-alice", line))
    assert got["id"] == "w/1"
    if kept:
        assert got == {"id": "w/1", **answer}
    else:
        assert "result" not in got and got["error"]["code"] == NOT_ALLOWED
    assert access_policy(sandbox="danger-full-access").check_answer("P-alice", line) == line


# An independent reading of what a request asks for: words that mean more than the ceiling, wherever they stand.

MODES = ["read-only", "workspace-write", "danger-full-access"]
POLICIES = ["readOnly", "workspaceWrite", "dangerFullAccess", "externalSandbox", "", "ReadOnly", None, 7]
PATHS = [ROOT, f"{ROOT}/a", f"{ROOT}x", f"{ROOT}/../bob", "/srv/bob", "/", "", "relative", "~", f"file://{ROOT}", None]
policies = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(POLICIES),
        "networkAccess": st.sampled_from([False, True, None, "enabled", 1]),
        "writableRoots": st.lists(st.sampled_from(PATHS), max_size=2),
        "excludeSlashTmp": st.booleans(),
        "access": st.just({"type": "fullAccess"}),
    },
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "sandbox": st.sampled_from([*MODES, None, "Danger-Full-Access", 1, {"mode": "danger-full-access"}]),
    "sandboxPolicy": st.one_of(st.none(), policies, st.sampled_from(["dangerFullAccess", [], [{"type": "readOnly"}]])),
    "approvalPolicy": st.sampled_from([None, "never", "on-request", "untrusted", {"granular": {}}, 1]),
    "approvalsReviewer": st.sampled_from([None, "user", "auto_review", "guardian_subagent"]),
    "config": st.dictionaries(
        st.sampled_from(["sandbox_mode", "model_verbosity", "mcp_servers", "profile", "sandbox_workspace_write.x"]),
        st.sampled_from(["low", "danger-full-access", {"a": 1}, True]),
        max_size=2,
    ),
    "permissions": st.sampled_from([None, ":danger-full-access", ":workspace", ""]),
    "environments": st.sampled_from([None, [], [{"environmentId": "local", "cwd": "/"}]]),
    "runtimeWorkspaceRoots": st.one_of(st.none(), st.lists(st.sampled_from(PATHS), max_size=2)),
    "selectedCapabilityRoots": st.sampled_from([None, [], [{"id": "x", "location": {}}]]),
    "cwd": st.sampled_from([*PATHS, [ROOT], 3]),
    "path": st.sampled_from(PATHS),
    "history": st.sampled_from([None, [], [{"type": "message"}]]),
    "projectId": st.sampled_from([None, "p"]),
    "input": st.sampled_from(
        [
            [{"type": "text", "text": "danger-full-access is only a word here"}],
            [{"type": "localImage", "path": "/etc/passwd"}],
            [{"type": "localImage", "path": f"{ROOT}/x.png"}],
            [{"type": ["text"]}],
            [{"path": "/etc/passwd"}],
            "text",
        ]
    ),
    "sandbox_policy": st.just({"type": "dangerFullAccess"}),
    "sandboxMode": st.just("danger-full-access"),
    "newFangledEscape": st.just(True),
    "model": st.just("m"),
}
CALLS = ["thread/start", "thread/resume", "thread/fork", "turn/start", "review/start", "thread/settings/update"]


def inside(path: Any) -> bool:
    return isinstance(path, str) and (path == ROOT or path.startswith(ROOT + "/")) and ".." not in path


@given(
    ceiling=st.sampled_from(MODES[:2]),
    method=st.sampled_from([*CALLS, "turn/steer", "thread/queue/add", "command/exec", "turn/settings/update"]),
    params=st.fixed_dictionaries({}, optional=VALUES),
)
@example(ceiling="read-only", method="thread/start", params={})
@example(ceiling="workspace-write", method="turn/start", params={"sandboxPolicy": {"type": "workspaceWrite"}})
def test_no_combination_of_parameters_is_wider_than_the_ceiling(
    ceiling: str, method: str, params: dict[str, Any]
) -> None:
    named = params if method in ("thread/start", "command/exec") else {"threadId": "t1", **params}
    subject = access_policy(sandbox=ceiling, methods=("command/exec",))
    verdict = check(subject, method, named, thread=None if named is params else record())
    if isinstance(verdict, Refusal):
        assert verdict.message.startswith(method) and verdict.data["what"]
        return
    sent = {name: value for name, value in passed(verdict).items() if value is not None}
    # What may be said is listed here once more, so that a rule that is forgotten there is missed here.
    assert sent.get("sandbox", "read-only") in MODES[: MODES.index(ceiling) + 1]
    assert sent.get("approvalPolicy", "never") == "never" and sent.get("approvalsReviewer", "user") == "user"
    if method in ("thread/start", "thread/resume", "thread/fork"):
        assert "sandbox" in sent and "approvalPolicy" in sent
    policy = sent.get("sandboxPolicy", {"type": "readOnly"})
    assert policy["type"] == "readOnly" or (policy["type"] == "workspaceWrite" and ceiling == "workspace-write")
    assert policy.get("networkAccess", False) is False and "access" not in policy
    assert all(inside(root) for root in policy.get("writableRoots", []))
    assert method != "command/exec" or "sandboxPolicy" in sent
    config = sent.get("config", {})
    if method in ("thread/start", "thread/resume", "thread/fork"):
        untrusted = trust.untrusting(sent["cwd"])
        assert untrusted.items() <= config.items()
        config = {name: value for name, value in config.items() if name not in untrusted}
    assert set(config) <= {"model_verbosity"} and all(isinstance(value, str) for value in config.values())
    assert not any(sent.get(name) for name in ("permissions", "environments", "selectedCapabilityRoots", "history"))
    assert "path" not in sent or not method.startswith("thread/")
    assert "projectId" not in sent and "permissions" not in sent
    assert inside(sent.get("cwd", ROOT)) and all(inside(path) for path in sent.get("runtimeWorkspaceRoots", []))
    if method != "command/exec":
        assert not {"sandbox_policy", "sandboxMode", "newFangledEscape"} & set(sent)
    for item in sent.get("input", []):
        assert inside(item.get("path", ROOT)) and isinstance(item["type"], str)


# Directories.


def test_directories_by_their_real_paths(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "rootless"
    (root / "below").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (tmp_path / "alias").symlink_to(root)
    subject = AccessPolicy(
        [Identity(name="alice", principal="P-alice", cwd_roots=(str(tmp_path / "alias"),))], default_cwd=str(outside)
    )

    def start(cwd: object) -> bytes | Refusal:
        return check(subject, "thread/start", {"cwd": None if cwd is None else str(cwd)})

    for cwd in (root, root / "below", root / "not-there-yet", tmp_path / "alias" / "below", f"{root}/"):
        passed(start(cwd))
    for cwd in (outside, root / "link", root / "link" / "x", root / ".." / "root", tmp_path, "below", "", f"{root}\0"):
        refused(start(cwd), "cwd", str(tmp_path / "alias"))
    refused(start(None), "cwd", str(outside), "without cwd")
    # A link may point elsewhere by the time it is used.
    assert passed(start(tmp_path / "alias" / "below"))["cwd"] == str(root / "below")
    refused(start(root / "/".join("d" * 100)), "cwd", "levels deep")


def test_a_directory_whose_real_path_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / os.fsdecode(b"\xff"))
    subject = AccessPolicy([Identity(name="alice", principal="P-alice", cwd_roots=(str(tmp_path),))])
    refused(check(subject, "thread/start", {"cwd": str(tmp_path / "link")}), "cwd")


# What lies in a directory.


def test_every_start_resume_and_fork_marks_its_directory_untrusted() -> None:
    def keys(method: str, params: dict[str, Any], **fields: Any) -> set[str]:
        named = params if method == "thread/start" else {"threadId": "t1", **params}
        sent = passed(check(access_policy(), method, named, thread=record(**fields)))
        assert sent["config"]["skills.include_instructions"] is False and sent["sandbox"] and sent["approvalPolicy"]
        assert set(map(str, sent["config"]["projects"].values())) == {"{'trust_level': 'untrusted'}"}
        assert trust.is_untrusting(json.dumps(sent["config"]).encode(), sent["cwd"])
        return set(sent["config"]["projects"])

    parents = {ROOT, "/srv", "/"}
    assert keys("thread/start", {"cwd": f"{ROOT}/a/b"}) == {f"{ROOT}/a", f"{ROOT}/a/b", *parents}
    assert keys("thread/start", {}) == parents
    for method in ("thread/resume", "thread/fork"):
        assert keys(method, {"cwd": f"{ROOT}/a"}, cwd=f"{ROOT}/b") == {f"{ROOT}/a", *parents}
        assert keys(method, {}, cwd=f"{ROOT}/b") == {f"{ROOT}/b", *parents}
        refused(check(access_policy(), method, {"threadId": "t1"}, thread=record(cwd=None)), "cwd", "not known")
    said = {"projects": {"/x": {"trust_level": "untrusted"}}, "skills.config": [{"path": "/x", "enabled": False}]}
    kept = passed(check(access_policy(), "thread/start", {"config": said}))["config"]
    assert ROOT in kept["projects"] and kept["skills.config"]
    kept = passed(check(access_policy(), "thread/start", {"config": {"model_verbosity": "low"}}))["config"]
    assert kept["model_verbosity"] == "low" and kept["projects"]


@pytest.mark.parametrize(
    "config",
    [
        {"projects": {}},
        {"projects": None},
        {"projects": {ROOT: {"trust_level": "trusted"}}},
        {"projects": {ROOT: {"trust_level": "untrusted"}, "/": {}}},
        {"projects./srv/alice.trust_level": "trusted"},
        {"skills": {}},
        {"skills.include_instructions": True},
        {"skills.config": [{"path": ROOT, "enabled": True}]},
        {"project_doc_max_bytes": 1},
    ],
)
def test_no_client_says_what_is_trusted(config: dict[str, Any]) -> None:
    for method in ("thread/start", "thread/resume", "thread/fork"):
        named = {"threadId": "t1", "config": config} if method != "thread/start" else {"config": config}
        refused(check(access_policy(), method, named, thread=record()), "config")


def test_full_access_may_trust() -> None:
    config = {"projects": {ROOT: {"trust_level": "trusted"}}}
    sent = passed(check(access_policy(sandbox="danger-full-access"), "thread/start", {"cwd": ROOT, "config": config}))
    assert sent == {"cwd": ROOT, "config": config}


def test_what_reads_a_project_is_answered_without_it() -> None:
    subject = access_policy(methods=tuple(WITHOUT))
    for method, instead in WITHOUT.items():
        if rule_of(method) in ("refused", "empty"):
            continue
        for name, value in instead.items():
            given = "t1" if name == "threadId" else [f"{ROOT}/a"] if name == "cwds" else f"{ROOT}/a"
            for params in ({name: given}, {}):
                sent = passed(check(subject, method, params, thread=record()))
                assert sent == ({} if value is None else {name: value}), method


def test_every_method_is_decided() -> None:
    undecided = [method for method in {*REQUESTS, *POOL_METHODS} if treatment(method) is None]
    assert undecided == []
    told = {method for method in REQUESTS if treatment(method) == "untrusted"}
    assert told == {"thread/start", "thread/resume", "thread/fork"}
    refused(check(access_policy(methods=("new/*",)), "new/method", {}), "method", "an admin")


def test_the_documented_treatments_are_those_that_hold() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "security.md").read_text()
    for method in WITHOUT:
        assert f"`{method}`" in text, f"docs/security.md says nothing of {method}"


def test_without_roots_no_directory_is_allowed() -> None:
    refused(check(access_policy(cwd_roots=()), "thread/start", {"cwd": "/"}), "cwd", "it has none")
    refused(check(access_policy(cwd_roots=()), "thread/start", {}), "cwd")
    passed(check(access_policy(cwd_roots=("/",)), "thread/start", {"cwd": "/anywhere"}))


def test_paths_of_granted_files_are_in_the_roots_too() -> None:
    subject = access_policy(methods=("fs/*",), sandbox="workspace-write")
    passed(check(subject, "fs/copy", {"sourcePath": f"{ROOT}/a", "destinationPath": f"{ROOT}/b"}))
    refused(check(subject, "fs/copy", {"sourcePath": "/etc/passwd", "destinationPath": f"{ROOT}/b"}), "sourcePath")
    refused(check(subject, "fs/writeFile", {"path": "/etc/passwd", "dataBase64": ""}), "path")


# Bounds.


def test_bounds_on_bytes_threads_and_turns() -> None:
    subject = access_policy(max_message_bytes=200_000, max_threads=3, max_turns=2)
    assert subject.check_size("P-alice", b"x" * 200_000) is None
    large = subject.check_size("P-alice", b"x" * 200_001)
    assert large is not None
    refused(large, "message", "200000 bytes", "--max-message-bytes")
    dense = subject.check_size("P-alice", b'{"id":1,"params":[' + b"{}," * 40_000 + b"{}]}")
    assert dense is not None
    refused(dense, "message", "50000 values")
    passed(check(subject, "thread/start", {}, counts=Counts(2, 9)))
    refused(check(subject, "thread/start", {}, counts=Counts(3, 0)), "threads", "3 threads", "--max-threads")
    turn = {"threadId": "t1", "input": []}
    passed(check(subject, "turn/start", turn, thread=record(), counts=Counts(9, 1)))
    verdict = check(subject, "turn/start", turn, thread=record(), counts=Counts(9, 2))
    assert isinstance(verdict, Refusal) and verdict.code == -32001 and verdict.data["retryAfterMs"] > 0
    assert "2 turns" in verdict.message


@pytest.mark.parametrize("line", [b"", b"[]", b"[1]", b"1", b"\xff", b'{"id":1}'])
def test_an_answer_that_cannot_be_read_is_no_consent(line: bytes) -> None:
    assert "error" in json.loads(access_policy().check_answer("P-alice", line))


@given(st.binary(max_size=60), st.sampled_from(["thread/start", "turn/start", "x"]))
def test_whatever_comes_is_judged_or_refused(line: bytes, method: str) -> None:
    assert isinstance(access_policy().check("P-alice", method, line, None, Counts()), Refusal)
    answered = json.loads(
        access_policy().check_answer("P-alice", b'{"id":1,"result":' + json.dumps(line.hex()).encode() + b"}")
    )
    assert "error" in answered


def test_what_a_client_makes_up_is_neither_echoed_at_length_nor_counted_by_its_name() -> None:
    long = "x" * 10_000
    for method, params in (
        (long, {}),
        ("thread/start", {long: 1}),
        ("thread/read", {"threadId": long}),
        ("thread/start", {"config": {long: 1}}),
        ("turn/start", {"threadId": "t1", "sandboxPolicy": {"type": "readOnly", long: 1}}),
        ("thread/start", {"cwd": long}),
    ):
        verdict = check(access_policy(), method, params, thread=record())
        assert isinstance(verdict, Refusal) and len(verdict.message) < 500 and len(verdict.data["what"]) < 40


def test_a_turn_of_no_thread_is_refused_before_an_app_server_sees_it() -> None:
    policy = AccessPolicy(
        [Identity(name="a", principal="p", cwd_roots=("/srv",))], default_cwd="/srv", realpath=lambda path: path
    )
    line = b'{"id":1,"method":"turn/start","params":{"input":[]}}'
    verdict = policy.check("p", "turn/start", line, None, Counts())
    assert isinstance(verdict, Refusal) and "threadId is missing" in verdict.message
