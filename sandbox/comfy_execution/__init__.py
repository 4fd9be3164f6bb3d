"""How a graph is validated, keyed, ordered and reported on."""
