"""The servers that the guard can live in, each behind the promise of `guard/host.py`."""
