"""Sources of the options of a daemon: file, environment, command line; `config show`, `config check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from codex_app_server import InvalidInputError
from codex_pool.daemon import lifecycle
from codex_pool.daemon.config import DaemonConfig
from codex_pool.option_sources import (
    Value,
    default_file,
    file_of,
    merged,
    nearest,
    of_environment,
    of_file,
    read_layer,
    read_options,
)
from codex_pool.options import LIVE, OF_RUNS, Field, PoolOptions, fields
from codex_pool_cli.batch import batch
from codex_pool_cli.config import config
from codex_pool_cli.serve import serve

KNOWN = fields()
BY_NAME = {field.name: field for field in KNOWN}


def values_of(field: Field) -> st.SearchStrategy[Any]:
    """Values that the option may have, None for no limit."""
    if field.kind is bool:
        return st.booleans()
    if field.kind is int:
        found: st.SearchStrategy[Any] = st.integers(1, 2**60)
    elif field.kind is float:
        found = st.floats(min_value=1e-6, max_value=1e12)
    else:
        return st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
    return found | st.none() if field.optional else found


LAYERS = st.fixed_dictionaries({}, optional={field.name: values_of(field) for field in KNOWN})


@given(LAYERS, LAYERS, LAYERS)
def test_a_later_source_goes_before_an_earlier_one(
    in_file: dict[str, Any], in_environment: dict[str, Any], flags: dict[str, Any]
) -> None:
    in_environment.pop("endpoint", None)
    written = tomli_w.dumps({name: 0 if value is None else value for name, value in in_file.items()})
    file = of_file("/f", written.encode(), KNOWN)
    variables = {BY_NAME[name].envvar: in_text(value) for name, value in in_environment.items()}
    environment = of_environment(variables, KNOWN)
    assert not file.problems and not environment.problems and not environment.warnings
    line = {name: Value(value, "command line", BY_NAME[name].flag) for name, value in flags.items()}
    found = merged(KNOWN, [file.values, environment.values, line])
    defaults = {field.name: field.default for field in KNOWN}
    assert {name: each.value for name, each in found.items()} == defaults | in_file | in_environment | flags
    lines = written.splitlines()
    for name, each in found.items():
        if each.source == "file":
            number = int(each.where.removeprefix("/f:"))
            assert tomli.loads(lines[number - 1]).keys() == {name}
        elif each.source == "environment":
            assert each.where == BY_NAME[name].envvar and name not in flags
    # What counts is a pool's options.
    PoolOptions(**{name: each.value for name, each in found.items()})


def in_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "0" if value is None else str(value)


@given(st.binary(max_size=200))
def test_no_file_breaks_the_reader(data: bytes) -> None:
    layer = of_file("/f", data, KNOWN)
    assert not layer.values.keys() - BY_NAME.keys()
    assert all(problem.where.startswith("/f") for problem in layer.problems)


def test_all_problems_of_a_file_come_at_once_with_their_lines() -> None:
    text = """\
# a comment
workers = 0

turns-per-worker = 4
log_file = \"\"\"
a
b\"\"\"
turn_wall_limit_s =
control_socket = "yes"

[recycling]
turns = 5
"""
    layer = of_file("c.toml", text.encode(), KNOWN)
    assert [str(problem) for problem in layer.problems] == [
        "c.toml:8: Invalid value; expected a TOML file with lines such as workers = 4",
        "c.toml:2: workers is 0; expected a whole number, 1 or more",
        "c.toml:4: no option turns-per-worker; did you mean turns_per_worker?",
        "c.toml:9: control_socket is 'yes'; expected true or false",
        "c.toml:11: [recycling] is a table; options stand in none, such as workers = 4",
    ]
    assert layer.values == {"log_file": Value("a\nb", "file", "c.toml:5")}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"workers = 2\nworkers = 3\n", "c.toml:2: Cannot overwrite a value; "),
        (b'log_file = """\nworkers = 3\n', "c.toml: Unterminated string (at end of document); "),
        (b"\xff\xfe", "c.toml: 'utf-8' codec can't decode"),
        (b"workers = 4_\r\n", "c.toml:1: "),
    ],
)
def test_what_is_no_toml(data: bytes, said: str) -> None:
    (problem, *_) = of_file("c.toml", data, KNOWN).problems
    assert str(problem).startswith(said)


def test_line_ends_and_a_mark_of_windows_are_taken() -> None:
    layer = of_file("c.toml", b"\xef\xbb\xbfworkers = 4\r\nlisten_ws = 'h:1'\r\n", KNOWN)
    assert layer.values == {"workers": Value(4, "file", "c.toml:1"), "listen_ws": Value("h:1", "file", "c.toml:2")}


