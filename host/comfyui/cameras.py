"""Let no job of a key take pictures of this machine: of its screen and clipboard, or by its cameras.

What does that is code in C, of which the tripwire hears nothing. So the few functions that lead there are wrapped, in
modules that are there and in those that come later, whoever imports them. One that nobody imports stays out.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .patching import replace_function

#: Raises PermissionError on behalf of a key's job.
Forbid = Callable[[], None]

#: What sees, hears or reads what people at this machine do: cameras, screens, microphones, keyboards.
_DEVICES = re.compile(r"/dev/(video|media|v4l|fb|vcs|snd|dsp|input)")


def is_camera(path: str) -> bool:
    """Whether a real path is a device by which this machine, or who sits before it, can be seen or heard."""
    return _DEVICES.match(path) is not None


def is_display(address: Any) -> bool:
    """Whether a socket's address is that of an X11 or Wayland server, which gives pictures of the screen."""
    if not isinstance(address, (str, bytes)):
        return False
    path = os.fsdecode(address)
    return "/.X11-unix/" in path or os.path.basename(path).startswith("wayland-")


def watch_cameras(forbid: Forbid) -> None:
    """Wrap what is imported, and what will be. The main thread, once."""
    for name, guard in _GUARDS.items():
        if (module := sys.modules.get(name)) is not None:
            guard(module, forbid)
    sys.meta_path.insert(0, _Finder(forbid))


class _Finder(MetaPathFinder):
    """Finds what the others find, and has it wrapped once it has been loaded."""

    def __init__(self, forbid: Forbid) -> None:
        self._forbid = forbid

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        guard = _GUARDS.get(name)
        if guard is None:
            return None
        others = [each.find_spec for each in sys.meta_path if each is not self and hasattr(each, "find_spec")]
        spec = next((found for find in others if (found := find(name, path, target)) is not None), None)
        loader: Any = spec.loader if spec is not None else None
        if loader is None or isinstance(loader, type) or not hasattr(loader, "exec_module"):
            return spec  # of those that are built into the program
        native = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            native(module)
            if module.__name__ == name:  # a loader may have several
                guard(module, self._forbid)

        loader.exec_module = exec_module
        return spec


def _guard_pillow(module: ModuleType, forbid: Forbid) -> None:
    for name in ("grab", "grabclipboard"):
        if hasattr(module, name):
            native = getattr(module, name)
            replace_function(native, _forbidding(native, forbid))


def _guard_mss(module: ModuleType, forbid: Forbid) -> None:
    for each in list(vars(module).values()):
        if isinstance(each, type) and "grab" in vars(each):
            for name in ("__init__", "grab"):
                setattr(each, name, _forbidding(getattr(each, name), forbid))


def _forbidding(native: Callable[..., Any], forbid: Forbid) -> Callable[..., Any]:
    @functools.wraps(native)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        forbid()
        return native(*args, **kwargs)

    return replacement


def _guard_opencv(module: ModuleType, forbid: Forbid) -> None:
    native: Any = module.VideoCapture
    if hasattr(native, "guarded_of_camera"):
        return  # the package has what its extension has, which came before

    class VideoCapture:
        """Films are open to everybody; a camera is not, also one that another's job has left open.

        It has the native one, and is none: OpenCV frees objects of classes that inherit as if they did not.
        """

        guarded_of_camera = False

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._look_at(args, kwargs)
            self._native = native(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            if name == "_native":
                raise AttributeError(name)  # it could not be made
            return getattr(self._native, name)

        def open(self, *args: Any, **kwargs: Any) -> Any:
            self._look_at(args, kwargs)
            return self._native.open(*args, **kwargs)

        def grab(self, *args: Any, **kwargs: Any) -> Any:
            self._check()
            return self._native.grab(*args, **kwargs)

        def read(self, *args: Any, **kwargs: Any) -> Any:
            self._check()
            return self._native.read(*args, **kwargs)

        def retrieve(self, *args: Any, **kwargs: Any) -> Any:
            self._check()
            return self._native.retrieve(*args, **kwargs)

        def _look_at(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            source = args[0] if args else kwargs.get("filename", kwargs.get("index"))
            if isinstance(source, (str, bytes, os.PathLike)):
                self.guarded_of_camera = is_camera(os.path.realpath(os.fsdecode(source)))
            else:
                self.guarded_of_camera = hasattr(source, "__index__")
            self._check()

        def _check(self) -> None:
            if self.guarded_of_camera:
                forbid()

    replace_function(native, VideoCapture)


_GUARDS: dict[str, Callable[[ModuleType, Forbid], None]] = {
    "PIL.ImageGrab": _guard_pillow,
    "mss.base": _guard_mss,
    "cv2": _guard_opencv,
}
