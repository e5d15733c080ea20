"""Homes that are made of the user's: what is in them, what is left out, and what becomes of them later."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from codex_app_server import HomeError, InvalidInputError
from codex_app_server.testing.loopback import write_loopback_home
from codex_batch.run import home
from codex_pool.homes import ConfigCopy, make_home, renew_config, threads_in

USERS = """\
# Mine.
model = "m"
sqlite_home = "/somewhere"
model_instructions_file = "notes.md"
frobnicate = [1, {a = 2}]

[projects."/src/app"]
trust_level = "trusted"

[mcp_servers.docs]
command = "docs"
args = ["notes.md"]
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home, which CODEX_HOME names."""
    path = tmp_path / "user"
    path.mkdir()
    (path / "config.toml").write_text(USERS)
    (path / "notes.md").write_text("Be brief.")
    (path / "auth.json").write_text("secret")
    monkeypatch.setenv("CODEX_HOME", str(path))
    return path


def parsed(path: Path) -> dict[str, object]:
    return tomli.loads(path.read_text(encoding="utf-8"))


def test_it_has_the_users_configuration_and_login_and_no_trust(user: Path, tmp_path: Path) -> None:
    own = tmp_path / "run" / "home"
    assert home.prepare("run", own) == own and home.prepare("user", own) == user
    assert parsed(own / "config.toml") == {
        "model": "m",
        "model_instructions_file": str(user / "notes.md"),
        "frobnicate": [1, {"a": 2}],
        "mcp_servers": {"docs": {"command": "docs", "args": ["notes.md"]}},
    }
    assert (own / "auth.json").is_symlink() and (own / "auth.json").read_text() == "secret"
    assert [path.stat().st_mode & 0o077 for path in (own, own / "config.toml")] == [0, 0]
    assert (user / "config.toml").read_text() == USERS
    with pytest.raises(InvalidInputError, match="is not a directory; give run, user, or an existing CODEX_HOME"):
        home.prepare(str(tmp_path / "nope"), own)


@pytest.mark.parametrize("follow", [False, True])
def test_it_needs_nothing_of_the_user(tmp_path: Path, follow: bool) -> None:
    own = make_home(tmp_path / "home", tmp_path / "none", follow=follow)
    assert sorted(path.name for path in own.iterdir()) == ["auth.json", "codex-pool"]
    # A login there is the user's as well.
    (tmp_path / "none").mkdir()
    (own / "auth.json").write_text("new")
    assert (tmp_path / "none" / "auth.json").read_text() == "new"


def test_a_run_keeps_its_configuration_and_a_daemon_follows_the_users(user: Path, tmp_path: Path) -> None:
    run, daemon = (make_home(tmp_path / name, user, follow=name == "daemon") for name in ("run", "daemon"))
    (daemon / "config.toml").write_text('model = "set through the daemon"\n')
    make_home(daemon, user, follow=True)
    assert parsed(daemon / "config.toml") == {"model": "set through the daemon"}
    (user / "config.toml").write_text('model = "other"\n')
    for own, follow, model in ((run, False, "m"), (daemon, True, "other")):
        assert parsed(make_home(own, user, follow=follow) / "config.toml")["model"] == model
    # What a run could not use may have been mended since.
    assert renew_config(run, user) and not renew_config(run, user)
    assert parsed(run / "config.toml") == {"model": "other"}


@pytest.mark.parametrize("text", [b'model = "m', b"model = \xff", b"[a]\n[a]\n"])
def test_a_configuration_that_is_no_toml_is_refused_and_mended_later(user: Path, tmp_path: Path, text: bytes) -> None:
    own = tmp_path / "home"
    (user / "config.toml").write_bytes(text)
    with pytest.raises(HomeError, match=rf"{user}/config.toml is no TOML: .*; correct it and try again"):
        make_home(own, user, follow=False)
    assert not own.exists()
    # An earlier version copied whatever there was.
    own.mkdir()
    (own / "config.toml").write_bytes(text)
    (user / "config.toml").write_text('model = "m"\n')
    assert parsed(make_home(own, user, follow=False) / "config.toml") == {"model": "m"}


# Newlines and a comma at the end of an inline table, \e and \x: TOML 1.1, which codex reads.
TOML_1_1 = """model = "\\e[1m\\x41"
provider = {
  name = "p",  # a comment
  port = 1,
}
"""


def test_toml_1_1_is_read_and_copied_as_toml_1_0(user: Path, tmp_path: Path) -> None:
    (user / "config.toml").write_text(TOML_1_1)
    own = make_home(tmp_path / "home", user, follow=False)
    text = (own / "config.toml").read_text()
    assert parsed(own / "config.toml") == {"model": "\x1b[1mA", "provider": {"name": "p", "port": 1}}
    assert "\\u001b" in text and "\\e" not in text and "{" not in text


def test_letters_of_every_plane_and_an_empty_login_are_taken_over(user: Path, tmp_path: Path) -> None:
    (user / "config.toml").write_text('model = "\U0001f41a 家"\n["\U0001f600"]\nx = "\\U0001F41A"\n', encoding="utf-8")
    (user / "auth.json").write_bytes(b"")
    own = make_home(tmp_path / "home", user, follow=False)
    assert parsed(own / "config.toml") == {"model": "\U0001f41a 家", "\U0001f600": {"x": "\U0001f41a"}}
    assert (own / "auth.json").read_bytes() == b""


def test_an_error_about_a_copy_names_the_file_that_it_is_made_of(user: Path, tmp_path: Path) -> None:
    own = make_home(tmp_path / "home", user, follow=False)
    copy = ConfigCopy(own, user)
    assert copy.named(f"{own}/config.toml:3:7: bad") == f"{user}/config.toml (copied to {own}/config.toml:3:7): bad"
    assert copy.named("something else") == "something else"


def test_the_home_of_an_earlier_version_goes_on_without_trust(user: Path, tmp_path: Path) -> None:
    own = tmp_path / "home"
    own.mkdir()
    (own / "config.toml").write_text(USERS.replace('model = "m"', 'model = "of the run"'))
    config = parsed(make_home(own, user, follow=False) / "config.toml")
    assert config["model"] == "of the run" and "projects" not in config
    assert (own / "auth.json").resolve() == user / "auth.json"


@pytest.mark.parametrize("follow", [True, False])
def test_what_threads_have_had_trusted_is_not_trusted_by_the_next_start(
    user: Path, tmp_path: Path, follow: bool
) -> None:
    own = make_home(tmp_path / "own", user, follow=follow)
    config = parsed(own / "config.toml")
    with (own / "config.toml").open("a") as file:
        file.write('\n[projects."/work/a"]\ntrust_level = "trusted"\n')
    make_home(own, user, follow=follow)
    assert parsed(own / "config.toml") == config


def test_a_logout_in_the_home_lasts(user: Path, tmp_path: Path) -> None:
    own = make_home(tmp_path / "home", user, follow=True)
    (own / "auth.json").unlink()
    make_home(own, user, follow=True)
    assert not (own / "auth.json").is_symlink() and (user / "auth.json").read_text() == "secret"


def test_a_link_as_configuration_is_followed(user: Path, tmp_path: Path) -> None:
    (user / "config.toml").rename(tmp_path / "dotfile.toml")
    (user / "config.toml").symlink_to(tmp_path / "dotfile.toml")
    own = make_home(tmp_path / "home", user, follow=False)
    assert parsed(own / "config.toml")["model"] == "m" and not (own / "config.toml").is_symlink()


def test_the_home_of_a_demo_is_not_taken_for_a_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "none"))
    write_loopback_home(tmp_path / "home", "http://127.0.0.1:1/v1")
    with pytest.raises(HomeError, match="was made with --demo"):
        home.prepare("run", tmp_path / "home")


def test_a_copy_of_a_loopback_home_is_used_again_and_follows_it(user: Path, tmp_path: Path) -> None:
    own = tmp_path / "home"
    (user / "config.toml").unlink()
    for port in (1, 2):
        # A loopback model that is started again may listen somewhere else.
        write_loopback_home(user, f"http://127.0.0.1:{port}/v1")
        assert home.prepare("run", own) == own
        assert parsed(own / "config.toml") == parsed(user / "config.toml")
    # It is no real one, whatever comes after.
    (user / "config.toml").write_text('model = "real"\n')
    with pytest.raises(HomeError, match="or from the home of a loopback model"):
        home.prepare("run", own)


def test_the_threads_of_a_home_are_listed_newest_first(tmp_path: Path) -> None:
    assert threads_in(tmp_path) == []
    for day, name in (("01", "rollout-2026-01-01T10-00-00-a.jsonl"), ("02", "rollout-2026-01-02T09-00-00-b.jsonl")):
        (tmp_path / "sessions" / day).mkdir(parents=True)
        (tmp_path / "sessions" / day / name).touch()
    assert threads_in(tmp_path) == ["2026-01-02T09-00-00-b", "2026-01-01T10-00-00-a"]
