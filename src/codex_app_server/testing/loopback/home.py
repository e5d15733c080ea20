"""A CODEX_HOME whose codex talks to a loopback model and to nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

SandboxMode = Literal["read-only", "workspace-write", "danger-full-access"]
ApprovalPolicy = Literal["untrusted", "on-request", "never"]

MARK = "# Written by codex_app_server.testing.loopback; it will be overwritten.\n"
_FEATURES_OFF = (
    # A login shell per thread: at 8 threads at once it takes the whole machine.
    "shell_snapshot",
    # These reach for the network at start.
    "plugins",
    "apps",
    "remote_plugin",
)


def loopback_config_toml(
    base_url: str,
    *,
    sandbox_mode: SandboxMode | None = None,
    approval_policy: ApprovalPolicy | None = None,
    model: str = "mock-model",
    request_max_retries: int = 0,
    stream_max_retries: int = 0,
    requires_openai_auth: bool = False,
) -> str:
    """Text of a config.toml that makes `base_url` (LoopbackModel.base_url) codex's only model provider.

    Like the one of a user who has only logged in, it sets no sandbox and no approvals unless asked to. The retries
    are codex's own; 0 makes every HTTP error and every cut stream end the turn. `requires_openai_auth`: codex sends the
    credentials of its auth.json, and a 401 makes it refresh ChatGPT tokens, see LoopbackIssuer.
    """
    said = {"approval_policy": approval_policy, "sandbox_mode": sandbox_mode}
    policies = "".join(f"{name} = {json.dumps(value)}\n" for name, value in said.items() if value is not None)
    features = "".join(f"{name} = false\n" for name in _FEATURES_OFF)
    # Of a login codex asks the ChatGPT backend for more than the model's answers, wherever the provider is.
    login = f"\nchatgpt_base_url = {json.dumps(base_url)}" if requires_openai_auth else ""
    auth = "\nrequires_openai_auth = true" if requires_openai_auth else ""
    return f"""{MARK}model = {json.dumps(model)}
model_provider = "loopback"
{policies}check_for_update_on_startup = false{login}

[model_providers.loopback]
name = "loopback"
base_url = {json.dumps(base_url)}
wire_api = "responses"
request_max_retries = {request_max_retries}
stream_max_retries = {stream_max_retries}
supports_websockets = false{auth}

[features]
{features}
[analytics]
enabled = false
"""


def write_loopback_home(
    path: str | Path,
    base_url: str,
    *,
    sandbox_mode: SandboxMode | None = None,
    approval_policy: ApprovalPolicy | None = None,
    model: str = "mock-model",
    request_max_retries: int = 0,
    stream_max_retries: int = 0,
    requires_openai_auth: bool = False,
) -> Path:
    """Make the directory `path` (mode 0700) a CODEX_HOME for loopback_config_toml(...); answers it as a Path.

    Raises FileExistsError when its config.toml is not one that this function wrote.
    """
    home = Path(path)
    config = home / "config.toml"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if config.exists() and not config.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise FileExistsError(
            f"{config} exists and was not written by codex_app_server.testing.loopback; give an empty directory"
        )
    text = loopback_config_toml(
        base_url,
        sandbox_mode=sandbox_mode,
        approval_policy=approval_policy,
        model=model,
        request_max_retries=request_max_retries,
        stream_max_retries=stream_max_retries,
        requires_openai_auth=requires_openai_auth,
    )
    config.write_text(text, encoding="utf-8")
    return home
