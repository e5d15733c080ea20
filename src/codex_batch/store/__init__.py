"""store: the run directory, what a batch leaves on disk and goes on from.

layout          names of files, the lock, whose directory it is
schema          the tables of run.sqlite, their version and its migrations
rows            what is stored and read back, as values                   pure
outdated        scores that do not hold any more, and the reasons         pure
segments        event logs: gzip members in files, found by offset
rollouts        session files of codex, by attempt, kept as event logs are
statements      the changes of the tables, one function each
writer          the one thread that writes: waiting changes share a commit
redacting       known secrets taken out of what is written
configured      configurations that results were made with
directory       RunDirectory: the run that is under way                   the only writer
bridge          StoreBridge: an event loop that waits for the writer
run_files       event logs, session files and artifacts of a run, read
reader          RunStore: what stands there, also while a run writes
read_database   queries, also while another program writes
means           means of scores for a list of runs, computed in the database
stored_samples  samples of a run that goes on without its dataset
locked          a database that another program has locked is waited for
export          results.jsonl, made from the tables
"""

from .directory import Finished, RunDirectory, Start, Written, edit_run
from .layout import RunDirectoryError, SampleKey, directory_name, safe_name, shown_name
from .outdated import DatasetChanges
from .reader import RunStore, open_run
from .rollouts import Rollout, RolloutRow
from .rows import SUPERSEDED, AttemptRow, Entry, RecordRow, SampleRow, ScoreRow
from .segments import EventLog

__all__ = [
    "SUPERSEDED",
    "AttemptRow",
    "DatasetChanges",
    "Entry",
    "EventLog",
    "Finished",
    "RecordRow",
    "Rollout",
    "RolloutRow",
    "RunDirectory",
    "RunDirectoryError",
    "RunStore",
    "SampleKey",
    "SampleRow",
    "ScoreRow",
    "Start",
    "Written",
    "directory_name",
    "edit_run",
    "open_run",
    "safe_name",
    "shown_name",
]
