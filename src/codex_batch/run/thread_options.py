"""Options of the thread of a sample: its directory, model and sandbox, what it must not read, and its AGENTS.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codex_app_server._runtime.files import resolved
from codex_pool.configuration import Configuration
from codex_pool.sandbox_modes import FULL_ACCESS, WORKSPACE_WRITE

from ..configuration.defaults import Defaults
from ..configuration.resolve import overrides_of
from ..container import running
from ..dataset import Sample
from ..scoring import Scorers
from ..store import directory_name, layout
from ..workspace import LinkTargets, Project, Workspace, base_of, private_of, thread_options

# How AGENTS.md of a sample's directory reaches its agent.
DEVELOPER_INSTRUCTIONS, CODEX = "developer_instructions", "codex"


class ThreadOptions:
    """Makes the options of threads for one run.

    `defaults` has the variants, whose configuration each of their threads is given. `private` is what no agent may
    read, `linked` the targets of the links in it. `trusting`: codex trusts the directories of samples, and takes
    everything from them.
    """

    def __init__(
        self,
        run: Path,
        *,
        shared: dict[str, Any],
        defaults: Defaults,
        configuration: Configuration,
        scorers: Scorers,
        guarded: bool,
        trusting: bool,
        private: Sequence[Path],
        linked: Sequence[Path],
        targets: LinkTargets,
    ) -> None:
        self._run = run
        self._shared = shared
        self._defaults = defaults
        self._configuration = configuration
        self._scorers = scorers
        self._guarded = guarded
        self._trusting = trusting
        self._private = private
        self._linked = linked
        self._targets = targets

    def of(self, sample: Sample, workspace: Workspace | None, cwd: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the options of the thread, and of its turns after the first."""
        options = {**self._shared, "cwd": cwd, "model": sample.model}
        config = overrides_of(self._defaults.of(sample.variant))
        if config:
            options["config"] = config
        configuration = self._configuration
        # Samples without a workspace that name no sandbox ask for the configured one.
        sandbox = sample.sandbox or (None if workspace is None else WORKSPACE_WRITE)
        if workspace is not None and workspace.place is not None:
            # The container has nothing in it to be denied.
            sandbox = sample.sandbox if workspace.place.sandbox == running.CODEX else FULL_ACCESS
        asked = configuration.thread_options if sandbox is None else {"sandbox": sandbox}
        more = {} if workspace is None else workspace.thread
        is_inside = workspace is not None and workspace.place is not None
        needs_guard = self._guarded and not is_inside and (workspace is not None or has_answers(sample, self._scorers))
        # Unguarded is also a pool that does not show its configuration.
        base = base_of(configuration, sandbox) if needs_guard else None
        if base is None:
            return _joined(options, asked, more), {}
        run, work = resolved(self._run), resolved(self._run / layout.WORK)
        own = work / directory_name(*sample.key)
        changing = {run: layout.lasting_files(run), work: (), own: [own / layout.BASE]}
        of_sample = [*private_of(sample), *self._scorers.files_of(sample)]
        guarded = thread_options(
            base,
            Path(cwd),
            [*self._private, *of_sample],
            changing,
            own=sample.cwd is None,
            linked=[*self._linked, *self._targets.of(of_sample)],
        )
        return _joined(options, guarded, more), {"permissions": guarded["permissions"]}

    def with_project(self, sample: Sample, options: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Return the options with what the directory may bring, and how AGENTS.md reaches the agent.

        That of a variant is in the workspace; without a workspace it takes the place of that of the directory.
        """
        own, cwd = sample.cwd is None, options["cwd"]
        project = Project(cwd, own=own)
        instead = None if sample.workspace is not None else self._defaults.of(sample.variant).agents_md
        text = project.agents_md() if instead is None else project.told(instead) if instead.strip() else None
        if self._trusting and instead is None:
            return options, None if text is None else CODEX
        given = options.get("config") or {}
        configured = given.get("developer_instructions") or self._configuration.developer_instructions
        untrusted = {"project_doc_max_bytes": 0} if self._trusting else project.untrusted()
        options = {**options, "config": {**given, **untrusted}}
        if text is None:
            return options, None
        # What is given here takes the place of what is configured.
        before = options.pop("developer_instructions", None) or configured
        options["developer_instructions"] = text if not before else f"{before}\n\n{text}"
        return options, DEVELOPER_INSTRUCTIONS


def _joined(*given: Mapping[str, Any]) -> dict[str, Any]:
    """Join options of a thread: of several `config`s, the keys of the later ones are in force."""
    joined: dict[str, Any] = {}
    config: dict[str, Any] = {}
    for each in given:
        joined |= each
        config |= each.get("config") or {}
    return {**joined, "config": config} if config else joined


def has_answers(sample: Sample, scorers: Scorers) -> bool:
    """Return True if there is something the agent must not read; denying costs a moment of each thread."""
    return sample.target is not None or bool(scorers.of(sample))
