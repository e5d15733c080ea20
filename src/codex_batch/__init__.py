"""codex_batch: every prompt of a dataset through a pool, with results on disk that survive a crash at any instant.

dataset        bytes -> samples, or all that is wrong with them                 pure
workspace      directories of samples, and what agents changed in them
scoring        scores of answers, and figures of them
rules          retries, limits, breaker, estimate, progress, validity   pure
configuration  settings of a run, and the configuration that its threads have
store          the run directory: run.sqlite and what is made of it             the only writer
run            a run from its dataset to its exit code
redaction      known secrets taken out of what is written
display        a terminal, or lines
gates          scores that let a command succeed; files for CI systems
manage         runs from outside: in the background, listed, cancelled, scored again
report, export a run as a page, and as files that other programs read
exit_codes     exit codes of the commands

Of codex_pool it uses a listed part (docs/architecture.md).
"""
