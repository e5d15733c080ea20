"""hosts: the samples of a run on other machines.

leases           who has which attempt, until when, and which result counts            pure
messages         what a run and its hosts send each other
bundle           files that samples need elsewhere, by their content
host             a host: a small run of its own, whose samples are leased
leased_task      the life of a leased sample on its host
fleet            the hosts of a run: joined, leased to, collected from
remote_executor  Executor: attempts on the hosts of a fleet
engine           the way to the hosts; `ray_engine` is that of a Ray cluster
"""
