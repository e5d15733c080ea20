"""batch: every prompt of a dataset through a pool, with results on disk that survive anything.

dataset    bytes -> samples, or all that is wrong with them         pure
policy     what an attempt came to, and whether to try again        pure
limits     of a sample and of a run, and when one is reached        pure
prices     what tokens cost                                         pure
breaker    what pauses a run: trouble that is no sample's own       pure
estimate   what a run will take, foretold from some of it           pure
scoring    what answers are worth, and figures of it
rescore    scoring a run again; score_run is what its command calls
export     a run as files that other programs read
store      the run directory: run.sqlite and what is made of it     the only writer
home       the CODEX_HOME of a run
attempt    the turns of one attempt, followed and limited
sampling   one sample from its workspace to its record
runner     many samples at once, on asyncio, through a client
progress   what a display shows                                     pure
display    a terminal, or lines
settings   what was asked for, and what is written down of it
notify     the user's command at the end
run        all of it together: what the command line calls
detach     the same in the background
attached   what a run shows to who looks at it from outside
control    telling a run what to do
runs       what there is to do with runs
"""
