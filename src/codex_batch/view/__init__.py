"""Runs in a browser while they go on: pages of a server on loopback, for whoever has their address."""
