"""Contents of deploy/: they name metrics and options that exist, and Prometheus' own tool accepts them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from codex_pool.gateway import exposition
from codex_pool.options import PoolOptions, fields
from codex_pool.protocol.pool_report import WORKER_STATES, PoolReport
from codex_pool.protocol.tally import Tally
from codex_pool.protocol.wire_types import Tokens

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "codex-pool.json"


def exposed() -> bytes:
    report = PoolReport(
        tally=Tally(ended={"completed": 3}, tokens={"alice": Tokens(1, 2, 3, 4)}),
        workers=dict.fromkeys(WORKER_STATES, 1),
        memory_bytes={0: 1},
        threads={0: 1},
        restarts={"exited": 1},
        recycles={"age": 1},
        refused={"turns": 1},
        codex=["0.163.0"],
    )
    return exposition.text_of(report, {"an unknown token": 1})


def queries() -> list[str]:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [rule["expr"] for rule in rules] + [each["expr"] for panel in panels for each in panel["targets"]]


def test_rules_and_dashboard_name_metrics_and_labels_that_exist() -> None:
    series: dict[str, set[str]] = {}
    values: dict[tuple[str, str], set[str]] = {}
    for family in text_string_to_metric_families(exposed().decode()):
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
            for label, value in sample.labels.items():
                values.setdefault((sample.name, label), set()).add(value)
    for query in queries():
        for name, selector in re.findall(r"(codex_pool_\w+)(?:\{(.*?)\})?", query):
            assert name in series, query
            for label, value in re.findall(r"(\w+)=~?\"(.*?)\"", selector):
                assert label in series[name] | {"instance", "job"}, query
                if label in series[name]:
                    assert set(value.split("|")) <= values[name, label], query


def test_units_start_the_daemon_with_options_that_exist() -> None:
    flags = {field.flag for field in fields(PoolOptions)}
    for unit in (DEPLOY / "systemd").glob("*.service"):
        settings = dict(line.split("=", 1) for line in unit.read_text().splitlines() if re.match(r"\w+=", line))
        _, verb, *words = shlex.split(settings["ExecStart"])
        assert verb == "serve" and {word for word in words if word.startswith("--")} <= flags
        assert settings["KillMode"] == "mixed" and settings["OOMPolicy"] == "continue"
        drain_s = PoolOptions().drain_timeout_s
        assert drain_s is not None and int(settings["TimeoutStopSec"]) >= drain_s + 10


def test_probes_are_asked_by_a_name_that_the_pool_knows() -> None:
    probes = yaml.safe_load((DEPLOY / "kubernetes" / "probes.yml").read_text())
    assert probes.keys() == {"startupProbe", "livenessProbe", "readinessProbe"}
    for probe in probes.values():
        assert probe["httpGet"]["path"] in ("/readyz", "/healthz")
        assert probe["httpGet"]["httpHeaders"] == [{"name": "Host", "value": "localhost"}]


def promtool(*arguments: str, given: bytes = b"") -> None:
    done = subprocess.run(["promtool", *arguments], input=given, capture_output=True, timeout=50, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


@pytest.mark.generate
def test_promtool_accepts_metrics_rules_and_configuration() -> None:
    """Debian: apt-get install prometheus."""
    promtool("check", "metrics", given=exposed())
    promtool("check", "rules", str(ALERTS))
    promtool("test", "rules", str(DEPLOY / "prometheus" / "alerts_test.yml"))
    promtool("check", "config", "--syntax-only", str(DEPLOY / "prometheus" / "scrape.yml"))
