"""Decide whether a job comes to exist: everything between a request and its first commit."""
