"""Workspaces: what a sample works in, a private copy; what the agent changed in it; and what it may not see.

prepare       a template, a commit or files -> a directory; set up, and the base remembered
repositories  git repositories: whether a commit is there, and where it is copied from
difference    the base and what became of it, by a git directory outside of the workspace
empty         directories of samples that have no workspace
hook          the user's command that may put a workspace elsewhere
project       what a project brings: AGENTS.md as instructions, nothing else
privacy       thread options that deny the agent's sandbox to read answers
targets       what links in private directories lead to
"""

from .empty_directories import EmptyDirectories
from .errors import WorkspaceError
from .link_targets import LinkTargets, links_in
from .prepare import Workspace, prepare, reopen, sweep
from .privacy import base_of, config_overrides, cwd_problem, private_of, thread_options
from .project import Project
from .repositories import Repositories

__all__ = [
    "EmptyDirectories",
    "LinkTargets",
    "Project",
    "Repositories",
    "Workspace",
    "WorkspaceError",
    "base_of",
    "config_overrides",
    "cwd_problem",
    "links_in",
    "prepare",
    "private_of",
    "reopen",
    "sweep",
    "thread_options",
]
