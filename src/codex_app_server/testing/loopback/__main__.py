"""`python -m codex_app_server.testing.loopback`: the model as a child process.

stdin: one JSON line `{"script": PATH | "demo" | null, "port": 0, "host": "127.0.0.1"}`; it then stays open as long as
the parent lives. stdout: one JSON line, `{"event": "ready", "base_url": ..., "pid": ...}` or
`{"event": "failed", "message": ...}`. Ends at EOF of stdin or at SIGTERM with 0; with 2 when it cannot serve.
"""

from __future__ import annotations

import sys

from .serve import run_child

if __name__ == "__main__":
    sys.exit(run_child(sys.stdin.buffer, sys.stdout.buffer))
