"""Errors as people read them: one line, the remedy in it, and an exit code by kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from . import options

# How a turn that the pool has ended is named, by the kind of its error; any other has failed.
_ENDS = {"lost": "was lost", "stalled": "stalled"}


@contextmanager
def reported() -> Iterator[None]:
    """Turn the errors that a verb can meet into messages on stderr and exit codes."""
    from codex_app_server.errors import (
        AppServerError,
        InvalidInputError,
        StartError,
        TransportClosedError,
        TurnFailedError,
    )
    from codex_pool.protocol.endpoints import EndpointError
    from codex_pool.protocol.thread_defaults import ConfigurationError
    from codex_pool.runtime import startup

    from .streams import OutputError

    try:
        yield
    except OutputError:
        # Reported by `main`, for every verb.
        raise
    except (EndpointError, InvalidInputError) as error:
        fail(str(error), options.USAGE)
    except (StartError, ConfigurationError, TransportClosedError) as error:
        from codex_pool.runtime.os_errors import limits

        fail(f"{error}{limits()}", options.CANNOT_START)
    except TurnFailedError as error:
        fail(f"the turn {_ENDS.get(error.kind, 'failed')}: {error}", options.SOME_FAILED)
    except AppServerError as error:
        fail(str(error), options.SOME_FAILED)
    except startup.HungUp:
        fail("the terminal is gone", options.HUNG_UP)
    except KeyboardInterrupt:
        fail("interrupted", options.INTERRUPTED)
    except OSError as error:
        from codex_pool.runtime.os_errors import describe

        fail(describe(error), options.CANNOT_START)
    except RuntimeError as error:
        fail(str(error), options.CANNOT_START)


def fail(message: str, code: int) -> NoReturn:
    """Report what went wrong on stderr and exit."""
    click.echo(f"codex-pool: {message}", err=True)
    sys.exit(code)
