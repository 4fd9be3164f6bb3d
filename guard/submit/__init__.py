"""Decide whether a job comes to exist: everything between a request and its first commit.

`admission` is the list of steps, `request` reads the body strictly, `policy` says what a prompt may ask for, `limits`
how often a client may ask.
"""
