"""merge: run directories of shards become one run.

source   one run directory, read as it is at one moment
facts    what must be alike in runs that become one                    pure
choose   which of several results of one sample is taken               pure
copy     rows and event logs of samples, in one transaction
merging  all of it together
"""

from .merging import Merged, MergeError, merge

__all__ = ["MergeError", "Merged", "merge"]
