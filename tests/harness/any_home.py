"""The homes that ordinary users have: the matrix on which every verb has to work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MODEL = 'model = "mock-model"\n'
_OWN_PROFILE = '[permissions.mine]\nextends = ":workspace"\n[permissions.mine.filesystem]\n"/nonexistent" = "deny"\n'

# Text of config.toml, None for no such file; top-level keys first.
CONFIGS: dict[str, str | None] = {
    "missing": None,
    "empty": None,
    "only auth.json": None,
    "auth.json a link": None,
    "only a model": MODEL,
    "sandbox_mode read-only": 'sandbox_mode = "read-only"\n',
    "sandbox_mode workspace-write": 'sandbox_mode = "workspace-write"\n',
    "sandbox_mode danger-full-access": 'sandbox_mode = "danger-full-access"\n',
    "default_permissions :read-only": 'default_permissions = ":read-only"\n',
    "default_permissions :workspace": 'default_permissions = ":workspace"\n',
    "default_permissions :danger-full-access": 'default_permissions = ":danger-full-access"\n',
    "own profile": f'default_permissions = "mine"\n{_OWN_PROFILE}',
    "own profile and sandbox_mode": f'sandbox_mode = "read-only"\n{_OWN_PROFILE}',
    "projects": '[projects."/"]\ntrust_level = "trusted"\n',
    "unknown keys": "frobnicate = 1\n[nonsense]\nx = 1\n[features]\nnonsense = true\n",
    "shared databases": 'sqlite_home = "{home}/databases"\n',
    "a link": MODEL,
    "spaces and letters": MODEL,
}
# In which nothing keeps an agent from reading: there is no sandbox.
UNSANDBOXED = {"sandbox_mode danger-full-access", "default_permissions :danger-full-access"}


@dataclass(frozen=True)
class AnyHome:
    """One home of the matrix; `overrides` make a loopback model its provider, whatever config.toml says."""

    kind: str
    path: Path
    overrides: tuple[str, ...]

    @property
    def options(self) -> list[str]:
        """The overrides on a command line."""
        return [part for override in self.overrides for part in ("-c", override)]


def make_any_home(kind: str, root: Path, base_url: str) -> AnyHome:
    """Make a home of this kind below `root`."""
    path = root / ("Über home 家" if kind == "spaces and letters" else "codex-home")
    config = CONFIGS[kind]
    if kind != "missing":
        path.mkdir(mode=0o700)
    if kind in ("only auth.json", "auth.json a link"):
        file = root / "secrets.json" if kind == "auth.json a link" else path / "auth.json"
        file.write_text('{"OPENAI_API_KEY": "sk-test"}')
        if kind == "auth.json a link":
            (path / "auth.json").symlink_to(file)
    if config is not None:
        file = root / "dotfiles.toml" if kind == "a link" else path / "config.toml"
        file.write_text(config.replace("{home}", str(path)))
        if kind == "a link":
            (path / "config.toml").symlink_to(file)
    provider = (
        f'{{name="loopback",base_url="{base_url}",wire_api="responses",request_max_retries=0,stream_max_retries=0,'
        "supports_websockets=false}"
    )
    off = tuple(f"features.{name}=false" for name in ("shell_snapshot", "plugins", "apps", "remote_plugin"))
    overrides = ('model_provider="loopback"', f"model_providers.loopback={provider}", 'model="mock-model"', *off)
    return AnyHome(kind, path, overrides)
