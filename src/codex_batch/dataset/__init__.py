"""A dataset: samples, or everything that is wrong with them, reported at once with file and line.

sample      what a sample is                                          pure
fields      what each field must be                                   pure
row         one sample as it was written
unpacked    the bytes of a file, unpacked, in bounded pieces
json_array  the elements of a JSON array, one at a time               pure
readers     JSON lines, JSON arrays and CSV as rows, one at a time
arrow       Parquet files and Arrow tables as rows
hub         datasets of the Hugging Face hub as rows
folders     a directory of task folders as rows
plugin      rows of a format of a plug-in
harbor_tasks  tasks in Harbor's format as rows
sources     any of them, by the name of the dataset
cells       fields out of text                                        pure
columns     fields out of columns of other names                      pure
template    texts made by a Jinja template
selection   which samples, in which order, how often                  pure
shards      parts of a dataset for several machines                   pure
held        the selected samples, held on disk
load        all of it together
request     all that can be asked of a dataset, as text
swebench    rows of SWE-bench as samples, and the check that scores them
"""

from .columns import Columns
from .fields import MAX_DEPTH
from .held import Dataset
from .load import load, parse, read
from .request import Request
from .sample import DatasetError, Sample
from .selection import Filter, Selection
from .shards import Shard
from .sources import FORMATS, STDIN
from .template import Template

__all__ = [
    "FORMATS",
    "MAX_DEPTH",
    "STDIN",
    "Columns",
    "Dataset",
    "DatasetError",
    "Filter",
    "Request",
    "Sample",
    "Selection",
    "Shard",
    "Template",
    "load",
    "parse",
    "read",
]