def test_variables() -> None:
    environ = {
        "CODEX_POOL_WORKERS": "4",
        "CODEX_POOL_TURN_IDLE_LIMIT_S": "0",
        "CODEX_POOL_CONTROL_SOCKET": "on",
        "CODEX_POOL_LISTEN": "",
        "CODEX_POOL_RECYCLE_TURNS": "many",
        "CODEX_POOL_INSECURE_NO_AUTH": "2",
        # Others of this project, and what Kubernetes sets for a service named codex-pool.
        **dict.fromkeys(("CODEX_POOL_ENDPOINT", "CODEX_POOL_KEY", "CODEX_POOL_HOOK", "CODEX_POOL_CONFIG"), "x"),
        **dict.fromkeys(("CODEX_POOL_SERVICE_HOST", "CODEX_POOL_PORT", "CODEX_POOL_PORT_7601_TCP_ADDR"), "x"),
        "CODEX_POOL_WORKRES": "4",
        "CODEX_POOL_XYZ": "4",
        "PATH": "/bin",
    }
    layer = of_environment(environ, KNOWN)
    assert {name: each.value for name, each in layer.values.items()} == {
        "workers": 4,
        "turn_idle_limit_s": None,
        "control_socket": True,
    }
    assert [str(each) for each in layer.problems] == [
        "CODEX_POOL_INSECURE_NO_AUTH: is '2'; expected true or false",
        "CODEX_POOL_RECYCLE_TURNS: is 'many'; expected a whole number, 1 or more, or 0 for no limit",
    ]
    assert [str(each) for each in layer.warnings] == [
        "CODEX_POOL_WORKRES: no variable of codex-pool; did you mean CODEX_POOL_WORKERS?",
        "CODEX_POOL_XYZ: no variable of codex-pool; codex-pool config show lists the options",
    ]


def test_names_of_variables() -> None:
    assert BY_NAME["keys"].envvar == "CODEX_POOL_KEYS"
    # That one is where clients connect.
    assert BY_NAME["endpoint"].envvar == ""
    assert nearest("Turns-Per-Workers", BY_NAME) == "turns_per_worker" and nearest("model", BY_NAME) is None


def test_the_file_of_a_daemon(tmp_path: Path) -> None:
    home = {"HOME": "/h"}
    assert str(default_file(home)) == "/h/.config/codex-pool/config.toml"
    assert str(default_file({"XDG_CONFIG_HOME": "/x"} | home)) == "/x/codex-pool/config.toml"
    assert file_of(None, {"XDG_CONFIG_HOME": "/x"}) == ("/x/codex-pool/config.toml", False)
    assert file_of(None, {"CODEX_POOL_CONFIG": "/y.toml"}) == ("/y.toml", True)
    assert file_of("/z.toml", {"CODEX_POOL_CONFIG": "/y.toml"}) == ("/z.toml", True)
    missing = tmp_path / "c.toml"
    assert read_layer(missing, KNOWN, is_required=False) == ({}, (), ())
    (problem,) = read_layer(missing, KNOWN).problems
    assert str(problem).startswith(f"{missing}: No such file or directory; expected")


def test_a_pool_that_belongs_to_a_run_has_no_connections(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("workers = 3\nlisten = 'tcp://127.0.0.1:7601'\nrecycle_turns = 0\n")
    with pytest.raises(InvalidInputError, match=r"c.toml:2: listen is an option of codex-pool serve only"):
        read_options(file, OF_RUNS)
    assert read_options(file)["recycle_turns"] is None


# Commands.


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(config, arguments, env=environ)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text("workers = 5\nrecycle_turns = 0\nturn_wall_limit_s = 60\n")
    return path


def test_show_names_the_origin_of_every_value(file: Path) -> None:
    done = run(
        *("show", "--origin", "--pool-config", str(file), "--turns-per-worker", "9"),
        CODEX_POOL_TURN_WALL_LIMIT_S="30",
        CODEX_POOL_WORKRES="1",
    )
    assert done.exit_code == 0, done.output
    rows = [[part.strip() for part in line.partition("  # ")[::2]] for line in done.stdout.splitlines()]
    assert [f"# {file}", ""] == rows[0] and len(rows) == len(KNOWN) + 1
    for row in (
        ["workers = 5", f"{file}:1"],
        ["recycle_turns = 0", f"{file}:2"],
        ["turn_wall_limit_s = 30.0", "CODEX_POOL_TURN_WALL_LIMIT_S"],
        ["turns_per_worker = 9", "--turns-per-worker"],
        ["recycle_descendants = 32", "default"],
        ["# listen: nowhere", "default"],
    ):
        assert row in rows
    assert "warning: CODEX_POOL_WORKRES: no variable" in done.stderr


def test_what_show_prints_is_a_file_of_the_same_options(file: Path, tmp_path: Path) -> None:
    shown = run("show", "--pool-config", str(file))
    again = tmp_path / "again.toml"
    again.write_text(shown.stdout)
    assert run("show", "--pool-config", str(again)).stdout.splitlines()[1:] == shown.stdout.splitlines()[1:]
    as_json = json.loads(run("show", "--json", "--pool-config", str(file)).stdout)
    assert as_json["file"] == str(file) and as_json["warnings"] == []
    assert as_json["options"]["workers"] == {"value": 5, "from": "file", "at": f"{file}:1"}
    assert as_json["options"]["recycle_turns"]["value"] is None
    assert as_json["options"]["listen"] == {"value": None, "from": "default"}


def test_check_reports_all_problems(file: Path) -> None:
    assert run("check", str(file)).stdout == f"{file}: valid\n"
    file.write_text("worker = 5\nrecycle_turns = -1\n")
    done = run("check", str(file), CODEX_POOL_WORKERS="x")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"{file}:1: no option worker; did you mean workers?",
        f"{file}:2: recycle_turns is -1; expected a whole number, 1 or more, or 0 for no limit",
        "CODEX_POOL_WORKERS: is 'x'; expected a whole number, 1 or more",
    ]
    found = json.loads(run("check", "--json", str(file)).stdout)
    assert not found["ok"] and found["problems"][0]["where"] == f"{file}:1"


