from codex_app_server.testing.loopback import *  # noqa: F403
