"""Carry a job from its claim to its verdict: dispatch, the worker's reports, deadlines, the one ending."""
