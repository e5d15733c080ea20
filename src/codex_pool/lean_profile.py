"""The lean profile: switches of app-servers that the model cannot see, which a pool sets for its own."""

from __future__ import annotations

from codex_app_server import AppServerConfig

# A login shell per thread, the first one, costs more than the turns.
LEAN_OVERRIDES = ("features.shell_snapshot=false",)
LEAN_ENVIRON = {"RUST_LOG": "error"}
# Notifications that no client can want, and what alone brings each: a request that no client of a pool may make.
NEVER_WANTED = {
    "externalAgentConfig/import/completed": "externalAgentConfig/import",
    "externalAgentConfig/import/progress": "externalAgentConfig/import",
    "mcpServer/event/stream/notification": "mcpServer/event/stream/start",
    "windowsSandbox/setupCompleted": "windowsSandbox/setupStart",
}


def lean_argv(config: AppServerConfig) -> list[str]:
    """The app-server's command line with the lean profile; the user's own overrides come after it and win."""
    argv = config.argv()
    if config.launch_args_override is not None:
        return argv
    lean = [part for override in LEAN_OVERRIDES for part in ("--config", override)]
    return [argv[0], *lean, *argv[1:]]


def lean_environ(config: AppServerConfig) -> dict[str, str]:
    """The app-server's environment with the lean profile; what the user has set wins."""
    return {**LEAN_ENVIRON, **config.environ()}
