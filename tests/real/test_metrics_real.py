"""Probes and metrics of a pool on the real binary: a log-in that is refused, and tokens as the turns report them."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest
from ports import free_port
from prometheus_client.parser import text_string_to_metric_families
from waiting import until

from codex_app_server import AppServerConfig, Codex, TurnFailedError
from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool import Pool

pytestmark = pytest.mark.real

TOKEN = "0123456789abcdef0123456789abcdef"


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
        found = connection.getresponse()
        return found.status, found.read().decode()
    finally:
        connection.close()


def test_a_refused_log_in_shows_in_readyz_and_tokens_add_up(tmp_path: Path) -> None:
    port, token_file = free_port(), tmp_path / "metrics.token"
    token_file.write_text(TOKEN)
    token_file.chmod(0o600)
    with LoopbackModel() as model:
        home = write_loopback_home(tmp_path / "home", model.base_url)
        config = AppServerConfig(cwd=tmp_path, env={"CODEX_HOME": str(home)})
        options = {"listen_http": f"127.0.0.1:{port}", "metrics_token": str(token_file)}
        with Pool(1, config, log_file=tmp_path / "log", **options) as pool, pool.connect() as codex:
            assert get(port, "/readyz")[0] == 200
            with pytest.raises(TurnFailedError):
                codex.thread_start().run("[[http_error 401]]")
            until(lambda: get(port, "/readyz")[0] == 503)
            assert "refused the log-in" in get(port, "/readyz")[1]
            used = [run(codex, 2), run(codex, 3)]
            until(lambda: get(port, "/readyz")[0] == 200)
            status, text = get(port, "/metrics")
            assert status == 200, text
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["codex_pool_tokens_total", "owner", "input"] == sum(each[0] for each in used) > 0
    assert values["codex_pool_tokens_total", "owner", "output"] == sum(each[1] for each in used) > 0
    assert values["codex_pool_turns_total", "completed"] == 5 and values["codex_pool_turns_total", "failed"] == 1
    assert values["codex_pool_turn_first_delta_seconds_count",] == 5
    assert [key[1] for key in values if key[0] == "codex_pool_build_info"] == ["0.163.0"]


def run(codex: Codex, turns: int) -> tuple[int, int]:
    """Run turns on one thread; the input and output tokens of all, as the thread reports them."""
    thread = codex.thread_start()
    results = [thread.run('[[text "a few words"]]') for _ in range(turns)]
    usage = results[-1].usage
    assert usage is not None
    return usage.total.input_tokens, usage.total.output_tokens
