"""The options of a pool: each is a field of PoolOptions, and reaches every place that makes a pool."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from codex_app_server import AppServerConfig, InvalidInputError
from codex_batch.configuration import settings as batch_settings
from codex_batch.configuration.settings import Settings
from codex_batch.dataset.request import Request
from codex_batch.manage import score as scoring
from codex_batch.run import controller
from codex_batch.run.launch import OwnPool
from codex_pool import Pool
from codex_pool.auth.keys import KeyStore
from codex_pool.auth.principal import Identity
from codex_pool.daemon import lifecycle
from codex_pool.daemon.config import DaemonConfig
from codex_pool.option_sources import read_options
from codex_pool.options import GROUPS, OF_RUNS, Option, PoolOptions, fields, options_of
from codex_pool.runtime.startup import decode_arguments, encode_arguments
from codex_pool.supervisor.arguments import SupervisorArguments
from codex_pool.supervisor.spawn import arguments_of
from codex_pool_cli import pool_options
from codex_pool_cli.batch import batch
from codex_pool_cli.score import score
from codex_pool_cli.serve import serve

ROOT = Path(__file__).parents[2]
# Values that no option has by default, each of the type of its field.
VALUES: dict[type, Any] = {int: 77, float: 7.5, str: "/given", bool: True}
PRICES = Path(__file__).parents[1] / "data" / "prices.toml"
GIVEN = {field.name: VALUES[field.kind] for field in fields()} | {
    "endpoint": "ipc:///given/s.sock",
    # It is read before anything starts.
    "prices": str(PRICES),
}


def arguments(of_run: bool) -> list[str]:
    """Every option on a command line."""
    wanted = fields(groups=OF_RUNS if of_run else GROUPS)
    return [
        word
        for field in wanted
        for word in ([field.flag] if field.kind is bool else [field.flag, str(GIVEN[field.name])])
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, PoolOptions]:
    """The options with which each verb would have made its pool."""
    found: dict[str, PoolOptions] = {}

    def keep(name: str, options: PoolOptions) -> int:
        found[name] = options
        return 0

    monkeypatch.setattr(lifecycle, "run_daemon", lambda config, *_: keep("serve", config.options))
    monkeypatch.setattr(controller, "run_batch", lambda settings: keep("batch", settings.pool))
    monkeypatch.setattr(scoring, "score_run", lambda settings: keep("score", settings.pool))
    return found


VERBS: tuple[tuple[click.Command, bool], ...] = ((serve, False), (batch, True), (score, True))


@pytest.mark.parametrize(("verb", "of_run"), VERBS, ids=lambda value: getattr(value, "name", ""))
def test_every_option_of_every_verb_reaches_its_pool(
    verb: click.Command, of_run: bool, asked: dict[str, PoolOptions], tmp_path: Path
) -> None:
    rest = {"serve": [], "batch": ["--demo", "-o", str(tmp_path / "run")], "score": [str(tmp_path)]}[verb.name or ""]
    done = CliRunner().invoke(verb, [*rest, *arguments(of_run)])
    assert done.exit_code == 0, done.output
    groups = OF_RUNS if of_run else GROUPS
    assert asked[verb.name or ""] == PoolOptions(**{field.name: GIVEN[field.name] for field in fields(groups=groups)})


@pytest.mark.parametrize(("verb", "of_run"), VERBS, ids=lambda value: getattr(value, "name", ""))
def test_a_file_gives_every_option_and_the_command_line_goes_before(
    verb: click.Command, of_run: bool, asked: dict[str, PoolOptions], tmp_path: Path
) -> None:
    rest = {"serve": [], "batch": ["--demo", "-o", str(tmp_path / "run")], "score": [str(tmp_path)]}[verb.name or ""]
    groups = OF_RUNS if of_run else GROUPS
    given = {field.name: GIVEN[field.name] for field in fields(groups=groups)}
    file = tmp_path / "pool.toml"
    written = {name: "true" if value is True else repr(value) for name, value in given.items()}
    file.write_text("".join(f"{name} = {value}\n" for name, value in written.items()))
    done = CliRunner().invoke(verb, [*rest, "--workers", "3", "--pool-config", str(file)])
    assert done.exit_code == 0, done.output
    assert asked[verb.name or ""] == PoolOptions(**given | {"workers": 3})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workers = 0", "workers is 0; expected a whole number, 1 or more"),
        ("workers = true", "workers is True; expected a whole number, 1 or more"),
        ("recycle_age_s = -1", "recycle_age_s is -1; expected a number of seconds above 0, or 0 for no limit"),
        ("recycle_turns = false", "recycle_turns is False; expected a whole number, 1 or more, or 0 for no limit"),
        ("control_socket = 1", "control_socket is 1; expected true or false"),
        ("worker = 3", "no option worker; did you mean workers?"),
        ("model = 'm'", "no option model; there are workers, turns_per_worker, "),
        ("[pool]\nworkers = 3", "[pool] is a table; options stand in none"),
        ("workers = ", "expected a TOML file with lines such as workers = 4"),
    ],
)
def test_a_file_that_cannot_be_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(text)
    done = CliRunner().invoke(serve, ["--pool-config", str(file)])
    assert done.exit_code == 2 and f"{file}:1: " in done.output and said in done.output
    missing = CliRunner().invoke(serve, ["--pool-config", str(tmp_path / "none")])
    assert missing.exit_code == 2 and f"{tmp_path}/none: No such file" in missing.output


def test_a_file_cannot_go_with_a_daemon(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text("workers = 3\n")
    words = ["--demo", "-o", str(tmp_path), "--connect", "default", "--pool-config", str(file)]
    done = CliRunner().invoke(batch, words[1:])
    assert done.exit_code == 2 and "--pool-config makes an own pool and cannot go with --connect" in done.output


def test_zero_in_a_file_is_no_limit(asked: dict[str, PoolOptions], tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    limits = [field.name for field in fields() if field.optional and field.kind is not str]
    file.write_text("".join(f"{name} = 0\n" for name in limits))
    assert CliRunner().invoke(serve, ["--pool-config", str(file)]).exit_code == 0
    assert {getattr(asked["serve"], name) for name in limits} == {None}


def test_every_option_is_a_keyword_of_pool_and_reaches_the_supervisor(tmp_path: Path) -> None:
    keywords = inspect.signature(Pool.__init__).parameters
    assert [name for name in keywords if name not in ("self", "config", "on_slots")] == [one.name for one in fields()]
    assert {field.name: keywords[field.name].default for field in fields()} == {
        one.name: one.default for one in fields()
    }
    # The server's keys, addresses and certificates are looked at where clients connect by them.
    listeners = {
        "listen_unix": f"{tmp_path}/given/a.sock",
        "listen_group": "root",
        "listen_ws": "127.0.0.1:7602",
        "listen_http": "127.0.0.1:7603",
    }
    listeners |= {"tls_cert": None, "tls_key": None, "allow_host": "pool.example"}
    (tmp_path / "given").mkdir(mode=0o700)
    given = GIVEN | {"listen": "tcp://127.0.0.1:7601", "keys": str(tmp_path / "keys"), **listeners}
    options = PoolOptions(**given)
    KeyStore(options.keys).new(Identity(name="someone"), tmp_path / "someone.key")
    endpoint = options.endpoint or ""
    sent = arguments_of(options, AppServerConfig(), endpoint=endpoint, argv=["codex"], cwd=tmp_path, home=tmp_path)
    received = decode_arguments(encode_arguments(sent), SupervisorArguments)
    assert received.options == options


def test_one_place_makes_pools_of_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(Pool, "__init__", lambda self, *args, **given: made.append(given))
    given = GIVEN | {"endpoint": f"ipc://{tmp_path}/s.sock"}
    with DaemonConfig(PoolOptions(**given), home="user").pool():
        pass
    del made[0]["config"], made[0]["on_slots"]
    assert made == [given]

    async def own() -> None:
        OwnPool(AppServerConfig(), PoolOptions(**GIVEN), limit_s=1.0, log=tmp_path / "log")

    asyncio.run(own())
    del made[1]["config"], made[1]["on_slots"]
    assert made[1] == GIVEN | {"log_file": str(tmp_path / "log")}


def test_the_arguments_of_a_run_name_its_pools_options(tmp_path: Path) -> None:
    settings = Settings(
        request=Request(source=tmp_path), output=tmp_path, pool=PoolOptions(**GIVEN), endpoint="ipc:///daemon"
    )
    stored = batch_settings.config(settings, "", 0, [])["arguments"]
    for field in fields(groups=OF_RUNS):
        assert stored[field.name] == GIVEN[field.name]
    assert stored["endpoint"] == "ipc:///daemon" and "pool" not in stored


def test_an_added_option_is_one_field(monkeypatch: pytest.MonkeyPatch) -> None:
    class More(PoolOptions, frozen=True, kw_only=True):
        retire_after_s: Annotated[float | None, Option("Recycling", "Retire the pool.", metavar="S", unit="s")] = 5.0

    added = fields(More)[-1]
    assert added.flag == "--retire-after-s"
    with pytest.raises(InvalidInputError, match=r"^retire_after_s is -1; expected a number of seconds above 0"):
        options_of({"retire_after_s": -1}, More)
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import pool_options as script
    finally:
        sys.path.pop(0)
    assert "retire_after_s: float | None = 5.0," in script.keywords(fields(More))
    assert "| `retire_after_s` | `--retire-after-s S` |" in script.page(fields(More))

    monkeypatch.setattr(pool_options, "fields", lambda of=More, groups=GROUPS: fields(More, groups))

    @click.command()
    @pool_options.pool_options(of_run=True)
    def verb(**given: Any) -> None:
        click.echo(given["retire_after_s"])

    assert CliRunner().invoke(verb, ["--retire-after-s", "2"]).output == "2.0\n"
    assert msgspec.convert(msgspec.to_builtins(More(retire_after_s=2)), More).retire_after_s == 2.0


def test_what_is_made_of_the_options_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/pool_options.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_paths_may_be_given_as_such(tmp_path: Path) -> None:
    found = options_of({"endpoint": tmp_path / "s.sock", "keys": tmp_path, "log_file": Path("log")})
    assert (found.endpoint, found.keys, found.log_file) == (f"ipc://{tmp_path}/s.sock", str(tmp_path), "log")


def test_a_file_that_has_no_lines_is_no_option(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    assert read_options(tmp_path / "empty.toml") == {}


@pytest.mark.generate
def test_a_type_checker_knows_the_type_of_every_keyword(tmp_path: Path) -> None:
    wrong = {int: '"four"', float: '"four"', str: "5", bool: '"yes"'}
    lines = ["from codex_pool import Pool", *(f"Pool({field.name}={wrong[field.kind]})" for field in fields())]
    right = ["from pathlib import Path", "from codex_pool import Pool", "Pool(4, endpoint=Path('s'), recycle_age_s=1)"]
    (tmp_path / "wrong.py").write_text("\n".join(lines) + "\n")
    (tmp_path / "right.py").write_text("\n".join(right) + "\n")
    for name, expected in (("wrong", len(fields())), ("right", 0)):
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--config-file", "", str(tmp_path / f"{name}.py")],
            capture_output=True,
            text=True,
            timeout=55,
            env={"MYPYPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
            cwd=tmp_path,
        )
        assert done.stdout.count("has incompatible type") == expected, done.stdout + done.stderr
