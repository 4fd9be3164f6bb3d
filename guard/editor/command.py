"""`convert` on the command line: a workflow in the editor's own format in, the prompt out."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import GuardError
from .read import is_workflow
from .resolve import convert

#: More than any workflow has that a person has made.
_MAX_NODES = 100_000

_PATIENCE_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the workflow as the editor saves it; - reads standard input")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--object-info", metavar="FILE", help="what the server's /object_info has answered, so that none need run"
    )
    source.add_argument("--url", metavar="URL", help="the server to ask (default: the one of this package's ComfyUI)")
    parser.add_argument("--key", metavar="KEY", help="a key of that server, where it wants one")
    parser.add_argument("--out", metavar="FILE", help="where the prompt goes (default: standard output)")


def run(arguments: argparse.Namespace, find_url: Callable[[], str], say: Callable[[str], None]) -> int:
    """The exit status: 0 with the prompt, 1 where the workflow cannot be converted, 2 where something else is wrong.

    What goes wrong is said on standard error, so that standard output has the prompt only.
    """

    def complain(text: str) -> int:
        sys.stderr.write(f"{text}\n")
        return 2

    try:
        workflow = _read_json(arguments.file)
        if arguments.object_info is not None:
            info = _read_json(arguments.object_info)
        else:
            info = _ask(arguments.url or find_url(), arguments.key)
    except (OSError, ValueError, RecursionError) as error:
        return complain(str(error))
    if not isinstance(info, dict):
        return complain("The description of the server's node classes is no JSON object.")
    if not is_workflow(workflow):
        return complain(f"{arguments.file} is no workflow in the editor's own format.")
    try:
        prompt = convert(workflow, lambda class_type: _describe(info, class_type), _MAX_NODES)
    except GuardError as error:
        complain(f"{error.message} ({error.code}: {error.extra_info.get('reason')})")
        return 1
    text = json.dumps(prompt, indent=2, ensure_ascii=False)
    if arguments.out is None:
        say(text)
        return 0
    try:
        Path(arguments.out).write_text(f"{text}\n", "utf-8")
    except OSError as error:
        return complain(str(error))
    return 0


def _describe(info: Mapping[str, Any], class_type: str) -> Mapping[str, Any] | None:
    found = info.get(class_type)
    return found if isinstance(found, dict) else None


def _read_json(name: str) -> Any:
    raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return json.loads(raw)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None


def _ask(url: str, key: str | None) -> Any:
    """What the server says of its node classes. Raises OSError and ValueError, with what to do."""
    address = f"{url.rstrip('/')}/guarded/object_info"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {key}"} if key else {})
    # A proxy from the environment cannot reach this machine.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=_PATIENCE_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        wanted = " It wants a key: --key." if error.code == 401 else ""
        raise OSError(f"{address} answered {error.code}.{wanted}") from None
    except OSError as error:
        raise OSError(
            f"No server answers at {address} ({error}). Start it, name another with --url, or give a saved answer of "
            "/object_info with --object-info."
        ) from None
