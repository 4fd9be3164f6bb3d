"""How a node reaches the machine that app.py built: nodes are made by ComfyUI, which hands them nothing of ours."""

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
    """Called once, by app.py."""
    global _current
    _current = runtime


def current() -> Runtime:
    return _current
