"""Check every picture of a prompt that needs a face before a job exists."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ..errors import GuardError, InvalidRequestError, NoFaceError
from ..quotas.threads import SharedThreads
from ..settings import FacesSettings
from . import CANDIDATE
from .check import FaceRules, Faces
from .chooser import FaceFacts
from .loaded import FilmError, LoadedFiles, Opened
from .machine import FaceMachine
from .required import Wanted, find_wanted, list_detectors, list_loaded

log = logging.getLogger("guarded.faces")

#: Films and sounds are opened on threads of their own, so many, and of one owner no more than this: one may take a
#: minute and a half, mostly of a child process, and nobody's picture waits for that.
FILMS_AT_ONCE, FILMS_OF_ONE = 4, 2


class AskedRules(BaseModel):
    """The rules in a request; those that it leaves out have FaceRules' defaults."""

    model_config = ConfigDict(extra="forbid", strict=True)

    min_faces: Annotated[int, Field(ge=0, le=1000)] | None = None
    max_faces: Annotated[int, Field(ge=0, le=1000)] | None = None
    min_confidence: Annotated[float, Field(ge=CANDIDATE, le=1)] | None = None
    min_face_fraction: Annotated[float, Field(ge=0, le=1)] | None = None

    def rules(self) -> FaceRules:
        """Raises InvalidRequestError where they contradict each other."""
        return FaceRules.of(self.model_dump(include=set(AskedRules.model_fields), exclude_none=True))


class AskedCheck(AskedRules):
    """`guard.face_check` as an object: rules, and the loader nodes whose pictures must keep them (None: all)."""

    nodes: list[str] | None = None


class FaceGate:
    """Lives on the event loop, and searches on threads that owners share, so that neither loop nor worker waits."""

    def __init__(self, machine: FaceMachine, settings: FacesSettings, loaded: LoadedFiles | None = None) -> None:
        self._machine = machine
        self._loaded = loaded
        self._settings = settings
        self._threads = SharedThreads(settings.at_once, "guarded-faces", drops_vain=True)
        self._films = SharedThreads(FILMS_AT_ONCE, "guarded-films", FILMS_OF_ONE, drops_vain=True)

    async def open_loaded(self, graph: Mapping[str, Any], outputs: Iterable[str] | None, owner: str) -> Opened:
        """What the files hold that the prompt's loaders will read.

        Raises:
            BadImageError, BadVideoError, BadAudioError: one is not what its loader reads, or is damaged.
        """
        opened = Opened({}, ())
        if self._loaded is None:
            return opened
        for one in self._loaded.list_files(graph, outputs):  # in turns with others', since each may take long
            try:
                found = await self._threads.run(owner, self._loaded.open_all, (one,), films=False)
            except FilmError:
                found = await self._films.run(owner, self._loaded.open_all, (one,))
            opened = opened.join(found)
        return opened

    async def check_prompt(
        self, graph: Mapping[str, Any], outputs: Iterable[str] | None, asked: AskedCheck | None, owner: str
    ) -> tuple[Wanted, ...]:
        """Check every picture that needs a face, for a node of the prompt or because the request says so.

        Returns which those are.

        Args:
            graph: API format, its shape checked.
            outputs: the output nodes that will run; pictures that none of them needs are skipped.
            asked: `guard.face_check`.

        Raises:
            NoFaceError, TooManyFacesError, FaceTooSmallError, BadImageError: with `node_id`, the loader's, added.
            InvalidRequestError: `asked` names a node that loads no picture.
            MissingModelError: a node asks for a detector that is not there.
            ServerUnavailableError: there is no detector.
        """
        for node_id, detector in list_detectors(graph, outputs):
            try:
                await self._threads.run(owner, self._machine.checker.chooser.get, detector)
            except GuardError as error:
                error.extra_info.update(node_id=node_id)
                raise
        needed = [*find_wanted(graph, self._settings.required_by, outputs=outputs), *_list_asked(graph, outputs, asked)]
        for one in needed:
            try:
                await self.check_file(one.image, one.rules, owner, one.detector)
            except GuardError as error:
                if isinstance(error, NoFaceError) and await self._any_shows_face(one, owner):
                    continue
                error.extra_info.update(node_id=one.loader_id, needed_by=one.node_id)
                raise
        return tuple(needed)

    async def _any_shows_face(self, wanted: Wanted, owner: str) -> bool:
        """Whether another picture shows the face that the first one lacks."""
        for _loader_id, image in wanted.instead:
            try:
                await self.check_file(image, wanted.rules, owner, wanted.detector)
            except NoFaceError:
                continue
            return True
        return False

    async def check_file(self, image: str, rules: FaceRules, owner: str, detector: str | None = None) -> Faces:
        """Check one picture in a folder of the host, named as a loader names it."""
        return await self._threads.run(owner, self._check_file, image, rules, detector)

    async def check_bytes(self, data: bytes, rules: FaceRules, owner: str) -> Faces:
        """Check a picture that came with the request."""
        return await self._threads.run(owner, self._machine.checker.check, data, rules)

    async def facts(self) -> FaceFacts:
        """The detector and why, for health and doctor, who wait for nobody's pictures."""
        return await asyncio.to_thread(self._machine.checker.chooser.facts)

    async def look_around(self) -> None:
        """At start, log which detector finds the faces, and whether onnxruntime can run it."""
        facts = await self.facts()
        log.info("faces: %s: %s", facts["detector"] or "no detector", facts["reason"])
        state = facts["onnxruntime"]
        if state["problem"]:
            level = logging.ERROR if state["broken"] else logging.WARNING
            log.log(level, "faces: %s To fix it: %s", state["problem"], state["command"])

    def _check_file(self, image: str, rules: FaceRules, detector: str | None) -> Faces:
        return self._machine.checker.check(self._machine.find_image(image), rules, image, detector)


def _list_asked(graph: Mapping[str, Any], outputs: Iterable[str] | None, asked: AskedCheck | None) -> list[Wanted]:
    if asked is None:
        return []
    pictures = list_loaded(graph, outputs)
    unknown = set(asked.nodes or ()) - {node_id for node_id, _image in pictures}
    if unknown:
        raise InvalidRequestError(
            f"guard.face_check names {', '.join(sorted(unknown))}, which loads no picture.",
            extra_info={"field": "guard.face_check", "nodes": sorted(unknown)},
        )
    rules = asked.rules()
    return [
        Wanted(node_id, graph[node_id]["class_type"], "image", node_id, image, rules)
        for node_id, image in pictures
        if asked.nodes is None or node_id in asked.nodes
    ]
