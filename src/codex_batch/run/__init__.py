"""run: a run from its dataset to its exit code.

controller      run_batch: dataset and directory, Batch, and the end            the sequence
batch           one run on its event loop: configuration, launch, pool, samples
scheduler       which sample may be worked at, and when
sample_task     the life of one sample                                          writes to the store
executor        where attempts are run: the protocol
local_executor  attempts on the pool of this run
attempt         the turns of one attempt, followed and limited
recovery        attempts whose end no run saw
storage         writes that wait for room and for the database
interruption    signals, cancelling, the loss of the terminal
run_configuration  what the results there are were made with, and what is used now
ending          the outcome of a run, and what is done for the user with it
record_hooks    hooks that get each record, in processes of their own
output          what a run reports                                              display and --json
monitor         requests from outside, progress, logs
run_pool, pool_clients, launch  the pool of a run, and the one that takes its place
"""
