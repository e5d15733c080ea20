"""`codex-pool doctor` and its probes, on the files of this machine."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path

import pytest
from programs import codex_pool as command

from codex_pool.account.login_state import login_state
from codex_pool.auth.keys import KeyStore
from codex_pool.auth.principal import Identity
from codex_pool_cli.checks import endpoint, home, keys, run, software

SECRET = "sk-doctor-0123456789abcdef"


def tree(directory: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_mode) for path in directory.rglob("*")}


def test_it_runs_without_home_binary_and_daemon_and_changes_nothing(
    tmp_path: Path, runtime_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEX_POOL_KEYS", str(tmp_path / "keys"))
    done = command("doctor", "--json", "--codex-bin", str(tmp_path / "codex"), home=tmp_path / "home")
    found = json.loads(done.stdout)
    levels = {each["check"]: each["level"] for each in found["findings"]}
    assert done.returncode == 1 and done.stderr == ""
    assert (levels["codex"], levels["sandbox"], levels["home"], levels["endpoint"]) == (
        "failure",
        "failure",
        "warning",
        "ok",
    )
    assert all(each["remedy"] for each in found["findings"] if each["level"] != "ok")
    assert list(tmp_path.iterdir()) == [] and list(runtime_directory.iterdir()) == []


@pytest.mark.real
def test_a_home_is_read_and_no_secret_shown(
    tmp_path: Path, runtime_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEX_POOL_KEYS", str(tmp_path / "keys"))
    own = tmp_path / "home"
    (own / "sessions").mkdir(parents=True, mode=0o700)
    own.chmod(0o700)
    (own / "sessions" / "rollout-1.jsonl").write_text("{}\n")
    (own / "auth.json").write_text(json.dumps({"OPENAI_API_KEY": SECRET}))
    (own / "auth.json").chmod(0o600)
    before = tree(own)
    done = command("doctor", home=own)
    assert "logged in with apikey" in done.stdout and "1 thread in 3 B" in done.stdout
    assert SECRET not in done.stdout + done.stderr and tree(own) == before
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize(
    ("config", "environ", "needs"),
    [
        ("", {}, (False, None)),
        ('model_provider = "x"\n[model_providers.x]\nname = "x"', {}, (True, None)),
        ('model_provider = "x"\n[model_providers.x]\nenv_key = "K"', {}, (True, "K")),
        ('model_provider = "x"\n[model_providers.x]\nenv_key = "K"', {"K": "v"}, (True, None)),
        ('model_provider = "x"\n[model_providers.x]\nrequires_openai_auth = true', {}, (False, None)),
    ],
)
def test_a_login_is_needed_by_provider(
    tmp_path: Path, config: str, environ: dict[str, str], needs: tuple[bool, str | None]
) -> None:
    (tmp_path / "config.toml").write_text(config)
    found = home.login(tmp_path, environ)
    assert (found.provider_has_credentials, found.missing_variable) == needs and found.kind is None


def test_a_chatgpt_login_has_its_times() -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"iat": 1000, "exp": 5000}).encode()).decode().rstrip("=")
    tokens = {"access_token": f"e30.{claims}.e30", "refresh_token": "r"}
    content = json.dumps({"tokens": tokens, "last_refresh": "1970-01-01T00:20:00Z"}).encode()
    assert login_state(content, 2000.0) == ("chatgpt", 3000.0, 800.0)
    assert login_state(b"{}", 2000.0) == (None, None, None)
    assert login_state(json.dumps({"auth_mode": SECRET, "OPENAI_API_KEY": "k"}).encode(), 0.0) == ("apikey", None, None)


@pytest.mark.parametrize("content", ["", "[]", "{nonsense"])
def test_a_login_that_cannot_be_read_is_a_problem(tmp_path: Path, content: str) -> None:
    (tmp_path / "auth.json").write_text(content)
    assert "codex takes nobody for logged in" in (home.login(tmp_path, {}).problem or "")


def test_a_config_that_is_no_toml_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("a = \n")
    found = home.home(tmp_path)
    assert found.has_config and "line 1" in (found.config_problem or "")


def test_a_home_without_a_config_is_no_problem_and_not_called_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").symlink_to(tmp_path / "gone")
    for _ in range(2):
        found = home.home(tmp_path)
        assert (found.has_config, found.config_problem) == (False, None)
        (tmp_path / "config.toml").unlink(missing_ok=True)


def test_keys_are_read_without_a_lock_and_bad_ones_named(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    store.new(Identity(name="ana", cwd_roots=(str(tmp_path / "gone"),)), tmp_path / "ana.key")
    store.new(Identity(name="ben", admin=True), tmp_path / "ben.key")
    (tmp_path / "keys" / "clients" / "ben.json").chmod(0o644)
    before = tree(tmp_path)
    found = keys.keys(str(tmp_path / "keys"))
    assert [key.name for key in found.keys] == ["ana"] and found.keys[0].missing_directories
    assert len(found.problems) == 1 and "ben.json has mode 0644" in found.problems[0]
    assert tree(tmp_path) == before


def test_files_that_an_ended_daemon_has_left_are_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "x.processes").write_text("")
    (tmp_path / "x.lock").write_text("")
    found = endpoint.endpoint(f"ipc://{tmp_path}/x.sock", None)
    assert found.stale == ("x.processes",) and not found.is_held and found.socket == "missing"


def test_a_probe_that_hangs_or_fails_costs_its_own_group_only() -> None:
    release = threading.Event()

    def failing() -> None:
        raise OSError("no disk")

    found, unknown = run.run({"good": lambda: 1, "hangs": release.wait, "fails": failing}, 0.3)
    release.set()
    assert found == {"good": 1}
    assert unknown == {"hangs": "no answer within 0.3 s", "fails": "OSError: no disk"}


def test_a_binary_that_is_not_codex_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "codex"
    other.write_text("#!/bin/sh\necho hello\n")
    other.chmod(0o755)
    assert "printed no version" in (software.binary(str(other)).problem or "")


@pytest.mark.real
def test_the_sandbox_of_the_real_codex_runs_commands_and_holds() -> None:
    found = software.sandbox(None)
    assert found.started and not found.wrote, found


def test_a_sandbox_that_lets_commands_write_is_found(tmp_path: Path) -> None:
    open_codex = tmp_path / "codex"
    open_codex.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    open_codex.chmod(0o755)
    assert software.sandbox(str(open_codex)).wrote
