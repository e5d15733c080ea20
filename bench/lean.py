"""Savings of switches of the app-server: its CPU for a turn with them, against the pool's own profile.

    python bench/lean.py [--turns 80] [--rounds 5]

    unseen    features of the app and the terminal that the model is not told of
    quiet     RUST_LOG=off
    skills    without the bundled skills: changes the agent
    tools     without tools that not every task needs: changes the agent
    bundle    with the file of all root certificates that the machine has, and not also their directory: trusts the same
    roots     with one root certificate to trust instead of all that the machine has: changes whom it can connect to

One worker, real turns on the loopback model, in turns; ratios are medians of the ratios of the rounds.
"""

from __future__ import annotations

import argparse
import functools
import os
import ssl
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import common
import real

CONCURRENCY = 8
UNSEEN = """
    browser_annotation_api browser_use_external browser_use_full_cdp_access cli_daybreak daemon_auto_start
    in_app_browser in_app_chat in_app_dictation in_app_local_automation in_app_updates in_app_voice mentions_v2
    plugin_sharing realtime_conversation
"""
TOOLS = """
    browser_use code_mode_host computer_use goals hooks image_generation multi_agent skill_search sleep_tool
    tool_suggest
"""


class Profile(NamedTuple):
    overrides: tuple[str, ...] = ()
    env: dict[str, str] | None = None


def without(features: str) -> tuple[str, ...]:
    return tuple(f"features.{name}=false" for name in features.split())


def profiles(directory: Path) -> dict[str, Profile]:
    return {
        "pool": Profile(),
        "unseen": Profile(without(UNSEEN)),
        "quiet": Profile(env={"RUST_LOG": "off"}),
        "skills": Profile(("skills.bundled.enabled=false",)),
        "tools": Profile(without(TOOLS)),
        "bundle": Profile(env=roots_in(machine_bundle(), directory)),
        "roots": Profile(env=roots_in(one_root(directory), directory)),
    }


def machine_bundle() -> Path:
    """The file with all root certificates of the machine."""
    files = (
        os.environ.get("SSL_CERT_FILE"),
        ssl.get_default_verify_paths().openssl_cafile,
        "/etc/ssl/certs/ca-certificates.crt",
    )
    return next(Path(file) for file in files if file is not None and Path(file).is_file())


def one_root(directory: Path) -> Path:
    """A file with the first of the machine's root certificates, alone."""
    text = machine_bundle().read_text()
    end = "-----END CERTIFICATE-----\n"
    path = directory / "root.pem"
    path.write_text(text[: text.index(end) + len(end)])
    return path


def roots_in(file: Path, directory: Path) -> dict[str, str]:
    nothing = directory / "no-roots"
    nothing.mkdir(exist_ok=True)
    return {"SSL_CERT_FILE": str(file), "SSL_CERT_DIR": str(nothing)}


def measured(profile: Profile, home: Path, turns: int) -> float:
    """CPU milliseconds of the app-server for a turn."""
    with real.pooled(home, 1, CONCURRENCY, more=profile.overrides, env=profile.env) as running:
        running.run(3 * CONCURRENCY)
        before = running.cpu_s()["app-servers"]
        running.run(turns)
        return (running.cpu_s()["app-servers"] - before) / turns * 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=80, help="turns per run (default 80)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument("--out", type=Path, default=Path("out/bench/lean.json"), help="where the JSON goes")
    arguments = parser.parse_args()

    from codex_pool.demo import demo_home

    with (
        tempfile.TemporaryDirectory(prefix="codex-pool-bench-") as directory,
        demo_home(Path(directory) / "home", script=None) as home,
    ):
        runs = {
            name: functools.partial(measured, profile, home, arguments.turns)
            for name, profile in profiles(Path(directory)).items()
        }
        figures = common.alternate(runs, arguments.rounds, "ms")
    rows = [
        common.row(
            f"CPU of an app-server for a turn, {name}",
            statistics.median(values),
            "ms",
            peer=None if name == "pool" else "the pool's profile",
            ratio=None if name == "pool" else common.ratio(figures, name, "pool"),
        )
        for name, values in figures.items()
    ]
    settings = {"turns": arguments.turns, "rounds": arguments.rounds, "concurrency": CONCURRENCY}
    common.report(arguments.out, settings, rows, cpu_ms=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
