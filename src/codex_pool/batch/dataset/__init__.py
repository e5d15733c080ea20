"""A dataset: samples, or everything that is wrong with them, said at once with file and line.

sample      what a sample is                                          pure
fields      what each field must be                                   pure
rows        JSON lines, CSV and Parquet as rows, one at a time
folders     a directory of task folders as rows
template    prompts made by a Jinja template
selection   which samples, in which order, how often                  pure
load        all of it together
request     all that can be asked of a dataset, as text
"""

from .fields import MAX_DEPTH, SANDBOXES
from .load import FORMATS, STDIN, Dataset, load, parse, read
from .request import Request
from .sample import DatasetError, Sample
from .selection import Filter, Selection
from .template import Template

__all__ = [
    "FORMATS",
    "MAX_DEPTH",
    "SANDBOXES",
    "STDIN",
    "Dataset",
    "DatasetError",
    "Filter",
    "Request",
    "Sample",
    "Selection",
    "Template",
    "load",
    "parse",
    "read",
]
