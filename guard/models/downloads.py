"""The download of models while the server runs, as an operator asks for it: one file after the other."""

from __future__ import annotations

import logging
import queue
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from typing_extensions import TypedDict

from ..errors import ConflictError, DiskFullError, InvalidRequestError, NotFoundError
from ..host import Host
from ..templates.bodies import ModelFacts
from ..templates.catalogue import Lacking, Templates, describe_model
from ..templates.manifest import Model
from .fetch import FetchError, fetch
from .sources import find_source

log = logging.getLogger("guarded.models")

THREAD = "guarded-models"

DownloadState = Literal["missing", "waiting", "running", "stopping", "failed"]


class LackingBody(ModelFacts):
    """A model file that this server lacks: what it is for, and how far its download is.

    `fetchable`: it can be had without a person. `have_bytes`: what has come of it, now or in an earlier try.
    `usual`: its templates need it with their defaults.
    """

    templates: list[str]
    usual: bool
    fault: str
    fetchable: bool
    state: DownloadState
    have_bytes: int
    error: str | None


class ModelsBody(TypedDict):
    """The model files that this server lacks, and how much room there is for them; null: nobody knows."""

    models: list[LackingBody]
    free_bytes: int | None


class _StoppedError(Exception):
    """Somebody has stopped the download."""


@dataclass
class _Download:
    """One that was asked for since the start."""

    model: Model
    state: DownloadState = "waiting"
    have_bytes: int = 0
    error: str | None = None
    stopped: threading.Event = field(default_factory=threading.Event)


class Downloads:
    """Brings what the manifests of templates name, and nothing else. Any thread but the event loop's."""

    def __init__(
        self,
        host: Host,
        templates: Templates,
        environment: Mapping[str, str],
        floor_bytes: int,
        fetched: Callable[[], object] = lambda: None,
    ) -> None:
        """
        Args:
            floor_bytes: so much of the disk must stay free.
            fetched: called when a model has come; the thread of the downloads.
        """
        self._host = host
        self._templates = templates
        self._environment = environment
        self._floor_bytes = floor_bytes
        self._fetched = fetched
        self._lock = threading.Lock()
        self._downloads: dict[tuple[str, str], _Download] = {}
        self._inbox: queue.SimpleQueue[_Download] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def body(self) -> ModelsBody:
        """As JSON."""
        root = self._find_root()
        return {
            "models": [self._describe(lacking) for lacking in self._templates.list_lacking()],
            "free_bytes": shutil.disk_usage(root).free if root.is_dir() else None,
        }

    def start(self, folder: str, file: str) -> None:
        """Download it, behind those that were asked for before; one that has stopped or failed goes on where it was.

        Raises:
            NotFoundError: no template of this server lacks such a model.
            InvalidRequestError: only a person can get it.
            ConflictError: it is being downloaded.
            DiskFullError: there is no room for it.
        """
        model = self._find(folder, file)
        if find_source(model, self._environment) is None:
            raise InvalidRequestError(f"{model.file} is to be had by hand alone, from {model.source}.")
        target = self._find_target(model)
        self._check_room(model, target)
        with self._lock:
            known = self._downloads.get((folder, file))
            if known is not None and known.state in ("waiting", "running", "stopping"):
                raise ConflictError(f"{model.file} is being downloaded.", extra_info={"file": model.file})
            download = self._downloads[folder, file] = _Download(model)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=THREAD, daemon=True)
                self._thread.start()
        self._inbox.put(download)

    def stop(self, folder: str, file: str) -> None:
        """Stop it; what has come stays for the next time. Raises NotFoundError."""
        with self._lock:
            download = self._downloads.get((folder, file))
            if download is None or download.state not in ("waiting", "running", "stopping"):
                raise NotFoundError(f"No download of {file[:200]!r} is under way.")
            download.stopped.set()
            download.state = "stopping"

    def _find_root(self) -> Path:
        return self._host.model_folders()[0]

    def _find(self, folder: str, file: str) -> Model:
        for lacking in self._templates.list_lacking():
            if (lacking.model.folder, lacking.model.file) == (folder, file):
                return lacking.model
        raise NotFoundError(f"No template of this server lacks a model {file[:200]!r} in {folder[:200]!r}.")

    def _find_target(self, model: Model) -> Path:
        """Raises InvalidRequestError where the manifest leads out of the models."""
        place = PurePosixPath(model.folder, model.file)
        if place.is_absolute() or ".." in place.parts or "\\" in str(place) or ":" in str(place):
            raise InvalidRequestError(f"The manifest puts {model.file[:200]!r} outside of ComfyUI's models.")
        return self._find_root().joinpath(*place.parts)

    def _check_room(self, model: Model, target: Path) -> None:
        root = self._find_root()
        if not root.is_dir():
            raise NotFoundError(f"This server has no folder {root}.")
        free, needed = shutil.disk_usage(root).free, model.size_mb * 1_000_000 - _measure(target)
        if free - needed < self._floor_bytes:
            raise DiskFullError(
                f"{model.file} needs {needed // 1_000_000} MB, and {free // 1_000_000} MB are free.",
                extra_info={"free_bytes": free, "needed_bytes": needed},
            )

    def _describe(self, lacking: Lacking) -> LackingBody:
        model = lacking.model
        with self._lock:
            download = self._downloads.get((model.folder, model.file))
            state: DownloadState = download.state if download is not None else "missing"
            have = download.have_bytes if download is not None and state == "running" else 0
            error = download.error if download is not None else None
        try:
            have = have or _measure(self._find_target(model))
        except InvalidRequestError as refused:
            error = refused.message
        return {
            **describe_model(model),
            "templates": lacking.templates,
            "usual": lacking.usual,
            "fault": lacking.fault,
            "fetchable": find_source(model, self._environment) is not None,
            "state": state,
            "have_bytes": have,
            "error": error,
        }

    # The thread. ---------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            download = self._inbox.get()
            try:
                self._bring(download)
            except _StoppedError:
                self._end(download, "missing", None)
            except FetchError as error:
                log.warning("%s could not be downloaded: %s", download.model.file, error)
                self._end(download, "failed", str(error))
            except Exception as error:
                log.exception("%s could not be downloaded", download.model.file)
                self._end(download, "failed", f"{type(error).__name__}: {error}")

    def _end(self, download: _Download, state: DownloadState, error: str | None) -> None:
        with self._lock:
            download.state, download.error = state, error

    def _bring(self, download: _Download) -> None:
        model = download.model

        def pause(seconds: float) -> None:
            if download.stopped.wait(seconds):
                raise _StoppedError

        def note(have: int, _total: int) -> None:
            download.have_bytes = have
            pause(0)

        pause(0)
        with self._lock:
            download.state = "stopping" if download.stopped.is_set() else "running"
        source = find_source(model, self._environment)
        if source is None:
            raise FetchError(f"get it by hand from {model.source}")
        target = self._find_target(model)
        fetch(source, target, size_mb=model.size_mb, sha256=model.sha256, progress=note, pause=pause)
        log.info("%s has come into %s", model.file, target.parent)
        with self._lock:
            self._downloads.pop((model.folder, model.file), None)
        self._fetched()


def _measure(target: Path) -> int:
    """How much of a model has come in an earlier try."""
    try:
        return target.with_name(f"{target.name}.part").stat().st_size
    except OSError:
        return 0
