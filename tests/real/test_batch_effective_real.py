"""Records of who answered, and which configuration that was of, on the real binary."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import LIMIT_S, codex_pool, running

from codex_app_server import AppServerConfig
from codex_app_server.testing.loopback import LoopbackModel
from codex_batch.store import open_run
from codex_pool import Pool

VERSION = "0.163.0"

real = pytest.mark.real


def dataset(path: Path, *samples: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def results(out: Path) -> dict[str, dict[str, Any]]:
    return {record["id"]: record for record in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


def who(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("model", "effort", "provider", "codex_version", "rerouted_from"))


@real
def test_every_record_export_and_report_names_who_answered(tmp_path: Path, home: Path) -> None:
    data = dataset(
        tmp_path / "d.jsonl",
        {"id": "plain", "prompt": "hello"},
        {"id": "own", "prompt": "hello", "model": "model-c", "effort": "high"},
        {"id": "rerouted", "prompt": "hello [[text ok model=model-d]]"},
    )
    out = tmp_path / "out"
    options = ("-c", "model=model-b", "-c", "model_reasoning_effort=low", "--workers", "1")
    done = codex_pool("batch", str(data), *options, "--json", "-o", str(out), home=home)
    assert done.returncode == 0, done.stderr
    expected = {
        "plain": ("model-b", "low", "loopback", VERSION, None),
        "own": ("model-c", "high", "loopback", VERSION, None),
        "rerouted": ("model-d", "low", "loopback", VERSION, "model-b"),
    }
    assert {name: who(record) for name, record in results(out).items()} == expected
    effective = json.loads(done.stdout.splitlines()[0])["effective"]
    assert (effective["model"], effective["effort"], effective["codex_version"]) == ("model-b", "low", VERSION)
    assert effective["fingerprint"] == results(out)["plain"]["fingerprint"] != results(out)["own"]["fingerprint"]
    with open_run(out) as store:
        assert store.info()["launches"][0]["config"]["effective"] == effective

    for name in ("x.csv", "x.eval", "x.jsonl"):
        assert codex_pool("runs", "export", str(out), "-o", str(tmp_path / name)).returncode == 0
    assert {
        line["id"]: who(line) for line in map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines())
    } == expected
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = {row["id"]: who({name: value or None for name, value in row.items()}) for row in csv.DictReader(file)}
    assert rows == expected
    with zipfile.ZipFile(tmp_path / "x.eval") as archive:
        spec = json.loads(archive.read("header.json"))["eval"]
        samples = {name: json.loads(archive.read(f"samples/{name}_epoch_1.json")) for name in expected}
    assert spec["model"] in {"codex/model-b", "codex/model-c", "codex/model-d"} and spec["packages"]["codex"] == VERSION
    assert spec["metadata"]["codex_pool"]["answered"]["effort"] == {"low": 2, "high": 1}
    for name, sample in samples.items():
        assert (
            sample["output"]["model"] == f"codex/{expected[name][0]}"
            and who(sample["store"]["codex_pool"]) == expected[name]
        )

    shown = codex_pool("runs", "show", str(out)).stdout
    assert "model-b (1), model-c (1), model-d (1)" in shown and VERSION in shown and "low (2), high (1)" in shown
    assert "model-d" in codex_pool("runs", "show", str(out), "rerouted").stdout
    page = tmp_path / "report.html"
    assert codex_pool("report", str(out), "-o", str(page)).returncode == 0
    text = page.read_text()
    assert "model-b (1), model-c (1), model-d (1)" in text and "1 sample" in text and VERSION in text


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, Path]]:
    """(home, dataset, run directory) of a run that is done; nothing in these tests runs it again."""
    from codex_app_server.testing.loopback import write_loopback_home

    path = tmp_path_factory.mktemp("finished")
    with LoopbackModel() as model:
        write_loopback_home(path / "home", model.base_url)
        with (path / "home" / "config.toml").open("a") as file:
            file.write('[mcp_servers.none]\ncommand = "/bin/false"\nenv = { TOKEN = "one" }\n')
        data, out = dataset(path / "d.jsonl", {"id": "a", "prompt": "hello"}), path / "out"
        done = codex_pool("batch", str(data), "--home", str(path / "home"), "--workers", "1", "-o", str(out))
        assert done.returncode == 0, done.stderr
        yield path / "home", data, out


@real
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-c", "model=model-b"), "model: mock-model, now model-b"),
        (("-c", "model_reasoning_effort=high"), "effort: not set, now high"),
        (("-c", "sandbox_mode=workspace-write"), "sandbox: read-only, now workspace-write"),
        (("-c", "approval_policy=on-request"), "approval policy: never, now on-request"),
        (("-c", 'developer_instructions="In French."'), "developer instructions: not set, now In French."),
        (("-c", 'mcp_servers.none.args=["x"]'), "mcp servers.none.args"),
        (("-c", "features.goals=false"), "features.goals: not set, now false"),
        (("--unguarded",), "guarded: true, now false"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_what_is_done_is_not_told_to_be_of_another_configuration(
    finished: tuple[Path, Path, Path], options: tuple[str, ...], words: str
) -> None:
    home, data, out = finished
    before = (out / "results.jsonl").read_bytes(), (out / "config.json").read_bytes()
    again = codex_pool("batch", str(data), "--home", str(home), "--workers", "1", *options, "-o", str(out))
    assert again.returncode == 2 and words in again.stderr and "'a'" in again.stderr, again.stderr
    assert before == ((out / "results.jsonl").read_bytes(), (out / "config.json").read_bytes())


@real
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-c", "mcp_servers.none.env.TOKEN=two"),
        ("-c", 'projects."/tmp".trust_level="trusted"'),
        ("-c", "model=mock-model"),
        ("-c", "tui.theme=dark"),
        ("--workers", "2", "--retries", "3"),
    ],
    ids=lambda value: value[-1] if value else "the same",
)
def test_what_changes_no_agent_is_no_change(finished: tuple[Path, Path, Path], options: tuple[str, ...]) -> None:
    home, data, out = finished
    again = codex_pool("batch", str(data), "--home", str(home), *options, "-o", str(out))
    assert again.returncode == 0 and "nothing to do" in again.stderr, again.stderr
    assert "two" not in (out / "config.json").read_text()


@real
def test_instructions_in_the_home_count(finished: tuple[Path, Path, Path]) -> None:
    home, data, out = finished
    (home / "AGENTS.md").write_text("Answer in French.")
    try:
        again = codex_pool("batch", str(data), "--home", str(home), "-o", str(out))
    finally:
        (home / "AGENTS.md").unlink()
    assert again.returncode == 2 and "sources" in again.stderr, again.stderr


@real
def test_a_configuration_that_is_changed_during_a_run_ends_it(tmp_path: Path, home: Path, model: LoopbackModel) -> None:
    slow = "first [[text one deltas=3 pace_ms=700]]"
    data = dataset(
        tmp_path / "d.jsonl",
        {"id": "first", "prompt": slow},
        *({"id": name, "prompt": name} for name in ("second", "third")),
    )
    arguments = ["batch", str(data), "--home", str(home), "--workers", "1", "--turns-per-worker", "1", "--retries", "2"]
    arguments += ["-o", str(tmp_path / "out")]
    config = home / "config.toml"
    with running(*arguments, home=home) as batch:
        model.wait_for(lambda record: "first" in record.prompt, timeout_s=LIMIT_S)
        config.write_text(config.read_text().replace('"mock-model"', '"model-b"'))
        assert batch.wait() == 1
    said = "\n".join(batch.lines["stderr"])
    assert "model is 'model-b', and was 'mock-model' when the run started" in said
    records = results(tmp_path / "out")
    assert records["first"]["model"] == "mock-model" and records["second"]["error"]["kind"] == "otherConfiguration"
    assert "third" not in records and records["second"]["attempts"] == 1
    assert codex_pool(*arguments, home=home).returncode == 2
    rerun = codex_pool(*arguments, "--changed", "rerun", home=home)
    assert rerun.returncode == 0, rerun.stderr
    assert {record["model"] for record in results(tmp_path / "out").values()} == {"model-b"}


@real
def test_a_pool_elsewhere_is_asked_for_its_configuration(tmp_path: Path, home: Path) -> None:
    data = dataset(tmp_path / "d.jsonl", {"id": "a", "prompt": "hello"}, {"id": "b", "prompt": "hello"})
    for name, code in (("model-a", 0), ("model-b", 2)):
        config = AppServerConfig(env={"CODEX_HOME": str(home)}, config_overrides=(f"model={name}",))
        with Pool(workers=1, config=config) as pool:
            limit = ("--limit", "1") if code == 0 else ()
            done = codex_pool("batch", str(data), "--connect", pool.endpoint, *limit, "-o", str(tmp_path / "out"))
            assert done.returncode == code, done.stderr
    assert "model: model-a, now model-b" in done.stderr
    assert results(tmp_path / "out")["a"]["model"] == "model-a"
