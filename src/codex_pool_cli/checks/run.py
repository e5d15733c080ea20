"""Runs the probes side by side, each with a limit in time, so that a disk or a daemon that hangs costs one group."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codex_app_server.errors import AppServerError
from codex_app_server.home import codex_home
from codex_pool.protocol import endpoints

from . import endpoint as endpoint_probe
from . import home as home_probe
from . import keys as keys_probe
from . import software as software_probe
from . import system as system_probe
from .facts import Facts

LIMIT_S = 15.0

Probe = Callable[[], Any]


def collect(address: str | None, key: str | None, codex_bin: str | None, keys_directory: str | None) -> Facts:
    """Collect all facts within LIMIT_S seconds. `address`: of the daemon, None for the default one."""
    clock = system_probe.ClockProbe()
    probes: dict[str, Probe] = {
        "software": software_probe.software,
        "binary": lambda: software_probe.binary(codex_bin),
        "sandbox": lambda: software_probe.sandbox(codex_bin),
        "limits": system_probe.limits,
        "disks": lambda: system_probe.disks(_places(address)),
        "homes": lambda: tuple(home_probe.home(path) for path in homes(address)),
        "login": lambda: home_probe.login(codex_home(), os.environ),
        "endpoint": lambda: endpoint_probe.endpoint_or_default(address, key),
        "keys": lambda: keys_probe.keys(keys_directory),
    }
    found, unknown = run(probes, LIMIT_S)
    # At the end: a step of the clock is seen over the time that all took.
    last, why = run({"clock": lambda: clock.facts(codex_home())}, LIMIT_S)
    return Facts(**found, **last, unknown={**unknown, **why})


def run(probes: dict[str, Probe], limit_s: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Run probes in threads; the results by name, and why the others have none, within `limit_s` seconds."""
    results: queue.SimpleQueue[tuple[str, Any, str | None]] = queue.SimpleQueue()

    def one(name: str, probe: Probe) -> None:
        try:
            results.put((name, probe(), None))
        except Exception as error:
            results.put((name, None, f"{type(error).__name__}: {error}" if str(error) else repr(error)))

    for name, probe in probes.items():
        # One that hangs does not keep the process alive.
        threading.Thread(target=one, args=(name, probe), daemon=True, name=f"probe {name}").start()
    found: dict[str, Any] = {}
    unknown = dict.fromkeys(probes, f"no answer within {limit_s:g} s")
    deadline = time.monotonic() + limit_s
    for _ in probes:
        try:
            name, value, why = results.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        if why is None:
            found[name] = value
            del unknown[name]
        else:
            unknown[name] = why
    return found, unknown


def homes(address: str | None) -> list[Path]:
    """CODEX_HOME, and the own home of the daemon at an ipc endpoint where that has one."""
    found = [codex_home()]
    try:
        path = own_home(address)
    except (AppServerError, endpoints.EndpointError, OSError, RuntimeError):
        path = None
    if path is not None and path.is_dir():
        found.append(path)
    return found


def own_home(address: str | None) -> Path | None:
    """The path that the own home of a daemon has; None for one on another machine."""
    from codex_pool.homes import daemon_home_at

    default = endpoint_probe.default_endpoint()
    address = address or default
    return None if endpoints.is_tcp(address) else daemon_home_at(address, default)


def _places(address: str | None) -> list[tuple[str, Path]]:
    places = [("CODEX_HOME", codex_home())]
    # An address that cannot be one is a finding about the endpoint.
    with contextlib.suppress(endpoints.EndpointError):
        address = address or endpoint_probe.default_endpoint()
        if not endpoints.is_tcp(address):
            places.append(("the sockets", endpoints.ipc_path(address).parent))
    return places
