"""`mcp` on the command line: the tools of a server, near or far, for an agent on this machine, over stdio."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from .api import Reach
from .bridge import explain_missing

URL, KEY = "GUARDED_URL", "GUARDED_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        metavar="URL",
        help=f"the server (default: {URL} of the environment, else that of this package's ComfyUI)",
    )
    parser.add_argument(
        "--key", metavar="KEY", help=f"a key of that server; better in {KEY} of the environment, where nobody sees it"
    )
    parser.add_argument("--save", type=Path, metavar="DIR", help="save each result in this folder, and name the file")
    parser.add_argument("--locale", metavar="LANGUAGE", default="en", help="of the texts for users: en or ru")
    parser.add_argument(
        "--no-paths",
        action="store_true",
        help="take no picture by its path: the agent may not read this machine's files",
    )


def run(arguments: argparse.Namespace, find_url: Callable[[], str]) -> int:
    """Serve until standard input ends. The exit status: 2 where the optional package is not installed."""
    try:
        from .server import make_server
        from .stdio import serve
    except ImportError as error:
        sys.stderr.write(f"{explain_missing(error)}\n")
        return 2
    url = arguments.url or os.environ.get(URL) or find_url()
    key = arguments.key or os.environ.get(KEY) or ""
    headers = {"Accept-Language": arguments.locale, **({"Authorization": f"Bearer {key}"} if key else {})}
    reach = Reach(url, headers)

    server = make_server(lambda _request: reach, reads_paths=not arguments.no_paths, save=arguments.save)
    asyncio.run(serve(server))
    return 0
