"""Carry a job from its claim to its verdict: dispatch, the worker's reports, deadlines, the one ending.

`dispatcher` fills free slots, `reconcile` frees those that nobody uses, `runs` follows what the worker reports,
`settle` writes the verdict, `watchdog` ends what does not end by itself, `process` and `drain` stop or restart the
server, `supervisor` tells systemd that it lives, `health` says whether it takes jobs, `secrets` keeps credentials in
memory.
"""
