"""The servers that we can live in, each behind the promise of `guard/host.py`."""
