"""What a link looks like."""

from typing import Any


def is_link(value: Any) -> bool:
    """Whether an input's value is `[node_id, output_index]` rather than a constant."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float)
    )
