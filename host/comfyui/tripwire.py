"""Stop Python code in a keyed owner's job that opens what no such job has business with.

The last layer: it hears of each file that Python opens, lists, moves or deletes (`sys.addaudithook`), whichever node
does it and wherever its path comes from, and of each connection. Code in C that opens files by itself (PyAV,
safetensors) and child processes raise no such event.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from pathlib import PurePath
from typing import Any, NamedTuple, NoReturn

import folder_paths
from comfy.cli_args import args as command_line

from ...guard.files.names import mentions_uploads
from ...guard.job import ROOTS
from ...guard.owners import FOLDER
from ...guard.urls import is_of_cloud, is_public, real_address
from .cameras import is_camera, is_display
from .confine import Confinement
from .folders import find_below, find_own_directory, find_root
from .results import changed_ns
from .run import Run

log = logging.getLogger("guarded.host")

_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: By event: which of its arguments are paths, and whether it changes what lies there.
_EVENTS: dict[str, tuple[tuple[int, ...], bool]] = {
    "open": ((0,), False),  # its flags say
    "os.listdir": ((0,), False),
    "os.scandir": ((0,), False),
    "os.mkdir": ((0,), True),
    "os.rename": ((0, 1), True),
    "os.link": ((0, 1), True),
    "os.symlink": ((0, 1), True),
    "os.remove": ((0,), True),
    "os.rmdir": ((0,), True),
    "os.truncate": ((0,), True),
    "os.chmod": ((0,), True),
    "socket.connect": ((), False),
    "subprocess.Popen": ((), False),
}
_CHANGES_FOLDERS = frozenset({"os.rename", "os.symlink", "os.mkdir", "os.rmdir", "os.remove", "os.link"})
#: What a job tries that would have a picture of the screen, or of who sits before it.
SEES = "take a picture of this machine"
#: What Python and ComfyUI write by themselves, on behalf of whatever runs.
_OWN_FILES = ("comfyui.log", "comfyui.db")
#: In its own folder a pack may keep what it likes, but no code.
_CODE = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".js", ".mjs", ".toml", ".sh", ".bat", ".exe", ".pth"})


class _Places(NamedTuple):
    """Real paths of ComfyUI's folders; `models` as they are given."""

    roots: dict[str, str]
    private: str
    user: str
    packs: tuple[str, ...]
    models: tuple[str, ...]
    program: str


