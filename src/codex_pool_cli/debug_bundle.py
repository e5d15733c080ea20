"""`codex-pool debug-bundle`: one file for people who look for a fault, without secrets and texts of people."""

from __future__ import annotations

import io
import os
import tarfile
import time
from pathlib import Path

import click

from . import options
from .doctor import address_of, examined
from .errors import fail, reported


@click.command(short_help="Write versions, findings, status and settings into one file, without secrets.")
@options.connect_option
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file that is not there yet.  [default: codex-pool-debug-TIME.tar.gz]",
)
@click.option(
    "--log",
    metavar="FILE",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="The log of the daemon, as in serve --log-file; its last MiB is added.  [default: that of a running daemon]",
)
@examined
@click.pass_context
def debug_bundle(
    context: click.Context,
    connect: str | None,
    key: str | None,
    output: Path | None,
    log: Path | None,
    binary: str | None,
    keys_directory: str | None,
) -> None:
    """Write a file for people who look for a fault: versions, findings of doctor, status of the daemon with its trace,
    names of environment variables, settings of codex, names and sizes of the files of CODEX_HOME.

    Nothing of prompts, texts of threads, keys and log-ins is in it; secrets that the environment, the homes and the
    keys hold are taken out of all texts. Look through it before you hand it over: tar xzf FILE.
    """
    output = output or Path(f"codex-pool-debug-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    with reported():
        address, key = address_of(context, connect, key)
        from codex_pool.auth.keys import default_directory

        from .bundle.members import log_of, members, redactor
        from .checks.run import collect, homes

        facts = collect(address, key, binary, keys_directory)
        places = homes(address)
        directory = default_directory() if keys_directory is None else Path(keys_directory)
        if log is None:
            log = log_of(facts)
        redact = redactor(places, key, directory)
        content = _archive(dict(members(facts, places, log, redact)))
        try:
            fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            fail(f"{output} exists; name another file with -o", options.USAGE)
        try:
            with open(fd, "wb") as file:
                file.write(content)
        except OSError:
            # A part of an archive helps nobody.
            output.unlink(missing_ok=True)
            raise
    click.echo(str(output))
    click.echo("codex-pool: look through it before you hand it over: README.txt in it says what it holds", err=True)


def _archive(found: dict[str, bytes]) -> bytes:
    """The members as a compressed archive, readable only to this user, without names of users."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in found.items():
            member = tarfile.TarInfo(f"codex-pool-debug/{name}")
            member.size, member.mode, member.mtime = len(content), 0o600, int(time.time())
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()
