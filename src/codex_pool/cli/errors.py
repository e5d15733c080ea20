"""Errors as people read them: one line, the remedy in it, and an exit code that says what kind it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from codex_pool.cli import options

# How a turn that the pool has ended is named, by the kind of its error; any other has failed.
_ENDS = {"lost": "was lost", "stalled": "stalled"}


@contextmanager
def reported() -> Iterator[None]:
    """Turn the errors that a verb can meet into messages on stderr and exit codes."""
    from codex_app_server import (
        AppServerError,
        InvalidInputError,
        StartError,
        TransportClosedError,
        TurnFailedError,
    )
    from codex_pool import start
    from codex_pool.cli.streams import OutputError
    from codex_pool.configuration import ConfigurationError
    from codex_pool.endpoints import EndpointError

    try:
        yield
    except OutputError:
        # Said by `main`, for every verb.
        raise
    except (EndpointError, InvalidInputError) as error:
        fail(str(error), options.USAGE)
    except (StartError, ConfigurationError, TransportClosedError) as error:
        from codex_pool.os_errors import limits

        fail(f"{error}{limits()}", options.CANNOT_START)
    except TurnFailedError as error:
        fail(f"the turn {_ENDS.get(error.kind, 'failed')}: {error}", options.SOME_FAILED)
    except AppServerError as error:
        fail(str(error), options.SOME_FAILED)
    except start.HungUp:
        fail("the terminal is gone", options.HUNG_UP)
    except KeyboardInterrupt:
        fail("interrupted", options.INTERRUPTED)
    except OSError as error:
        from codex_pool.os_errors import describe

        fail(describe(error), options.CANNOT_START)
    except RuntimeError as error:
        fail(str(error), options.CANNOT_START)


def fail(message: str, code: int) -> NoReturn:
    """Say what went wrong on stderr and exit."""
    click.echo(f"codex-pool: {message}", err=True)
    sys.exit(code)
