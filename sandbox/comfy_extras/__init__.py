"""Node classes, one module per theme; `nodes.py` registers them."""