class Tripwire:
    """Raises PermissionError where a keyed owner's job goes too far, and notes that in its run."""

    def __init__(self, confinement: Confinement) -> None:
        self._confinement = confinement
        self._is_installed = False
        #: As they were when a file was last looked up for this run, with the real paths of folders by given ones.
        self._run: Run | None = None
        self._places: _Places
        self._real: dict[str, str] = {}

    def begin(self, run: Run) -> None:
        """The run begins on this thread.

        The hook is there from the first one of a key on. It cannot be taken away again, and Python takes ten times as
        long with it for what nodes and ComfyUI do most, such as to ask for the id of an object.
        """
        if run.folder and not self._is_installed:
            self._is_installed = True
            hear, events = self._hear, _EVENTS

            def hook(event: str, args: tuple[Any, ...]) -> None:
                """Any thread, for every event of the whole process: mostly it ends in the first line."""
                if event in events:
                    hear(event, args)

            sys.addaudithook(hook)

    def forbid(self, what: str) -> None:
        """Raises PermissionError where this thread works for a key's job."""
        run = self._confinement.find_run()
        if run is not None and run.folder:
            self._stop(run, what)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        run = self._confinement.find_run()
        if run is None or not run.folder:
            return
        if event == "socket.connect" and _leads_home(args[1]):
            self._stop(run, "call this server or its cloud")
        if event == "socket.connect" and is_display(args[1]):
            self._stop(run, SEES)
        if event == "subprocess.Popen":
            self._check_command(run, args[1])
        which, writes = _EVENTS[event]
        if event == "open":
            writes = isinstance(args[2], int) and bool(args[2] & _WRITE)
        for number in which:
            path = args[number] if number < len(args) else None
            if not isinstance(path, (str, bytes, os.PathLike)):
                continue  # a file that is open already
            name = os.fsdecode(path)
            if not self._may_touch(run, event, name, writes):
                self._stop(run, f"{'write' if writes else 'read'} {os.path.basename(name)[:100]}")

    def _check_command(self, run: Run, words: Any) -> None:
        """Check what a command line names. What the program makes of it, nobody hears."""
        for word in [words] if isinstance(words, (str, bytes, os.PathLike)) else list(words):
            text = os.fsdecode(word)
            is_allowed = not os.path.isabs(text) or self._may_touch(run, "open", text, writes=False)
            if not is_allowed or mentions_uploads(text.replace(run.folder, "")):
                self._stop(run, f"run a program on {os.path.basename(text)[:100]}")

    def _stop(self, run: Run, what: str) -> NoReturn:
        run.trespass = run.trespass or what
        raise PermissionError("A job may not do this on this server.")

    def _may_touch(self, run: Run, event: str, path: str, writes: bool) -> bool:
        places = self._look_around(run)
        if event in _CHANGES_FOLDERS:
            self._real.clear()
        real = self._resolve(path)
        if is_camera(real):
            return False
        for kind, root in places.roots.items():
            if (below := find_below(root, real)) is not None:
                return self._may_touch_below(run, event, kind, below, real, writes)
        if find_below(places.private, real) is not None:
            return False
        if not writes:
            return True
        if find_below(places.user, real) is not None:
            return os.path.basename(real).startswith(_OWN_FILES)
        for packs in places.packs:
            if (below := find_below(packs, real)) is not None:
                return "__pycache__" in below or _is_packs_own(packs, below)
        if any(find_below(os.path.realpath(folder), real) is not None for folder in places.models):
            return True
        return find_below(places.program, real) is None or "__pycache__" in real

    def _may_touch_below(self, run: Run, event: str, kind: str, below: str, real: str, writes: bool) -> bool:
        """The same below one of ComfyUI's roots."""
        if below == run.folder or below.startswith(f"{run.folder}/"):
            return True
        if below.split("/")[0] == FOLDER:
            return below == FOLDER and event == "os.mkdir"
        if event in ("os.listdir", "os.scandir"):
            return True
        if kind == "input":
            # Loaders of ComfyUI's make sure that their folder is there.
            return not writes or (event == "os.mkdir" and os.path.isdir(real))
        # Below output and temp there are others' older results, and the operator's. What a pack has just put there is
        # moved to the owner's folder later.
        try:
            return changed_ns(os.stat(real)) > run.began_ns.get(kind, 0) or (not writes and run.says_file(below, kind))
        except OSError:
            return True

    def _resolve(self, path: str) -> str:
        """The real path. Folders are looked up once in a run, unless it changes some."""
        folder, name = os.path.split(path)
        if name in ("", "..", ".") or ".." in folder:
            return os.path.realpath(path)
        real = self._real.get(folder)
        if real is None:
            real = self._real[folder] = os.path.realpath(folder)
        real = os.path.join(real, name)
        return os.path.realpath(real) if os.path.islink(real) else real

    def _look_around(self, run: Run) -> _Places:
        if self._run is not run:
            packs = folder_paths.folder_names_and_paths.get("custom_nodes", ([], ()))[0]
            models = [folder_paths.models_dir]
            for name, entry in list(folder_paths.folder_names_and_paths.items()):
                models += entry[0] if name != "custom_nodes" else []
            self._places = _Places(
                {kind: os.path.realpath(find_root(kind) or "") for kind in ROOTS},
                os.path.realpath(find_own_directory()),
                os.path.realpath(folder_paths.get_user_directory()),
                tuple(map(os.path.realpath, packs)),
                tuple({model for model in models if isinstance(model, str)}),
                os.path.dirname(os.path.realpath(folder_paths.__file__)),
            )
            self._real = {}
            self._run = run
        return self._places


def _leads_home(address: Any) -> bool:
    """Whether a connection would reach this server itself, which takes what comes from this machine for its operator's,
    or what a cloud keeps for its machines."""
    if not (isinstance(address, tuple) and len(address) > 1):
        return False  # a socket with a path
    is_own_port = bool(address[1] == command_line.port)
    try:
        found = ipaddress.ip_address(str(address[0]).partition("%")[0])
    except ValueError:
        return is_own_port  # a name
    return is_of_cloud(found) or (is_own_port and not is_public(real_address(found)))


def _is_packs_own(packs: str, below: str) -> bool:
    """Whether a pack's own code writes into its own folder, and no code."""
    pack, _slash, rest = below.partition("/")
    if not rest or PurePath(rest).suffix.lower() in _CODE:
        return False
    folder = os.path.join(packs, pack) + os.sep
    frame = sys._getframe(1)
    while frame is not None:
        if os.path.realpath(frame.f_code.co_filename).startswith(folder):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
