"""Parts that the verbs of a pool's operator share: one request to a daemon, its answer, waiting for what follows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import options
from .errors import reported

if TYPE_CHECKING:
    from .line_client import LineClient

F = TypeVar("F", bound=Callable[..., Any])
# Between two looks at the status of a daemon that is waited for.
POLL_S = 0.5


def operator_options(function: F) -> F:
    """`--connect`, `--key`, `--json`: of a verb that steers a daemon."""
    function = click.option("--json", "as_json", is_flag=True, help="The answer of the daemon as one JSON line.")(
        function
    )
    return options.connect_option(function)


class Operator:
    """A connection to a daemon, as its operator. `endpoint` is where."""

    def __init__(self, endpoint: str, client: LineClient, *, as_json: bool) -> None:
        self.endpoint = endpoint
        self._client = client
        self._as_json = as_json
        self._shown = ""

    def ask(self, method: str, params: dict[str, Any], *, shows: bool = True) -> dict[str, Any]:
        """Send a request, print what it has changed unless it is not to be shown yet, and return that.

        Raises the error that was answered.
        """
        result: dict[str, Any] = json.loads(self._client.call(method, params))
        if not shows:
            return result
        if self._as_json:
            click.echo(json.dumps(result))
            return result
        click.echo(_plain(result["message"]))
        if result.get("turns"):
            self.show(result)
        for row in result.get("turnsWaiting", ()):
            click.echo(
                _plain(f"  turn {row['turnId']} of thread {row['threadId']}: for a person since {row['waitedS']:.0f} s")
            )
        return result

    def status(self) -> dict[str, Any]:
        """Return the status of the pool. Raises TransportClosedError once the daemon has ended."""
        found: dict[str, Any] = json.loads(self._client.call("pool/status", {}))
        return found

    def show(self, report: dict[str, Any]) -> None:
        """Print what is waited for on stderr, if it has changed. `report`: as of `waiting_text`."""
        from codex_pool.daemon.status_text import waiting_text

        self.say(waiting_text(report))

    def say(self, text: str) -> None:
        """Print what a command waits for on stderr, if it has changed."""
        if text != self._shown:
            self._shown = text
            click.echo(_plain(text), err=True)

    def print_json(self, result: dict[str, Any]) -> None:
        """Print a result, of a command with `--json`."""
        click.echo(json.dumps(result))

    def wait(self) -> None:
        """Wait before the next look. Raises TransportClosedError once the daemon has ended."""
        self._client.next(POLL_S)


@contextmanager
def operator(context: click.Context, connect: str | None, key: str | None, *, as_json: bool) -> Iterator[Operator]:
    """Connect to a daemon, by default the one of `codex-pool serve`; report errors as verbs do."""
    endpoint, key = options.endpoint_of(context, connect, key)
    with reported():
        from codex_pool.protocol import endpoints

        from .daemon_client import to_daemon
        from .line_client import LineClient

        name = f"codex-pool {context.info_name}"
        endpoint = endpoint or endpoints.default_endpoint()
        client = LineClient(
            to_daemon(endpoint, key, name),
            on_queue=lambda ahead: None,
            on_problem=lambda text: click.echo(text, err=True),
        )
        try:
            client.start()
            yield Operator(endpoint, client, as_json=as_json)
        finally:
            client.close()


def waits_for(status: dict[str, Any]) -> dict[str, Any]:
    """Return what a pool waits for that drains, as of `waiting_text`, from its status."""
    clients: dict[str, int] = {}
    for row in status["sessions"]:
        if row["turns"]:
            clients[row["client"]] = clients.get(row["client"], 0) + row["turns"]
    return {"turns": status["turns"]["running"], "clients": clients, "waiting": status["turns"]["waiting"]}


def _plain(text: str) -> str:
    from codex_pool.runtime.terminal import plain

    return plain(text)
