"""store: the run directory, what a batch leaves on disk and goes on from.

layout     names of files, the lock, whose directory it is
schema     the tables of run.sqlite, their version and its migrations
outdated   which scores do not hold any more, and why                 pure
rows       what is kept and read back, as values                     pure
segments   event logs: gzip members in files, found by offset
writer     the one thread that writes: waiting changes share a commit
configured  configurations that results were made with
directory  RunDirectory: the run that is under way                    the only writer
reading    RunStore: what stands there, also while a run writes
locked     a database that another program has locked is waited for
export     results.jsonl, made from the tables
"""

from .directory import Finished, RunDirectory, Start, Unfinished, Written, edit_run
from .layout import RunDirectoryError, directory_name, safe_name, shown_name
from .outdated import News
from .reading import RunStore, open_run
from .rows import AttemptRow, Entry, RecordRow, SampleRow, ScoreRow
from .segments import EventLog

__all__ = [
    "AttemptRow",
    "Entry",
    "EventLog",
    "Finished",
    "News",
    "RecordRow",
    "RunDirectory",
    "RunDirectoryError",
    "RunStore",
    "SampleRow",
    "ScoreRow",
    "Start",
    "Unfinished",
    "Written",
    "directory_name",
    "edit_run",
    "open_run",
    "safe_name",
    "shown_name",
]
