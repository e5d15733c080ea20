"""Check options of a daemon that are right one by one: do they go together, and can they be used here?"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from codex_app_server.home import codex_home

from ..gateway.listeners.configuration import listener_config
from ..option_sources import Problem, Value
from ..options import options_of
from ..protocol import endpoints
from ..supervisor.spawn import checked_prices
from ..tracer.check import check_traces


def problems_of(values: Mapping[str, Value]) -> tuple[Problem, ...]:
    """All that is wrong with addresses and listeners; nothing is bound or started."""
    found = options_of({name: each.value for name, each in values.items()})
    checks: dict[str, Callable[[], object]] = {
        "endpoint": lambda: endpoints.ipc_path(found.endpoint or endpoints.default_endpoint()),
        "listen": lambda: None if found.listen is None else endpoints.check_tcp(found.listen),
        "prices": lambda: None if found.prices is None else checked_prices(found.prices),
        "traces": lambda: check_traces(found, os.environ),
        "": lambda: listener_config(found, codex_home(dict(os.environ))),
    }
    problems = []
    for name, check in checks.items():
        try:
            check()
        except endpoints.EndpointError as error:
            problems.append(Problem(values[name].where if name else "", str(error)))
    return tuple(problems)
