"""Runs in a browser while they go on: pages of a server on loopback, for those who have their address."""
