"""Every verb on every home: the ordinary ones work, those that cannot work are one clear error at once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from any_home import UNSANDBOXED, AnyHome, make_any_home
from programs import LIMIT_S, codex_pool, running, started
from read_only import read_only

from codex_app_server import AppServerConfig, Codex, HomeError
from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, Text, ToolCall
from codex_pool import Pool, connect
from codex_pool.configuration import ConfigurationError

pytestmark = pytest.mark.real
SECRET = "THE-ANSWER"
# Homes that differ in what a pool makes of them.
OWN_POOL = ("missing", "own profile", "shared databases")


def cheat(model: LoopbackModel, data: Path, home: Path) -> None:
    """Have the agent look for the answer and for a login, and a judge be content."""
    grade = Text(json.dumps({"explanation": "fine", "grade": "correct"}))
    rules = (
        Rule(grade, contains="grading an answer"),
        Rule(
            ToolCall(f"cat {data} '{home}/auth.json' '{home.parent}/secrets.json'; echo looked", Text("{output}")),
            contains="cheat",
        ),
    )
    model.script = Script(rules)


def samples(path: Path) -> Path:
    path.write_text(json.dumps({"id": "a", "prompt": "cheat", "target": SECRET}) + "\n")
    return path


def test_the_sdk_works(each_home: AnyHome, work: Path) -> None:
    with Codex(_config(each_home, work)) as codex:
        assert codex.thread_start().run("hello").final_response


@pytest.mark.parametrize("kind", OWN_POOL)
def test_a_pool_works(kind: str, tmp_path: Path, work: Path, model: LoopbackModel) -> None:
    """A program's own pool; a daemon's has each home, below."""
    home = make_any_home(kind, tmp_path, model.base_url)
    with Pool(2, _config(home, work), log_file=work / "pool.log") as pool, pool.connect() as codex:
        _check_pool(codex, home, work)


def test_run_and_batch_work_and_answers_are_guarded(each_home: AnyHome, tmp_path: Path, model: LoopbackModel) -> None:
    data = samples(tmp_path / "d.jsonl")
    cheat(model, data, each_home.path)
    ran = codex_pool("run", "hello", *each_home.options, home=each_home.path, cwd=tmp_path)
    assert (ran.returncode, ran.stdout[:9]) == (0, "You said:"), ran.stderr
    out = tmp_path / "out"
    small = ("--workers", "1", *each_home.options)
    batch = codex_pool("batch", str(data), "--scorer", "exact", "-o", str(out), *small, home=each_home.path)
    assert batch.returncode == 0, batch.stderr
    (record,) = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    assert "looked" in record["final_response"], record
    assert (SECRET in record["final_response"]) == (each_home.kind in UNSANDBOXED), record
    assert "sk-test" not in record["final_response"]
    assert ("can read the dataset" in batch.stderr) == (each_home.kind in UNSANDBOXED)
    # Elsewhere a judge asks the daemon: its own pool is made and started as that of the batch is.
    if each_home.kind in OWN_POOL:
        score = codex_pool("score", str(out), "--scorer", "judge", *small, home=each_home.path)
        assert score.returncode == 0 and "1.000" in score.stderr, score.stderr
    config = each_home.path / "config.toml"
    assert not config.exists() or "trust_level" not in config.read_text() or each_home.kind == "projects"


def test_a_daemon_works_and_scores_and_guards_answers(
    each_home: AnyHome, tmp_path: Path, work: Path, model: LoopbackModel
) -> None:
    data = samples(tmp_path / "d.jsonl")
    cheat(model, data, each_home.path)
    with running("serve", "--workers", "2", *each_home.options, home=each_home.path) as daemon:
        daemon.wait_for_line("stop  Ctrl-C")
        with connect() as codex:
            _check_pool(codex, each_home, work)
        batch = codex_pool(
            "batch", str(data), "--scorer", "exact", "--connect", "default", "-o", str(tmp_path / "out"), cwd=tmp_path
        )
        assert batch.returncode == 0, batch.stderr
        judge = ("--scorer", "judge", "--connect", "default")
        score = codex_pool("score", str(tmp_path / "out"), *judge, cwd=tmp_path)
        assert score.returncode == 0 and "1.000" in score.stderr, score.stderr
        assert daemon.end() == 0
    (record,) = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert "looked" in record["final_response"], record
    assert (SECRET in record["final_response"]) == (each_home.kind in UNSANDBOXED), record
    assert "sk-test" not in record["final_response"]


def _config(home: AnyHome, work: Path) -> AppServerConfig:
    return AppServerConfig(cwd=work, env={"CODEX_HOME": str(home.path)}, config_overrides=home.overrides)


def _check_pool(codex: Codex, home: AnyHome, work: Path) -> None:
    """Both workers of a pool run turns, each with databases of its own, whatever the configuration says."""
    threads = [codex.thread_start(sandbox="workspace-write", cwd=str(work)) for _ in range(2)]
    assert all(thread.run("hello").final_response for thread in threads)
    databases = home.path / "codex-pool" / "sqlite"
    assert all(list(databases.glob(f"{slot}/state*.sqlite")) for slot in (0, 1))


# What cannot work.

BROKEN = {
    "no TOML": ('model = "m', r"config.toml"),
    "a value that is none": ('sandbox_mode = "bogus"\n', "unknown variant `bogus`"),
    "no such provider": ('model_provider = "nope"\n', "Model provider `nope` not found"),
    "profiles without a default": ('[permissions.x]\nextends = ":workspace"\n', "does not set `default_permissions`"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_configuration_is_one_error_at_once_and_mended_without_a_restart(
    kind: str, tmp_path: Path, home: Path, work: Path
) -> None:
    good, (text, words) = (home / "config.toml").read_text(), BROKEN[kind]
    config = AppServerConfig(cwd=work, env={"CODEX_HOME": str(home)})
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "hello"}\n')
    batch = ("batch", str(data), "--workers", "1", "-o", str(tmp_path / "out"))
    (home / "config.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        Pool(1, config, log_file=work / "pool.log").start()
    for arguments in (("run", "hello"), ("serve", "--workers", "1"), batch):
        done = codex_pool(*arguments, home=home, cwd=work)
        assert done.returncode == 3 and words in done.stderr, (arguments, done.stderr)
        # The line of a batch that says what it runs is no message about the configuration.
        lines = [line for line in done.stderr.splitlines() if not line.startswith("batch: ")]
        assert len(lines) == 1 and lines[0].startswith("codex-pool: "), done.stderr
        if arguments is batch and "config.toml:" in done.stderr:
            assert f"{home}/config.toml (copied to " in done.stderr, done.stderr
    (home / "config.toml").write_text(good)
    with Codex(config) as codex, Pool(1, config, log_file=work / "pool.log") as pool, pool.connect() as pooled:
        for client in (codex, pooled):
            (home / "config.toml").write_text(text)
            with pytest.raises(Exception, match=words):
                client.thread_start(ephemeral=True)
            (home / "config.toml").write_text(good)
            assert client.thread_start(ephemeral=True).run("hello").final_response
    assert codex_pool(*batch, home=home, cwd=work).returncode == 0


def test_a_home_that_is_no_directory_is_one_error(tmp_path: Path, work: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(HomeError, match=f"CODEX_HOME {file} is not a directory"):
        Codex(AppServerConfig(cwd=work, env={"CODEX_HOME": str(file)}))
    for verb in (("run", "hello"), ("serve",)):
        done = codex_pool(*verb, home=file, cwd=work)
        assert done.returncode == 3 and len(done.stderr.splitlines()) == 1
        assert "is not a directory" in done.stderr


def test_the_user_home_is_used_only_where_threads_are_to_be_shared(
    home: Path, tmp_path: Path, work: Path, model: LoopbackModel
) -> None:
    config = AppServerConfig(cwd=work, env={"CODEX_HOME": str(home)})
    with Codex(config) as codex:
        before = codex.thread_start()
        before.run("hello")
    trusted = f'\n[projects."{work}"]\ntrust_level = "trusted"\n'
    (home / "config.toml").write_text((home / "config.toml").read_text() + trusted)
    text = (home / "config.toml").read_text()
    keys = str(tmp_path / "keys")
    assert codex_pool("keys", "new", "alice", "--keys", keys, "-o", str(tmp_path / "alice.key")).returncode == 0
    listen = ("serve", "--workers", "1", "--keys", keys, "--listen", "tcp://127.0.0.1:7691")
    state = Path(os.environ["XDG_STATE_HOME"])
    with running(*listen, home=home) as daemon:
        notice = daemon.wait_for_line("1 thread stays")
        assert before.id in notice and str(home) in notice
        copy = daemon.wait_for_line("cp -a").partition("then   ")[2]
        daemon.wait_for_line("stop  Ctrl-C")
        ran = codex_pool("run", "hello", "--connect", "default", "--sandbox", "workspace-write", "--cwd", str(work))
        assert ran.returncode == 0, ran.stderr
        assert daemon.end() == 0
    own = state / "codex-pool" / "default"
    assert "projects" not in (own / "config.toml").read_text().partition(str(work))[0]
    # Nothing was trusted, and no thread stored, in the user's home.
    assert (home / "config.toml").read_text() == text
    assert os.system(copy) == 0
    with running(*listen, home=home) as daemon:
        daemon.wait_for_line("stop  Ctrl-C")
        assert not any("stays" in line for line in daemon.lines["stderr"])
        with Codex(config) as codex:
            assert codex.thread_resume(before.id).run("again").final_response
        assert daemon.end() == 0
    with Codex(AppServerConfig(cwd=work, env={"CODEX_HOME": str(own)})) as codex:
        assert codex.thread_resume(before.id).run("again").final_response


def test_a_batch_over_tcp_asks_for_what_its_key_allows(home: Path, tmp_path: Path) -> None:
    keys, key, endpoint = str(tmp_path / "keys"), str(tmp_path / "bob.key"), "tcp://127.0.0.1:7692"
    root = ("--cwd-root", str(tmp_path))
    made = codex_pool("keys", "new", "bob", "--keys", keys, "-o", key, "--sandbox", "workspace-write", *root)
    assert made.returncode == 0, made.stderr
    data = samples(tmp_path / "d.jsonl")
    with running("serve", "--workers", "1", "--keys", keys, "--listen", endpoint, home=home) as daemon:
        daemon.wait_for_line("stop  Ctrl-C")
        connected = ("--connect", endpoint, "--key", key)
        batch = codex_pool("batch", str(data), *connected, "-o", str(tmp_path / "out"), cwd=tmp_path)
        assert batch.returncode == 0, batch.stderr
        assert daemon.end() == 0


def test_a_login_is_denied_also_where_the_daemon_has_a_home_of_its_own(tmp_path: Path, model: LoopbackModel) -> None:
    each, data = make_any_home("only auth.json", tmp_path, model.base_url), samples(tmp_path / "d.jsonl")
    cheat(model, data, each.path)
    with running("serve", "--workers", "1", "--home", "own", *each.options, home=each.path) as daemon:
        daemon.wait_for_line("stop  Ctrl-C")
        out = tmp_path / "out"
        batch = codex_pool("batch", str(data), "--connect", "default", "-o", str(out), home=each.path, cwd=tmp_path)
        assert batch.returncode == 0, batch.stderr
        assert daemon.end() == 0
    (record,) = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    assert "looked" in record["final_response"] and "sk-test" not in record["final_response"], record


def test_what_a_run_records_later_is_denied_to_an_agent_that_runs_already(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    out, data = tmp_path / "out", tmp_path / "d.jsonl"
    recorded = tmp_path / "recorded"
    wait = f"for i in $(seq 80); do [ -e {recorded} ] && break; sleep 0.1; done"
    look = f"{wait}; cat {recorded}; zcat {out}/events/*.gz; ls {out}/events {out}/artifacts; echo looked"
    model.script = Script((Rule(ToolCall(look, Text("{output}")), contains="cheat"), Rule(Text(SECRET))))
    lines = [{"id": "a", "prompt": "cheat", "target": "x"}, {"id": "b", "prompt": "quick", "target": SECRET}]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    batch = ("batch", str(data), "--scorer", "exact", "-o", str(out), "--json")
    with running(*batch, home=home) as program:
        ended = json.loads(program.wait_for_line('"event": "sample"', stream="stdout"))
        assert ended["id"] == "b", program.lines
        recorded.write_text("recorded before it looks")
        assert program.wait(LIMIT_S) == 0, program.lines
    said = {record["id"]: record["final_response"] for record in map(json.loads, (out / "results.jsonl").open())}
    assert (
        "recorded before" in said["a"]
        and "looked" in said["a"]
        and said["a"].count("Permission denied") >= 2
        and SECRET not in said["a"]
    ), said


@pytest.mark.parametrize("name", ["p[1]", "what?", "all*", "tab\there"])
def test_a_path_that_cannot_be_denied_is_refused(name: str, tmp_path: Path, home: Path, model: LoopbackModel) -> None:
    place = tmp_path / name
    place.mkdir()
    data = samples(place / "d.jsonl")
    batch = codex_pool("batch", str(data), "--scorer", "exact", "-o", str(tmp_path / "out"), home=home, cwd=tmp_path)
    assert batch.returncode == 2 and "cannot be denied to agents" in batch.stderr, batch.stderr
    assert model.requests == []


def test_a_home_that_cannot_be_written_is_enough_for_a_batch_and_one_error_for_all_else(
    tmp_path: Path, work: Path, model: LoopbackModel
) -> None:
    each = make_any_home("only auth.json", tmp_path, model.base_url)
    path, within = read_only(each.path)
    command = [*within, sys.executable, "-m", "codex_pool_cli"]
    for verb in (["run", "hello"], ["serve", "--workers", "1"]):
        with started([*command, *verb, *each.options], home=path) as program:
            assert program.wait(LIMIT_S) == 3
        assert len(program.lines["stderr"]) == 1, program.lines
        assert f"CODEX_HOME {path} cannot be written" in program.lines["stderr"][0]
    data = samples(tmp_path / "d.jsonl")
    with started([*command, "batch", str(data), "-o", str(tmp_path / "out"), *each.options], home=path) as batch:
        assert batch.wait(LIMIT_S) == 0, batch.lines
