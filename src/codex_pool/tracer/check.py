"""Check before a pool starts whether it can have a tracer. Loads nothing of OpenTelemetry."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from ..options import PoolOptions
from ..protocol.endpoints import EndpointError

_NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
# The variables that choose what this tracer has only one of, the more particular one first.
_CHOICES = {
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"): "http/protobuf",
    ("OTEL_TRACES_EXPORTER",): "otlp",
}


def check_traces(options: PoolOptions, environ: Mapping[str, str]) -> None:
    """Raises EndpointError if traces are wanted and cannot be made."""
    if not options.traces:
        return
    if not all(map(_is_installed, _NEEDED)):
        raise EndpointError(
            "traces (--traces) needs opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http, which are not "
            "installed; install codex-pool with its extra otel, in a checkout: pip install '.[otel]'"
        )
    for names, only in _CHOICES.items():
        name = next((each for each in names if environ.get(each)), None)
        if name is not None and environ[name] != only:
            raise EndpointError(f"traces (--traces): {name} is {environ[name]!r}; expected {only}, or unset it")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
