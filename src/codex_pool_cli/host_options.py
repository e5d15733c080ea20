"""Options of a batch on several machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from codex_batch.configuration.settings import HostOptions

F = TypeVar("F", bound=Callable[..., Any])


def host_options(function: F) -> F:
    """`--ray` and what goes with it; see `hosts_of`."""
    for option in (
        click.option(
            "--ray-spool",
            metavar="DIR",
            type=click.Path(file_okay=False, path_type=Path),
            help="Where hosts keep results until the run has them.  [default: ~/.cache/codex-pool/hosts]",
        ),
        click.option(
            "--ray-login",
            metavar="FILE",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="An auth.json that hosts log in with. An API key in it is sent; of a ChatGPT log-in the access token "
            "is, and the run renews it. Nothing of a log-in is sent otherwise.",
        ),
        click.option(
            "--ray-env",
            metavar="NAME",
            multiple=True,
            help="A variable of this shell that the hosts get, such as that of an API key; may be repeated.",
        ),
        click.option(
            "--ray",
            metavar="auto|ADDRESS|local",
            help="Run on the nodes of a Ray cluster, a pool of --workers on each; `local`: a cluster of this machine.",
        ),
    ):
        function = option(function)
    return function


def hosts_of(context: click.Context, given: dict[str, Any], endpoint: str | None) -> HostOptions | None:
    """The options that `--ray` means, taken out of a command's keywords; None without it. Raises UsageError."""
    from codex_batch.configuration.settings import HostOptions

    address, names = given.pop("ray"), given.pop("ray_env")
    login, spool = given.pop("ray_login"), given.pop("ray_spool")
    if address is None:
        for flag, value in (("--ray-env", names), ("--ray-login", login), ("--ray-spool", spool)):
            if value:
                raise click.UsageError(f"{flag} goes with --ray", context)
        return None
    if not address:
        raise click.BadParameter("is empty; give auto, an address of a Ray cluster, or local", param_hint="--ray")
    if endpoint is not None:
        raise click.UsageError("--ray has a pool on each host and cannot go with --connect", context)
    if given["codex_bin"] is not None:
        raise click.UsageError(
            "--ray uses the codex that is installed on each host and cannot go with --codex-bin", context
        )
    if given["container"] is not None:
        raise click.UsageError(
            "--ray runs samples on hosts without their containers and cannot go with --container; "
            "use --shard on each machine",
            context,
        )
    return HostOptions(address=address, environment=tuple(names), login=login, spool=spool)
