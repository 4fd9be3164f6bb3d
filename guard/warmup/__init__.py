"""Runs what the operator names before the first job comes, so that it finds its models loaded.

A warm-up goes through the same host, watchdog and checks as a job and is none: it is not in the store, so nothing
counts, bills or lists it, and no owner ever has it.

* `entries.py`: what the settings name, as prompts
* `runs.py`: listens to the host on behalf of the warm-up that runs
* `mark.py`: notes on the disk what runs, for one that kills the process
* `warmups.py`: when each of them runs, and whether the server is warm
"""
