"""The HTTP routes, one module per theme; each has `register(server)`."""
