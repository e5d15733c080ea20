"""The process that clients over TCP connect to: it authenticates, bounds, and forwards to the broker."""
