"""The command line, one file a verb. Verbs are loaded when they are called.

`codex-pool --help` is asked for more often than anything else and is text: it loads nothing but this
file and the exit codes.
"""

from __future__ import annotations

import gc
import os
import sys

from codex_batch.exit_codes import HUNG_UP, INTERRUPTED

# The exit code that a shell shows for a program that SIGPIPE has ended.
READER_GONE = 128 + 13
# Verb -> first line of its help.
VERBS = {
    "batch": "Run every prompt of a dataset; results on disk.",
    "score": "Score a run again, without running it again.",
    "report": "Write a run, two compared, or any number side by side, as one HTML page.",
    "attach": "Show a run that goes on in the background.",
    "runs": "List, view, show, check, tail, cancel, retry, merge, export and remove runs.",
    "plugins": "List the plug-ins of batches that are installed.",
    "convert": "Make a dataset of the tasks of another program: swebench.",
    "recipe": "Print a job that runs the shards of a dataset on a cluster: slurm, kubernetes.",
    "serve": "Run a pool as a daemon that programs connect to.",
    "bridge": "Be a codex app-server on stdin and stdout, with a pool behind it.",
    "run": "Run one turn; its text goes to stdout.",
    "status": "Show what a daemon's workers and turns are doing.",
    "interrupt": "Interrupt a turn that runs on a daemon.",
    "kick": "End a client's session with a daemon.",
    "pause": "Have new turns of a daemon wait, until `resume`.",
    "resume": "End `pause` and `drain`.",
    "drain": "Let the turns of a daemon, or of a worker, finish, and take no new ones.",
    "scale": "Change how many workers a daemon has.",
    "recycle": "Replace workers of a daemon, without a failed turn.",
    "upgrade": "Have a daemon run another codex binary, without a failed turn.",
    "stop": "Stop a daemon once its turns are over.",
    "top": "Watch the workers, turns and sessions of a daemon.",
    "turns": "List the turns of a daemon: running, waiting, queued.",
    "sessions": "List the sessions of a daemon: clients, and how they came in.",
    "threads": "List the threads that a daemon knows, and their workers.",
    "workers": "List the workers of a daemon: state, load, memory.",
    "usage": "Show what principals have used: turns, tokens, spend.",
    "reload": "Have a daemon read its configuration again.",
    "config": "Show and check the options of a daemon: show, check.",
    "doctor": "Check this machine, the log-in, the keys and the daemon.",
    "logs": "Show the log of a daemon, or follow it.",
    "debug-bundle": "Write versions, findings, status and settings into one file, without secrets.",
    "login": "Log in to the account that codex uses.",
    "logout": "Forget the account that codex uses.",
    "account": "Show who is logged in.",
    "keys": "Say who may connect, and how much they may use: new, set, rotate, list, ...",
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


def _leave_working_directory() -> None:
    """Import nothing more from the working directory, nor from empty or relative entries of PYTHONPATH.

    A checkout that an agent works on may hold a `click.py`. Modules that Python, `runpy` and the script of the command
    have loaded already are not unloaded: see docs/security.md.
    """
    if sys.flags.isolated:
        # Its path has been right from its begin, as that of all processes of the pool.
        return
    value = os.environ.get("PYTHONPATH")
    named = value.split(os.pathsep) if value else []
    # Python makes some of them absolute, which by then look like any other.
    absolute = {place for place in named if os.path.isabs(place)}
    try:
        relative = {os.path.abspath(place) for place in named if not os.path.isabs(place)} - absolute
        # With `python -m` the first entry is the working directory, whatever else is.
        specified = getattr(sys.modules["__main__"], "__spec__", None) is not None
        if specified and sys.path[:1] == [os.getcwd()] and sys.path[0] not in absolute:
            del sys.path[0]
    except FileNotFoundError:
        # The working directory has been removed: nothing can be loaded from there.
        relative = set()
    sys.path[:] = [place for place in sys.path if os.path.isabs(place) and place not in relative]
    # Where this package is, if only such an entry names it.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if root not in sys.path:
        sys.path.append(root)


def main() -> None:
    """Entry of `codex-pool`."""
    _leave_working_directory()
    from . import streams

    streams.prepare()
    try:
        try:
            _run()
        finally:
            try:
                streams.settle()
            except KeyboardInterrupt:
                # What is not read by now is not waited for.
                sys.exit(INTERRUPTED)
    except streams.OutputError as error:
        ended = error.__context__
        if isinstance(ended, SystemExit) and ended.code == HUNG_UP:
            # The terminal took what was still to be written along.
            raise ended from None
        if error.is_reader_gone:
            # As a program that the signal ends, which Python ignores: the reader wants no more.
            sys.exit(READER_GONE)
        print(f"codex-pool: {error}; what was to be printed is not complete", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        # No verb has reported its step: a path of the user's own that the system refuses.
        from codex_pool.runtime.os_errors import describe

        print(f"codex-pool: {describe(error)}", file=sys.stderr)
        sys.exit(2)


def _run() -> None:
    if sys.argv[1:] in (["--help"], ["-h"]) and "_CODEX_POOL_COMPLETE" not in os.environ:
        print(HELP)
        return
    # Nothing of what is loaded is garbage. A verb that goes on for long has it collected (see `verbs`).
    gc.disable()
    from .verbs import verbs

    verbs(prog_name="codex-pool")
