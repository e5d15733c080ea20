"""The verbs as click knows them: each is loaded when it is called."""

from __future__ import annotations

import gc
from importlib import import_module

import click

from codex_pool import __version__

from . import HELP, VERBS

# Verbs that end before garbage matters, or enable its collection themselves.
SHORT = frozenset({"run", "sessions", "status", "threads", "turns", "workers"})


class _Verbs(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        # One file a verb, and in it the command of that name.
        name = name.replace("-", "_")
        command: click.Command = getattr(import_module(f"codex_pool_cli.{name}"), name)
        if name not in SHORT:
            gc.enable()
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = click.utils.make_str(args[0]) if args else ""
        if args and name not in VERBS and not name.startswith("-"):
            raise click.UsageError(f"no verb {name!r}; there are {', '.join(VERBS)}", context)
        return super().resolve_command(context, args)

    def get_help(self, context: click.Context) -> str:
        return HELP


@click.group(
    cls=_Verbs,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "--version", prog_name="codex-pool", message="%(prog)s %(version)s")
def verbs() -> None:
    """Run one verb."""
