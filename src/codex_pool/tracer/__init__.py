"""The tracer process: OpenTelemetry spans of turns, from what workers report of them."""
