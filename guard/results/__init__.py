"""Look inside a job's results: is each file its own, whole, and what the graph asked for."""
