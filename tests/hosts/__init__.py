"""Hosts for tests, the tour and benchmarks: the launcher, and nodes that misbehave on purpose."""
