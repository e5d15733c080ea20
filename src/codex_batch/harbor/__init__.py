"""Tasks in Harbor's format: folders with a task.toml, an instruction, an image, tests and a solution.

task       what a task is                                             pure
keys       the keys of task.toml, and which of them are supported      pure
parse      the text of a task.toml -> a task, or all that is wrong     pure
rewards    the reward file of a verifier -> scores                     pure
report     what verifiers made of the steps of an attempt              pure
collected  files of the container that are kept, in bounds
variables  `${NAME}` of the environment in values                      pure
content    the digest of a task folder, as Harbor makes it
folder     a task folder -> a task
"""

from __future__ import annotations
