"""Money of runs on the real binary: what answers has a price or the run is refused; what is not known is said so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from programs import codex_pool

from codex_app_server.testing.loopback import LoopbackModel
from codex_batch.report.write import write_run_report
from codex_batch.store import open_run

pytestmark = pytest.mark.real
MODEL = "mock-model"


def dataset(path: Path, *samples: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def prices(path: Path, *models: str, price: float = 1000.0) -> Path:
    path.write_text("".join(f'[models."{name}"]\ninput = {price}\noutput = {price}\n' for name in models))
    return path


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_a_limit_of_money_holds_with_the_configured_model(tmp_path: Path, home: Path, model: LoopbackModel) -> None:
    data = dataset(tmp_path / "d.jsonl", *({"prompt": f"say {n}"} for n in range(6)))
    table, out = prices(tmp_path / "p.toml", MODEL), tmp_path / "out"
    one = ("--workers", "1", "--turns-per-worker", "1", "--home", str(home), "-o", str(out))
    done = codex_pool("batch", str(data), *one, "--prices", str(table), "--run-cost", "0.000001")
    assert done.returncode == 1 and "its limit is 0.0000010" in done.stderr, done.stderr
    found = results(out)
    assert len(found) == 1 and found[0]["cost"] > 0
    assert "cost" in done.stderr and " 0.00 " not in done.stderr


def test_a_run_with_a_limit_of_money_and_a_model_without_price_is_refused_by_name(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    table = prices(tmp_path / "p.toml", "priced")
    plain, named = {"id": "a", "prompt": "say x"}, {"id": "b", "prompt": "say x", "model": "dear"}
    for number, (samples, arguments, said) in enumerate(
        (
            ((plain,), (), f"no price of model '{MODEL}', which is the configured one"),
            ((plain, named), (), "no price of model 'dear', which sample b asks for"),
            (({**plain, "model": "priced"},), ("--scorer", '{"type": "judge", "model": "strict"}'), "'strict'"),
            (({**plain, "model": "priced"},), ("--scorer", "judge"), f"'{MODEL}'"),
            ((plain,), ("-c", 'model="other"'), "no price of model 'other'"),
            (({**plain, "model": "priced"},), ("-c", 'service_tier="flex"'), "'priced' at service tier 'flex'"),
        )
    ):
        data, out = dataset(tmp_path / "d.jsonl", *samples), tmp_path / f"out{number}"
        options = ("--workers", "1", "--home", str(home), "--prices", str(table), "-o", str(out), *arguments)
        done = codex_pool("batch", str(data), *options, "--run-cost", "1")
        assert done.returncode == 2 and said in done.stderr and "nothing was run" in done.stderr, done.stderr
        assert not (out / "results.jsonl").exists() or not results(out)
    assert model.requests == []


def test_a_cost_that_is_not_known_is_unknown_everywhere(tmp_path: Path, home: Path, model: LoopbackModel) -> None:
    data, out = dataset(tmp_path / "d.jsonl", {"id": "a", "prompt": "say x"}), tmp_path / "out"
    table = prices(tmp_path / "p.toml", "priced")
    options = ("--workers", "1", "--home", str(home), "-o", str(out))
    done = codex_pool("batch", str(data), *options, "--prices", str(table), "--json")
    assert done.returncode == 0, done.stderr
    assert f"no price of model '{MODEL}', which is the configured one: its cost is unknown" in done.stderr
    assert "unknown: nothing is known of 1 attempt" in done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["cost"] is None and last["unknown_costs"] == 1
    assert results(out)[0]["cost"] is None
    shown = codex_pool("runs", "show", str(out))
    assert "unknown: nothing is known of 1 attempt" in shown.stdout and "0.00" not in shown.stdout
    assert json.loads(codex_pool("runs", "show", str(out), "--json").stdout)["cost"] is None
    of_sample = codex_pool("runs", "show", str(out), "a").stdout
    assert any(line.split() == ["cost", "unknown"] for line in of_sample.splitlines()), of_sample
    header, row = codex_pool("runs", "export", str(out), "--format", "csv").stdout.splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=False))["cost"] == ""
    with open_run(out) as store:
        write_run_report(store, tmp_path / "report.html")
    page = re.sub(r">\s+<", "><", (tmp_path / "report.html").read_text())
    assert '<p class="card-value">unknown</p><p class="muted small">nothing is known of 1 part of it' in page


def test_judges_that_score_again_count_in_what_the_run_has_spent(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    data, out = dataset(tmp_path / "d.jsonl", {"id": "a", "prompt": "say x"}), tmp_path / "out"
    prices(tmp_path / "p.toml", MODEL, price=1.0)
    options = ("--workers", "1", "--home", str(home))
    done = codex_pool("batch", str(data), *options, "-o", str(out), "--prices", "p.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with open_run(out) as store:
        before = store.spending()
    done = codex_pool("score", str(out), *options, "--scorer", "judge", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    with open_run(out) as store:
        after = store.spending()
    assert after.tokens - before.tokens == told["tokens"] > 0 and after.unknown == 0
    assert after.known - before.known == pytest.approx(told["cost"]) and told["cost"] == pytest.approx(
        told["tokens"] / 1e6
    )
    (tmp_path / "p.toml").unlink()
    done = codex_pool("score", str(out), *options, "--scorer", "judge", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["cost"] is None and "the cost is unknown" in done.stderr
    with open_run(out) as store:
        assert store.spending().unknown == 1 and store.spent()[1] is None
    limited = codex_pool("batch", str(data), *options, "-o", str(out), "--prices", "none.toml", "--run-cost", "1")
    assert limited.returncode == 2 and "No such file" in limited.stderr
