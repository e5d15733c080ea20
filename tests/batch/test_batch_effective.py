"""The effective configuration: what of it counts, what is left out, and what tells two of them apart."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from runs import make_older, make_run

from codex_batch.configuration.effective import (
    Answered,
    Effective,
    OfSample,
    differences,
    fingerprint,
    keys_of,
    of_sample,
    unlike,
    version_class,
)
from codex_batch.configuration.fingerprints import Fingerprints
from codex_batch.configuration.without_secrets import without_secrets
from codex_batch.dataset import Sample
from codex_batch.report.write import write_run_report
from codex_batch.store import Entry, RecordRow, RunDirectory, RunDirectoryError, open_run
from codex_batch.store.schema import MIGRATIONS

A = Effective(
    model="model-a",
    provider="loopback",
    effort="low",
    configured_effort="low",
    sandbox="read-only",
    approval_policy="never",
    keys={"features": {"apps": False}, "model_providers.loopback": {"base_url": "http://127.0.0.1:4711/v1"}},
    codex_version="0.163.0",
)


def other(**changed: Any) -> Effective:
    return msgspec.structs.replace(A, **changed)


def origins(config: dict[str, Any], path: str = "") -> dict[str, Any]:
    """The origins of a configuration of which everything is set, as config/read answers them."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= origins(value, f"{path}{name}.")
        elif isinstance(value, list):
            found |= {f"{path}{name}.{place}": {} for place in range(len(value))}
        elif value is not None:
            found[f"{path}{name}"] = {}
    return found


def keys(config: dict[str, Any], **options: Any) -> dict[str, Any]:
    given = {"origins": origins(config), "provider": "own", "digest": lambda path: f"digest of {path}", **options}
    return keys_of(config, given["origins"], given["provider"], given["digest"])


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "model-b"},
        {"provider": "other"},
        {"effort": "high"},
        {"sandbox": "workspace-write"},
        {"approval_policy": "on-request"},
        {"service_tier": "fast"},
        {"guarded": False},
        {"trusting": True},
        {"sources": {"/home/AGENTS.md": "1"}},
        {"keys": {"features": {"apps": True}}},
        {"keys": None},
        {"codex_version": "1.0.0"},
        {"codex_version": None},
    ],
    ids=str,
)
def test_what_changes_an_agent_changes_the_fingerprint_and_is_named(changed: dict[str, Any]) -> None:
    assert fingerprint(other(**changed)) != fingerprint(A)
    (name,) = changed
    assert any(
        name.replace("_", " ") in said or name == "keys"
        for said in differences(A.to_json(), other(**changed).to_json())
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"codex_version": "0.171.2"},
        {"codex_version": "0.164.0-alpha.3"},
        {"keys": {**(A.keys or {}), "model_providers.loopback": {"base_url": "http://127.0.0.1:9/v1"}}},
    ],
    ids=str,
)
def test_an_upgrade_and_another_port_of_this_machine_are_no_change(changed: dict[str, Any]) -> None:
    assert fingerprint(other(**changed)) == fingerprint(A)
    assert differences(A.to_json(), other(**changed).to_json()) == []


def test_a_version_counts_by_its_class() -> None:
    assert version_class("0.163.0") == version_class("0.200.1") != version_class("1.2.3")
    assert version_class(None) == version_class("") == version_class("dev") == "unknown"


def test_what_a_sample_asks_for_itself_takes_the_place_of_what_is_configured() -> None:
    own = of_sample({"model": "m", "effort": "high", "sandbox": "read-only"})
    assert fingerprint(A, own) == fingerprint(other(model="b", effort="x", configured_effort="x", sandbox="y"), own)
    assert fingerprint(A, OfSample(model="m")) != fingerprint(other(configured_effort="high"), OfSample(model="m"))
    # The default effort is that of the model, so another one of the configured model does not count.
    assert fingerprint(A, OfSample(model="m")) == fingerprint(other(effort="medium"), OfSample(model="m"))
    assert of_sample({"workspace": {"files": {}}}).sandbox == "workspace-write"
    assert fingerprint(A, of_sample({})) == fingerprint(A)


