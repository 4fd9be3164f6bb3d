"""What every driver is told and does: `driver.py URL GRAPH…`; what its client hands over lies beside each graph."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def address(url: str) -> str:
    """Host, port and path, for clients that put the scheme in front themselves."""
    parts = urlsplit(url)
    return parts.netloc + parts.path.rstrip("/")


def main(run: Callable[[str, dict[str, Any]], bytes | None]) -> None:
    """`run` returns the picture that its client has got, None where there is none; what it raises is its error."""
    url, *graphs = sys.argv[1:]
    for graph in graphs:
        try:
            picture = run(url, json.loads(Path(graph).read_text()))
            Path(f"{graph}.picture").write_bytes(picture or b"")
        except Exception as error:
            Path(f"{graph}.error").write_text(f"{type(error).__name__}: {error}")
