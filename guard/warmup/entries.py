"""What the settings name, made into prompts as `POST /guarded/prompt` would."""

from __future__ import annotations

import functools
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...own_files import FileError, read_json
from ..bounds import Bounds
from ..errors import InvalidRequestError, NotFoundError
from ..host import Host
from ..settings import WarmupRun
from ..submit.conversion import Convert, make_converter
from ..submit.request import Prompt, parse
from ..templates.catalogue import Templates

_BOUNDS = Bounds()
_MAX_NODES = 20_000
_SEEDS = {"seed", "noise_seed"}


@dataclass(frozen=True)
class Entry:
    """One of `warmup.runs`.

    Attributes:
        name: the template's, or the file's.
        fingerprint: changes with what the settings say of it.
    """

    name: str
    fingerprint: str
    wanted: WarmupRun


def list_entries(wanted: tuple[Mapping[str, Any], ...]) -> list[Entry]:
    entries = []
    for each in wanted:
        run = WarmupRun.model_validate(each)
        text = json.dumps(each, sort_keys=True)
        entries.append(Entry(run.template or run.prompt, hashlib.sha256(text.encode()).hexdigest()[:32], run))
    return entries


class Prompts:
    """Makes them. Any thread but the event loop's: waits for the disk."""

    def __init__(self, host: Host, templates: Templates, own: Path) -> None:
        self._host = host
        self._templates = templates
        self._own = own
        self._convert: Convert | None = None

    def bind(self) -> None:
        """Take workflows in the editor's own format from now on. Event loop."""
        self._convert = make_converter(self._host, _MAX_NODES)

    def make(self, entry: Entry) -> Prompt:
        """Raises GuardError where there is no such template or file, or this server lacks something for it."""
        prompt = self._parse(entry)
        for node in prompt.graph.values():
            for name in _SEEDS & node["inputs"].keys():
                if type(node["inputs"][name]) is int:  # a sampler that the host has cached would load no model
                    node["inputs"][name] = secrets.randbelow(2**31)
        return prompt

    def _parse(self, entry: Entry) -> Prompt:
        if entry.wanted.template:
            raw = json.dumps({"parameters": entry.wanted.parameters}).encode()
            return parse(raw, _BOUNDS, functools.partial(self._templates.fill, entry.wanted.template))
        given = self._read(entry.wanted.prompt)
        body = given if isinstance(given, dict) and ("prompt" in given or "nodes" in given) else {"prompt": given}
        return parse(json.dumps(body).encode(), _BOUNDS, None, self._convert)

    def _read(self, name: str) -> Any:
        path = self._own / name
        try:
            return read_json(path)
        except FileNotFoundError as error:
            raise NotFoundError(f"{name} cannot be read: {error.strerror}.") from None
        except FileError as error:
            raise InvalidRequestError(f"{error}.") from None
