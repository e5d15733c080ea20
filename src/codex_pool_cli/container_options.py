"""Options for a container for each sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from codex_batch.container.options import ContainerOptions

F = TypeVar("F", bound=Callable[..., Any])
ENGINES = ("podman", "docker")
_OPTIONS = (
    click.option(
        "--container",
        type=click.Choice(ENGINES),
        help="Each sample in a container of its own: agent, setup and command scorers. For root on Linux.",
    ),
    click.option("--image", metavar="IMAGE", help="Of samples that name no image and no build."),
    click.option(
        "--image-map",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Images by ids of samples, or patterns of ids: TOML, or JSON in a .json file.",
    ),
    click.option(
        "--container-cpus", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Processors of each."
    ),
    click.option("--container-memory", type=click.IntRange(min=6), metavar="MIB", help="Memory of each, in MiB."),
    click.option("--container-processes", type=click.IntRange(min=1), metavar="N", help="Processes of each."),
    click.option("--container-user", metavar="USER", help="The agent's user inside.  [default: that of the image]"),
    click.option("--container-network", is_flag=True, help="With the network of the engine; without it there is none."),
)


def container_options(function: F) -> F:
    """Give a command the options; it gets them as keywords, for `container_of`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def container_of(context: click.Context, given: dict[str, Any]) -> ContainerOptions | None:
    """Take the options of containers out of `given`; None without --container. Raises UsageError."""
    from codex_batch.container.options import ContainerOptions

    engine = given.pop("container")
    found = {
        "image": given.pop("image"),
        "image_map": given.pop("image_map"),
        "cpus": given.pop("container_cpus"),
        "memory_mb": given.pop("container_memory"),
        "processes": given.pop("container_processes"),
        "user": given.pop("container_user"),
        "network": given.pop("container_network"),
    }
    if engine is None:
        if any(found.values()):
            raise click.UsageError("options of containers are for --container, which is missing", context)
        return None
    if given.get("hook") is not None:
        raise click.UsageError("--workspace-hook cannot go with --container", context)
    return ContainerOptions(engine=engine, **found)