def test_instructions_of_a_directory_are_part_of_a_sample(tmp_path: Path) -> None:
    spec = {"cwd": str(tmp_path)}
    template = {"workspace": {"template": str(tmp_path)}}
    before = Fingerprints(A)(spec), Fingerprints(A)(template)
    (tmp_path / "AGENTS.md").write_text("Answer in French.")
    after = Fingerprints(A)(spec), Fingerprints(A)(template)
    assert before[0] != after[0] and before[1] != after[1]
    (tmp_path / "notes.txt").write_text("x")
    assert (Fingerprints(A)(spec), Fingerprints(A)(template)) == after


def test_only_what_is_set_and_listed_counts() -> None:
    config = {
        "features": {"apps": False, "by_default": True},
        "model_verbosity": "low",
        "project_doc_max_bytes": 32768,
        "projects": {"/x": {"trust_level": "trusted"}},
        "tui": {"theme": "x"},
        "notify": ["x"],
        "sqlite_home": "/x",
        "permissions": {"mine": {"extends": ":workspace"}, "codex-pool-workspace-write": {"extends": ":workspace"}},
        "mcp_servers": {"on": {"command": "a"}, "off": {"command": "b", "enabled": False}},
        "model_providers": {"own": {"wire_api": "responses", "request_max_retries": 3}, "other": {"wire_api": "x"}},
    }
    given = {name: {} for name in origins(config) if name not in ("features.by_default", "project_doc_max_bytes")}
    assert keys(config, origins=given) == {
        "features": {"apps": False},
        "mcp_servers": {"on": {"command": "a"}},
        "model_providers.own": {"wire_api": "responses"},
        "model_verbosity": "low",
        "permissions": {"mine": {"extends": ":workspace"}},
    }


def test_files_that_the_configuration_names_count_by_their_content() -> None:
    config = {"model_instructions_file": "/a/instructions.md", "agents": {"rev": {"config_file": "/a/rev.toml"}}}
    first = other(keys=keys(config))
    moved = {"model_instructions_file": "/b/instructions.md", "agents": {"rev": {"config_file": "/b/rev.toml"}}}
    digests = {"/b/instructions.md": "digest of /a/instructions.md", "/b/rev.toml": "digest of /a/rev.toml"}
    assert fingerprint(first) == fingerprint(other(keys=keys(moved, digest=digests.get)))
    assert fingerprint(first) != fingerprint(other(keys=keys(config, digest=lambda path: "another")))
    # A file that cannot be read counts by its name.
    assert fingerprint(other(keys=keys(config, digest=lambda path: None))) != fingerprint(
        other(keys=keys(moved, digest=lambda path: None))
    )


SECRETS = {
    "mcp_servers": {
        "local": {
            "command": "docker",
            "args": [
                *(
                    "run",
                    "-e",
                    "TOKEN=S01",
                    "--api-key",
                    "S02",
                    "--header=S03",
                    "https://u:S04@h.example/p?key=S05",
                    "-H",
                ),
                *("Authorization: S06", "sk-S07aaaaaaaaaaaaaaaaa", "-u", "server.py"),
            ],
            "env": {"PASSWORD": "S08"},
            "env_vars": ["HOME"],
        },
        "we.b": {
            "url": "https://S09@h.example/mcp?token=S10",
            "http_headers": {"X-Key": "S11"},
            "env_http_headers": {"X-Other": "VARIABLE"},
            "bearer_token": "S12",
            "bearer_token_env_var": "NAME_OF_VARIABLE",
            "oauth": {"client_secret": "S13"},
        },
    },
    "shell_environment_policy": {"set": {"KEY": "S14"}, "inherit": "core"},
    "model_providers": {
        "own": {
            "base_url": "https://u:S15@h.example/v1?api-key=S16",
            "query_params": {"api-version": "S17"},
            "http_headers": {"Authorization": "Bearer S18"},
            "experimental_bearer_token": "S19",
            "env_key": "NAME_OF_KEY",
            "auth": {"command": "S20"},
        }
    },
    "hooks": {"Stop": [{"command": "curl -H 'X: y' https://h.example/?S21 TOKEN=S22 Bearer S23aaaaaaaaaaaaaaaa"}]},
}


