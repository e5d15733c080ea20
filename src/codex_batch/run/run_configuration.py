"""The configuration of a run, found out and compared with that of the results that there are."""

from __future__ import annotations

from typing import Any

from codex_app_server._runtime import threads
from codex_app_server._runtime.text import plural

from ..configuration.defaults import stored
from ..configuration.effective import Effective, differences, in_words
from ..configuration.fingerprints import Fingerprints
from ..configuration.settings import Settings, variants_config
from ..store import RunDirectory, layout
from ..store.reader import VARIANTS
from .output import RunOutput


def make_directories(settings: Settings, directory: RunDirectory) -> None:
    """Make the directories of a run. A profile can deny only what is there, so they are before the first agent is."""
    archive = [layout.ROLLOUTS] if settings.rollouts else []
    for name in (layout.WORK, layout.EVENTS, *archive, layout.ARTIFACTS):
        directory.file(name).mkdir(exist_ok=True)


async def compare(
    prepared: dict[str, Effective],
    settings: Settings,
    directory: RunDirectory,
    config: dict[str, Any],
    output: RunOutput,
) -> int:
    """Write the configuration of each variant into the run and into `config`; return how many samples are to run again
    because theirs was another one.

    Raises RunDirectoryError if results are of another configuration and are not to be run again.
    """
    defaults, store = settings.defaults, directory.store
    effective = {name: each.to_json() for name, each in prepared.items()}
    done = directory.configure(
        Fingerprints(prepared, defaults.sandbox),
        rerun_changed=settings.rerun_changed,
        differences=lambda before, variant: in_words(differences(before, effective[variant])),
    )
    if defaults.variants:
        config["variants"] = variants_config(defaults, effective)
        now = {each.name: stored(each, effective[each.name]) for each in defaults.each()}
        known = [each for each in store.variants() if each["name"] in store.variant_names()]
        kept = {each["name"]: each for each in known}
        # Those that this command does not name come last, unless it runs samples of the run as they are stored.
        found = list(({**kept, **now} if settings.stored else {**now, **kept, **now}).values())
        await threads.in_thread(lambda: directory.note(VARIANTS, found).result())
    else:
        config["effective"] = effective[""]
    if done.unknown:
        output.say(
            f"{plural(done.unknown, 'result')} of an earlier codex-pool in {directory.path}: which "
            "configuration that was is not known, and not compared"
        )
    if done.again:
        output.say(f"{plural(done.again, 'sample')} of another configuration: run again")
    return done.again