def test_check_finds_options_that_do_not_go_together(file: Path, tmp_path: Path) -> None:
    file.write_text("tls_cert = 'c'\nlisten = 'udp://a'\n")
    done = run("check", str(file))
    assert done.exit_code == 2 and f"{file}:2: " in done.stderr
    assert "tls_cert is about listen_ws or listen_http, which is not given" in done.stderr


def test_check_without_a_file(tmp_path: Path) -> None:
    done = run("check", CODEX_POOL_CONFIG="", XDG_CONFIG_HOME=str(tmp_path))
    assert done.exit_code == 0 and "not there, so defaults and variables count" in done.stdout
    done = run("check", str(tmp_path / "none"))
    assert done.exit_code == 2 and "No such file" in done.stderr
    assert "# " in run("show", CODEX_POOL_CONFIG="", XDG_CONFIG_HOME=str(tmp_path)).stdout


def test_show_refuses_what_check_reports(file: Path) -> None:
    file.write_text("worker = 5\n")
    done = run("show", "--pool-config", str(file))
    assert (done.exit_code, done.stdout) == (2, "") and "did you mean workers?" in done.stderr


def test_serve_takes_all_sources_and_knows_where_to_read_them_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[DaemonConfig] = []
    monkeypatch.setattr(lifecycle, "run_daemon", lambda config, *_: found.append(config))
    (tmp_path / "codex-pool").mkdir()
    file.rename(tmp_path / "codex-pool" / "config.toml")
    environ = {"CODEX_POOL_CONFIG": "", "XDG_CONFIG_HOME": str(tmp_path), "CODEX_POOL_TURNS_PER_WORKER": "3"}
    environ |= {"CODEX_POOL_TURNS_PER_WORKR": "3", "CODEX_POOL_RECYCLE_TURNS": "0"}
    done = CliRunner().invoke(serve, ["--turn-idle-limit-s", "0"], env=environ)
    assert done.exit_code == 0, done.output
    assert "codex-pool: warning: CODEX_POOL_TURNS_PER_WORKR: no variable" in done.stderr
    (daemon,) = found
    options, source = daemon.options, daemon.source
    assert (options.workers, options.turns_per_worker, options.turn_wall_limit_s) == (5, 3, 60)
    assert source is not None and source.is_required and source.file == str(tmp_path / "codex-pool" / "config.toml")
    assert source.over == {"turns_per_worker": 3, "recycle_turns": None, "turn_idle_limit_s": None}
    assert PoolOptions(**source.running) == options
    assert CliRunner().invoke(serve, [], env={"CODEX_POOL_WORKERS": "x"}).exit_code == 2


def test_a_run_takes_none_of_a_daemons_sources(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from codex_batch.run import controller

    found: list[PoolOptions] = []
    monkeypatch.setattr(controller, "run_batch", lambda settings: found.append(settings.pool) or 0)
    environ = {"CODEX_POOL_CONFIG": str(file), "CODEX_POOL_WORKERS": "7"}
    done = CliRunner().invoke(batch, ["--demo", "-o", str(tmp_path / "run")], env=environ)
    assert done.exit_code == 0 and found == [PoolOptions()]


def test_connections_need_a_restart_and_nothing_else_does() -> None:
    assert {field.name for field in KNOWN if not field.is_live} == {
        field.name for field in KNOWN if field.option.group not in LIVE
    }
    assert BY_NAME["workers"].is_live and not BY_NAME["listen"].is_live
