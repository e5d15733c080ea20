"""The command line, one file a verb. Verbs are loaded when they are called.

`codex-pool --help` is asked for more often than anything else and is text: it loads nothing but this file.
"""

from __future__ import annotations

import os
import sys

# Verb -> first line of its help.
VERBS = {
    "batch": "Run every prompt of a dataset; results on disk.",
    "score": "Score a run again, without running it again.",
    "report": "Write a run, or two runs compared, as one HTML page.",
    "attach": "Show a run that goes on in the background.",
    "runs": "List, show, tail, cancel, retry, export and remove runs.",
    "serve": "Run a pool as a daemon that programs connect to.",
    "run": "Run one turn; its text goes to stdout.",
    "status": "Show what a daemon's workers and turns are doing.",
    "login": "Log in to the account that codex uses.",
    "logout": "Forget the account that codex uses.",
    "account": "Show who is logged in.",
    "keys": "Say who may connect over TCP: new, list, revoke, reset-ownership, show-server.",
    "loopback-model": "Run the built-in scripted model server on loopback.",
}
HELP = f"""\
Usage: codex-pool [OPTIONS] VERB [ARGS]...

  A pool of codex app-server processes.

  `codex-pool VERB --help` says more. Completion in your shell (or zsh_source, fish_source):

    eval "$(_CODEX_POOL_COMPLETE=bash_source codex-pool)"

Options:
  --version   Show the version and exit.
  -h, --help  Show this message and exit.

Verbs:
{chr(10).join(f"  {name:<14}  {summary}" for name, summary in VERBS.items())}"""


def _print_anything() -> None:
    """Let stdout and stderr take any text: what their encoding lacks is written as escapes, bytes of paths as bytes."""
    import codecs

    codecs.register_error("codex-pool", _escaped)
    for stream in (sys.stdout, sys.stderr):
        # None when the descriptor is closed.
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="codex-pool")


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return ascii(letter)[1:-1], error.start + 1


def main() -> None:
    """Entry of `codex-pool`."""
    _print_anything()
    if sys.argv[1:] in (["--help"], ["-h"]) and "_CODEX_POOL_COMPLETE" not in os.environ:
        print(HELP)
        return
    from codex_pool.cli.verbs import verbs

    verbs(prog_name="codex-pool")