def _with(value: Any, before: str, after: str) -> Any:
    return json.loads(json.dumps(value).replace(before, after))


def test_secrets_are_neither_stored_nor_hashed() -> None:
    found = keys(SECRETS)
    shown = json.dumps(found)
    left = [f"S{number:02}" for number in range(1, 24) if f"S{number:02}" in shown]
    assert left == []
    for name in ("docker", "run", "PASSWORD", "HOME", "h.example/mcp", "X-Key", "X-Other", "NAME_OF_VARIABLE"):
        assert name in shown
    for name in ("KEY", "core", "https://h.example/v1", "api-version", "Authorization", "NAME_OF_KEY", "server.py"):
        assert name in shown
    for number in range(1, 24):
        changed = _with(SECRETS, f"S{number:02}", f"T{number:02}")
        assert fingerprint(other(keys=keys(changed))) == fingerprint(other(keys=found)), number


def test_arguments_that_are_no_secrets_count() -> None:
    for first, second in (
        (["-u", "a.py"], ["-u", "b.py"]),
        (["-e", "code"], ["-e", "other"]),
        (["--port", "1"], ["--port", "2"]),
        (["basic math"], ["basic logic"]),
        (["NAME=a"], ["OTHER=a"]),
    ):
        assert without_secrets(first, "args") != without_secrets(second, "args")


def test_a_thread_with_other_settings_is_told_from_the_runs() -> None:
    same = Answered(model="model-a", provider="loopback", effort="low", codex_version="0.171.0")
    assert unlike(A, OfSample(), same) is None
    assert unlike(A, OfSample(), Answered()) is None
    for changed, words in (
        ({"model": "b"}, "model is 'b'"),
        ({"effort": "x"}, "effort"),
        ({"provider": "p"}, "provider"),
    ):
        assert words in (unlike(A, OfSample(), msgspec.structs.replace(same, **changed)) or "")
    # What a sample asks for itself is its own.
    assert unlike(A, OfSample(model="m", effort="x"), Answered(model="n", effort="high")) is None


# In a run directory.


def entry(name: str, **spec: Any) -> Entry:
    return Entry(name, 1, f"digest-{name}", {"id": name, "prompts": ["p"], **spec})


ENTRIES = [entry("a"), entry("b"), entry("own", model="m", effort="high", sandbox="read-only")]


def launch(directory: RunDirectory, effective: Effective, entries: list[Entry] = ENTRIES, **options: Any) -> Any:
    whole = [(each.id, each.digest) for each in ENTRIES] if len(entries) < len(ENTRIES) else None
    directory.load(entries, "d.jsonl", rerun_changed=options.get("rerun_changed", False), whole=whole)
    done = directory.configure(
        Fingerprints(effective),
        differences=lambda before, variant: "; ".join(differences(before, effective.to_json())),
        **options,
    )
    directory.launch({"effective": effective.to_json()})
    return done


def run_all(directory: RunDirectory, **of_record: Any) -> list[str]:
    names = []
    for row in directory.to_do(10):
        start = directory.start_attempt(row.n, "key", "thread").result(5)
        record = RecordRow("completed", start.attempt, thread_id="thread", **{"model": "model-a", **of_record})
        directory.finish(start, record, {"status": "completed"}).result(5)
        names.append(row.id)
    return names


