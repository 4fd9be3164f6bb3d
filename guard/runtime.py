"""Hand nodes the machine that app.py built: ComfyUI makes the nodes, and passes them nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass

from .faces.machine import FaceMachine
from .host import Host
from .settings import Settings


@dataclass(frozen=True)
class Runtime:
    """What nodes may use. `host` and `faces` are None where the plugin is off, or there is no server."""

    settings: Settings
    host: Host | None = None
    faces: FaceMachine | None = None


_current = Runtime(Settings())


def install(runtime: Runtime) -> None:
    """Let nodes use `runtime` from now on. app.py calls it once."""
    global _current
    _current = runtime


def current() -> Runtime:
    """The runtime that was installed; before that, one with default settings alone."""
    return _current
