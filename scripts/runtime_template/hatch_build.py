"""Builds what was staged as the wheel of one platform, and nothing else."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags


class RuntimeBuildHook(BuildHookInterface):
    """Refuses an sdist and the bare template; tags the wheel with its platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        if self.target_name != "wheel":
            raise RuntimeError(
                f"target {self.target_name!r} was asked for, expected 'wheel': this package is published as wheels "
                "only; build it with: python -m pip wheel --no-deps DIR"
            )
        manifest = Path(self.root, "src", "codex_cli_bin", "codex-package.json")
        if not manifest.is_file():
            raise RuntimeError(f"{manifest} is missing, expected a staged runtime: make one with stage-runtime")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{self.config['platform-tag'] or host_tag()}"


def host_tag() -> str:
    """The most specific tag of this host that package indexes take: they refuse bare linux ones."""
    return next(tag for tag in platform_tags() if not tag.startswith("linux_"))
