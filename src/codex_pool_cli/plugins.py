"""`codex-pool plugins`: list what other distributions bring to batches."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from . import options, streams
from .tables import aligned

if TYPE_CHECKING:
    from codex_batch.plugins.discovery import Plugin


@click.command(short_help="List the plug-ins of batches that are installed.")
@click.option("--check", is_flag=True, help="Import them too; one that cannot be imported is not used.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def plugins(check: bool, as_json: bool) -> None:
    """List the plug-ins of batches that are installed, with their distributions.

    They are scorers, formats of datasets, exporters and on-record hooks. One that cannot be used has the reason.

    \b
    Exit codes:
      0  all can be used, as far as they were looked at
      1  some cannot
    """
    from dataclasses import asdict

    from codex_batch.plugins import CONTRACT

    found = [_checked(plugin) if check else plugin for plugin in _installed()]
    if as_json:
        listed = [asdict(plugin) for plugin in found]
        click.echo(streams.json_text(json.dumps({"contract": CONTRACT, "plugins": listed}, indent=2)))
    elif not found:
        click.echo(f"no plug-ins are installed; this codex-pool has version {CONTRACT} of their contract")
    else:
        rows = [("GROUP", "NAME", "OBJECT", "DISTRIBUTION", "STATE")]
        rows += [(each.group, each.name, each.value, each.distribution, _state(each, check)) for each in found]
        for line in aligned(rows, left=range(5)):
            click.echo(streams.shown(line))
    sys.exit(options.SOME_FAILED if any(each.problem for each in found) else options.OK)


def _installed() -> list[Plugin]:
    from codex_batch.dataset import FORMATS as DATASET_FORMATS
    from codex_batch.export import FORMATS as EXPORT_FORMATS
    from codex_batch.plugins import discovery
    from codex_batch.plugins.hooks import BUILT_IN
    from codex_batch.scoring.parse import TYPES

    return discovery.plugins(
        {
            discovery.SCORERS: TYPES,
            discovery.DATASETS: DATASET_FORMATS,
            discovery.EXPORTERS: EXPORT_FORMATS,
            discovery.ON_RECORD: BUILT_IN,
        }
    )


def _checked(plugin: Plugin) -> Plugin:
    from dataclasses import replace

    from codex_batch.plugins.discovery import PluginError

    try:
        if plugin.problem is None:
            plugin.load()
    except PluginError as error:
        return replace(plugin, problem=str(error))
    return plugin


def _state(plugin: Plugin, checked: bool) -> str:
    if plugin.problem is None:
        return "can be used" if checked else "found"
    return f"not used: {plugin.problem}"
