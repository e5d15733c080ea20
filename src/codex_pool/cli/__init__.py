"""The command line, one file a verb. Verbs are loaded when they are called: `--help` must be fast."""

from __future__ import annotations

from importlib import import_module

import click

from codex_pool import __version__

# Verb -> module, attribute, first line of its help (so that the list needs no import).
_VERBS = {
    "batch": ("batch", "batch", "Run every prompt of a dataset; results on disk."),
    "serve": ("serve", "serve", "Run a pool as a daemon that programs connect to."),
    "run": ("run", "run", "Run one turn; its text goes to stdout."),
    "status": ("status", "status", "Show what a daemon's workers and turns are doing."),
    "keys": ("keys", "keys", "Say who may connect over TCP: new, list, revoke, show-server."),
    "loopback-model": ("loopback_model", "loopback_model", "Run the built-in scripted model server on loopback."),
}


class _Verbs(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        entry = _VERBS.get(name)
        if entry is None:
            return None
        module, attribute, _ = entry
        command: click.Command = getattr(import_module(f"codex_pool.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = click.utils.make_str(args[0]) if args else ""
        if args and name not in _VERBS and not name.startswith("-"):
            raise click.UsageError(f"no verb {name!r}; there are {', '.join(_VERBS)}", context)
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in _VERBS.items()])


@click.group(
    cls=_Verbs,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "--version", prog_name="codex-pool", message="%(prog)s %(version)s")
def main() -> None:
    """A pool of codex app-server processes.

    `codex-pool VERB --help` says more. Completion in your shell (or zsh_source, fish_source):

    \b
      eval "$(_CODEX_POOL_COMPLETE=bash_source codex-pool)"
    """
