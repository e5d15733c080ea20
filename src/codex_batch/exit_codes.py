"""Exit codes of `codex-pool`, the same for every verb."""

from __future__ import annotations

OK = 0
# Some samples, scores or turns failed.
SOME_FAILED = 1
# Bad input: nothing was started.
USAGE = 2
# The pool, or an app-server, could not be started.
CANNOT_START = 3
# A gate has failed: scores are too low, or worse than those of the baseline, or too few are known.
GATE_FAILED = 4
# The terminal is gone (SIGHUP), or an interrupt (SIGINT, SIGTERM): 128 and the number of the signal, as a shell has it.
HUNG_UP = 128 + 1
INTERRUPTED = 128 + 2
NOT_STARTED = (USAGE, CANNOT_START)
