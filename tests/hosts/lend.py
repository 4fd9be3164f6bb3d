"""Lend a host what an optional package of ours needs: as if it were installed there, and nothing is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from comfyui_guarded.tests.hosts.launch import HostKind

_ASK = (
    "import importlib.metadata as m, json, sys; "
    "print(json.dumps([list(sys.version_info[:2]), [d.metadata['Name'] for d in m.distributions()]]))"
)


def lend(kind: HostKind, package: str, folder: Path) -> dict[str, str]:
    """What the host's environment needs to have the package; nothing where it has it, or has another Python than we."""
    if kind.python == sys.executable:
        return {}
    asked = subprocess.run([kind.python, "-c", _ASK], capture_output=True, check=True, text=True)
    version, names = json.loads(asked.stdout)
    if tuple(version) != sys.version_info[:2]:
        return {}
    has = {_normalise(name) for name in names}
    folder.mkdir()
    waiting, seen = [package], set(has)
    while waiting:
        name = _normalise(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # for another system
            continue
        _link(found, folder)
        for line in found.requires or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": "crypto"}):
                waiting.append(wanted.name)
    return {"PYTHONPATH": str(folder)}


def _link(found: Distribution, folder: Path) -> None:
    site = Path(str(found.locate_file("")))
    for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
        target = folder / top
        if not target.exists():
            target.symlink_to(site / top)


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
