"""Modules that have moved, by their former names."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("former", "today"),
    [
        ("codex_pool.batch.store", "codex_batch.store"),
        ("codex_pool.batch.scoring.text", "codex_batch.scoring.text"),
        ("codex_pool.keys", "codex_pool.auth.keys"),
        ("codex_pool.wire", "codex_pool.protocol.wire"),
        ("codex_app_server.client", "codex_app_server._sync.client"),
    ],
)
def test_a_former_name_is_the_module_of_today_with_a_warning(former: str, today: str) -> None:
    code = (
        f"import warnings, {today} as today\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        f"    import {former} as former\n"
        "assert former is today and today.__spec__.name == today.__name__\n"
        f"assert [str(each.message) for each in told if '{former} is now {today};' in str(each.message)], told\n"
        "assert all(each.category is DeprecationWarning for each in told)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_a_name_that_was_never_there_is_not_found() -> None:
    for name in ("codex_pool.batches", "codex_pool.batch.nothing", "codex_app_server.clients"):
        done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, timeout=30)
        assert "ModuleNotFoundError" in done.stderr


def test_all_former_names_lead_somewhere() -> None:
    code = (
        "import codex_app_server, codex_pool, importlib.util, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from codex_pool import sockets, wire\n"
        "for moved in (codex_app_server._MOVED, codex_pool._MOVED):\n"
        "    for today in moved.values(): assert importlib.util.find_spec(today), today"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_the_command_runs_by_its_former_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "codex_pool.cli", "--version"], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.startswith("codex-pool ")
