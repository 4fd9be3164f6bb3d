"""Look again at the files that a job was let in with, as its nodes are about to read them.

A file may be replaced while its job waits, a name may come from another node, and a start forgets all.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import NamedTuple

from ..errors import NoFaceError
from ..files.marks import Mark, find_mark
from ..job import Job
from ..results.apart import hear_apart
from ..results.containers import BrokenFileError
from .films import HEAD_BYTES, sniff_more
from .loaded import Loaded, LoadedFiles, Looked, refuse
from .machine import FaceMachine
from .required import Wanted


class _Kept(NamedTuple):
    files: tuple[Looked, ...]
    faces: tuple[Wanted, ...]


class KeptFiles:
    """By job, until it has settled. Any thread; `look_again` is for those that may block.

    Args:
        machine: looks for faces again; None: nobody does.
        remembered: of how many files is remembered that they can be heard.
    """

    def __init__(self, loaded: LoadedFiles, machine: FaceMachine | None = None, remembered: int = 1024) -> None:
        self._loaded = loaded
        self._machine = machine
        self._remembered = remembered
        self._heard: OrderedDict[tuple[str, Mark], None] = OrderedDict()
        self._of_jobs: dict[str, _Kept] = {}

    def keep(self, job_id: str, files: tuple[Looked, ...], faces: tuple[Wanted, ...] = ()) -> None:
        """`faces`: what was looked for in them."""
        if files:
            self._of_jobs[job_id] = _Kept(files, faces)

    def forget(self, job_id: str) -> None:
        self._of_jobs.pop(job_id, None)

    def follow(self, job: Job) -> None:
        """A new state is durable."""
        if job.state.settled:
            self.forget(job.job_id)

    def look_again(self, job_id: str, real: str, is_asked: bool = True) -> bool:
        """Look at a file that a job names, unless it is the one that was looked at before.

        Args:
            real: its path, of which no part is a link.
            is_asked: a node is about to read it. Only then a file is heard that nobody knows: that takes long, and
                a text that is a file's name by chance, nobody reads.

        Returns whether it was looked at, or need not be.

        Raises:
            BadImageError, BadVideoError, BadAudioError: it would not be let in, or holds something else than it did.
            NoFaceError, TooManyFacesError, FaceTooSmallError: it shows other faces than it must.
            ServerUnavailableError: it cannot be looked at now.
        """
        if not self._loaded.opens:
            return True
        kept = self._of_jobs.get(job_id)
        known = [each for each in kept.files if each.real == real] if kept is not None else []
        try:
            mark = find_mark(os.stat(real))
            changed = [each for each in known if each.mark != mark]
            for each in changed:
                self._loaded.compare(each)
            if is_asked and all(each.file.holds == "file" for each in known):
                self._hear(real, mark)
        except OSError:
            return True  # the node says best that it is not there
        loaders = {each.file.node_id for each in changed}
        for wanted in kept.faces if kept is not None else ():
            if loaders & {wanted.loader_id, *(loader_id for loader_id, _image in wanted.instead)}:
                self._look_for_faces(wanted)
        return bool(known) or is_asked

    def _look_for_faces(self, wanted: Wanted) -> None:
        """As the gate did before there was the job."""
        if self._machine is None:
            return
        missing: NoFaceError | None = None
        for image in (wanted.image, *(image for _loader_id, image in wanted.instead)):
            path = self._machine.find_image(image)
            try:
                self._machine.checker.check(path, wanted.rules, image, wanted.detector)
                return
            except NoFaceError as error:
                missing = missing or error
        if missing is not None:
            missing.extra_info.update(node_id=wanted.loader_id, needed_by=wanted.node_id)
            raise missing

    def _hear(self, real: str, mark: Mark) -> None:
        """Nobody knows which loader reads it: only what would end the server counts."""
        if (real, mark) in self._heard:
            return
        with open(real, "rb") as handle:
            kind = sniff_more(handle.read(HEAD_BYTES))
            if kind is not None and kind.name != "image":
                try:
                    hear_apart(handle, kind, "planes")
                except BrokenFileError as error:
                    raise refuse(Loaded("", "", os.path.basename(real), "media", ""), str(error)) from None
        if mark.is_settled():
            self._heard[real, mark] = None
        while len(self._heard) > self._remembered:
            self._heard.popitem(last=False)
