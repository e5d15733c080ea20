"""Name and title that a client of this SDK reports in `initialize`, unless its program gives others."""

from __future__ import annotations

CLIENT_NAME = "codex_app_server_python"
CLIENT_TITLE = "Codex app-server SDK for Python"