def test_another_configuration_is_refused_by_name_or_run_again(tmp_path: Path) -> None:
    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        launch(directory, A, ENTRIES[:1])
        run_all(directory)
        launch(directory, A)
        assert run_all(directory) == ["b", "own"]
        b = other(model="model-b", effort="high", configured_effort="high")
        before = directory.store.info()["launches"]
        with pytest.raises(RunDirectoryError) as refused:
            launch(directory, b)
        assert "(model: model-a, now model-b; effort: low, now high): 'a', 'b'; use another" in str(refused.value)
        assert directory.store.info()["launches"] == before and directory.to_do(10) == []
        # The sample that names all of it itself is as it was.
        assert launch(directory, b, rerun_changed=True).again == 2
        assert run_all(directory, model="model-b") == ["a", "b"]
        assert directory.store.answered()["model"] == {"model-b": 2, "model-a": 1}
        rows = {row.id: row for row in directory.store.samples()}
        assert [rows[name].record.launch for name in ("a", "b", "own")] == [3, 3, 2]  # type: ignore[union-attr]
        assert all(row.record is not None and row.record.fingerprint == row.fingerprint for row in rows.values())


def test_what_is_not_asked_for_is_not_left_of_another_configuration(tmp_path: Path) -> None:
    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        launch(directory, A, ENTRIES[:2])
        run_all(directory)
        for options in ({}, {"rerun_changed": True}):
            with pytest.raises(RunDirectoryError, match="another configuration"):
                launch(directory, other(model="b"), ENTRIES[:1], **options)
        with pytest.raises(RunDirectoryError, match="1 of them are not among the samples of this run"):
            launch(directory, other(model="b"), ENTRIES[:1], rerun_changed=True)


def test_a_turn_of_another_configuration_is_not_taken_up(tmp_path: Path) -> None:
    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        launch(directory, A, ENTRIES[:1])
        n = directory.to_do(1)[0].n
        directory.start_attempt(n, "key", "thread").result(5)
        launch(directory, A, ENTRIES[:1])
        assert directory.store.attempts(n)[-1].status is None
        launch(directory, other(effort="high"), ENTRIES[:1])
        (attempt,) = directory.store.attempts(n)
        assert attempt.status == "lost" and attempt.fingerprint != directory.store.sample_at(n).fingerprint


def test_a_stopped_rerun_leaves_no_line_of_the_configuration_before(tmp_path: Path) -> None:
    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        launch(directory, A, ENTRIES[:2])
        run_all(directory)
    with contextlib.closing(RunDirectory(tmp_path)) as directory:
        launch(directory, other(model="b"), ENTRIES[:2], rerun_changed=True)
        n = directory.to_do(1)[0].n
        start = directory.start_attempt(n, "key", "thread").result(5)
        directory.finish(start, RecordRow("completed", start.attempt, model="b"), {"status": "completed"}).result(5)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line["id"], line["model"]) for line in lines] == [("a", "b")]


@pytest.mark.parametrize("version", [2, len(MIGRATIONS) - 1])
def test_an_older_run_is_read_and_continued(tmp_path: Path, version: int) -> None:
    out = tmp_path / "run"
    samples = [(Sample(id=name, prompts=("p",)), "yes") for name in "ab"]
    make_run(out, samples)
    make_older(out, version)
    before = (out / "run.sqlite").read_bytes()
    with open_run(out) as store:
        assert [row.id for row in store.samples()] == ["a", "b"]
        row = store.sample("a")
        assert row.record is not None and (row.record.model, row.record.fingerprint) == (None, None)
        assert len(store.attempts(row.n)) == 1
        assert (row.variant, store.variants(), store.variant_names()) == ("", [], [])
        assert store.counts()["completed"] == 2
        assert set(store.answered()["model"]) <= {"unknown"}
        write_run_report(store, tmp_path / "report.html")
    assert (out / "run.sqlite").read_bytes() == before
    with contextlib.closing(RunDirectory(out)) as directory:
        entries = [Entry(s.id, s.epoch, s.digest, s.to_json(), s.tags) for s, _ in samples]
        directory.load([*entries, entry("c")], "d.jsonl")
        assert directory.configure(Fingerprints(A)).unknown == 2
        directory.launch({"effective": A.to_json()})
        assert run_all(directory) == ["c"]
    with open_run(out) as store:
        record = store.sample("c").record
        assert record is not None and (record.model, record.launch) == ("model-a", 2)
        assert [row.id for row in store.samples(state="done")] == ["a", "b", "c"]
