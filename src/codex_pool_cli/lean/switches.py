"""Switches of app-servers that the guide of pools describes, each with what is given up for it."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from codex_pool.lean_profile import LEAN_OVERRIDES

TOOLS = (
    "multi_agent",
    "goals",
    "skill_search",
    "image_generation",
    "hooks",
    "tool_suggest",
    "sleep_tool",
    "browser_use",
    "computer_use",
    "code_mode_host",
)
UNSEEN = (
    "browser_annotation_api",
    "browser_use_external",
    "browser_use_full_cdp_access",
    "cli_daybreak",
    "daemon_auto_start",
    "in_app_browser",
    "in_app_chat",
    "in_app_dictation",
    "in_app_local_automation",
    "in_app_updates",
    "in_app_voice",
    "mentions_v2",
    "plugin_sharing",
    "realtime_conversation",
)
# What an empty directory of root certificates is called where it is only shown.
NO_ROOTS = "/path/to/empty-directory"
_CERTIFICATE_END = "-----END CERTIFICATE-----\n"
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


@dataclass(frozen=True, slots=True)
class Switch:
    """A switch, measured against an app-server as a pool starts it.

    `overrides` and `env` are on top of that, or where the pool sets the switch by itself (`is_set`) what undoes it.
    `setting`: what sets it, as options of the command or as variables of the environment.
    """

    name: str
    setting: tuple[str, ...]
    given_up: str
    overrides: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    is_set: bool = False


def switches(directory: Path) -> list[Switch]:
    """List the switches that this machine has; `directory` takes the files of root certificates that are tried."""
    undone = tuple(each.replace("=false", "=true") for each in LEAN_OVERRIDES)
    found = [
        Switch("shell_snapshot", _options(LEAN_OVERRIDES), "what a login shell sets, in commands", undone, is_set=True),
        Switch("no log", ("RUST_LOG=off",), "errors in codex's own log", env={"RUST_LOG": "off"}),
        _switch("skills", ("skills.bundled.enabled=false",), "the skills that come with codex"),
        _switch("tools", _without(TOOLS), f"{len(TOOLS)} tools and your hooks: the agent works without them"),
        _switch("app", _without(UNSEEN), "nothing: switches of codex's app and terminal"),
    ]
    bundle = machine_bundle()
    if bundle is None:
        return found
    return [
        *found,
        _roots("one bundle", bundle, str(bundle), "certificates that only the directory has", directory),
        _roots("few roots", one_root(bundle, directory), "/path/to/roots.pem", "trust in all other roots", directory),
    ]


def _switch(name: str, overrides: tuple[str, ...], given_up: str) -> Switch:
    return Switch(name, _options(overrides), given_up, overrides)


def _options(overrides: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"-c {each}" for each in overrides)


def _without(features: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"features.{name}=false" for name in features)


def _roots(name: str, file: Path, shown: str, given_up: str, directory: Path) -> Switch:
    nothing = directory / "no-roots"
    nothing.mkdir(exist_ok=True)
    env = {"SSL_CERT_FILE": str(file), "SSL_CERT_DIR": str(nothing)}
    return Switch(name, (f"SSL_CERT_FILE={shown}", f"SSL_CERT_DIR={NO_ROOTS}"), given_up, env=env)


def machine_bundle() -> Path | None:
    """The file with all root certificates of the machine, None where there is none."""
    named = (os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().openssl_cafile, *_BUNDLES)
    return next((Path(file) for file in named if file and _has_certificates(Path(file))), None)


def _has_certificates(path: Path) -> bool:
    return path.is_file() and _CERTIFICATE_END in path.read_text("utf-8", "replace")


def one_root(bundle: Path, directory: Path) -> Path:
    """Write a file with the first root certificate of a bundle, alone; return its path."""
    text = bundle.read_text("utf-8", "replace")
    path = directory / "root.pem"
    path.write_text(text[: text.index(_CERTIFICATE_END) + len(_CERTIFICATE_END)], "utf-8")
    return path
