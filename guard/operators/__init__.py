"""Answer the operator: figures for people, for Prometheus, and of the GPU."""
