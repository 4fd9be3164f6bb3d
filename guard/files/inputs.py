# Over 400 lines: what puts files in by a name and what brings them back must agree on every name.
"""Keep the files that prompts name in the depot, by their content, and bring back those that this box lacks.

A job is durable only with its files. So each file that a loader of the prompt names, whatever it is called and wherever
it lies, gets its stored name in the prompt, as files of a form have one, and is in the depot before there is a job. The
input folder is a cache from then on.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..depot import Depot, make_key
from ..depot.depot import make_refusal
from ..depot.objects import KEY, WrongBytesError
from ..depot.results import Results
from ..errors import BadImageError, GuardError, ServerUnavailableError
from ..graph import Names
from ..host import Host
from ..job import Artifact, Job
from ..outgoing import StoredFile
from ..owners import FOLDER, folder_of
from ..quotas.threads import SharedThreads, work
from ..results.opener import copy_and_hash, hash_file
from ..wake import wrap_future
from .given import Given
from .names import annotate, owner_folder, split_annotation
from .uploads import INCOMING, UploadedFile, Uploads, translate_disk_errors

log = logging.getLogger("guarded.depot")

T = TypeVar("T")

#: Files that go in or come out at once; of one owner, half as many.
_AT_ONCE = 8
#: A file that was put in so lately need not be made new again; or a quarter of the age at which it would go.
_FRESH_S = 3600.0
#: So many uploads of an owner are listed of the depot's.
_LISTED = 10_000
#: For so long a job that is about to begin waits for a depot that is away, if it needs a file of it.
WAIT_S, CLAIM_WAIT_S, _AGAIN_S = 30.0, 30.0, 1.0


class Records(Protocol):
    """What this asks of the job store: see :class:`guard.store.Store`."""

    def find_uploads(self, owner: str, paths: Sequence[str]) -> Future[dict[str, str]]: ...
    def note_uploads(self, owner: str, files: Sequence[StoredFile]) -> Future[None]: ...
    def claim_upload(self, owner: str, wanted: Sequence[tuple[str, bool]], file: StoredFile) -> Future[str]: ...
    def find_newer_upload(self, owner: str, path: str, key: str, since_ms: int) -> Future[str | None]: ...
    def list_uploads(self, owner: str, limit: int) -> Future[list[str]]: ...
    def find_maker(self, kind: str, path: str) -> Future[tuple[Job, int] | None]: ...


@dataclass(frozen=True)
class _Place:
    """Where a prompt names a file: `holder[key]`."""

    holder: dict[str, Any]
    key: str

    @property
    def text(self) -> str:
        return str(self.holder[self.key])


@dataclass(frozen=True)
class _Missing:
    """A file that is not here: where it is named, below which root, its path as its owner names it, and where it
    belongs below that root."""

    place: _Place
    kind: str
    path: str
    target: str


class Inputs:
    """Event loop; threads of its own wait for the disk and the depot."""

    def __init__(
        self,
        depot: Depot,
        host: Host,
        uploads: Uploads,
        store: Records,
        input_max_age_s: float,
        results: Results,
        given: Given | None = None,
        runs_elsewhere: Callable[[], bool] = lambda: False,
    ) -> None:
        """`results`: opens what jobs have made, wherever it is. `given`: the files that running jobs read.
        `runs_elsewhere`: whether a job that lacks a file while the depot is away here could have it on another box."""
        self._runs_elsewhere = runs_elsewhere
        self._given = given or Given()
        self._results = results
        self._depot = depot
        self._host = host
        self._uploads = uploads
        self._store = store
        self._fresh_s = min(_FRESH_S, input_max_age_s / 4)
        self._threads = SharedThreads(_AT_ONCE, "guarded-depot-files", _AT_ONCE // 2)

    async def _work(self, owner: str, work: Callable[[], T]) -> T:
        return await self._threads.run(owner, work)

    # Into the depot. -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def keep(
        self,
        graph: Mapping[str, Any],
        owner: str,
        hold: Callable[[], Awaitable[None]],
        called: dict[str, str],
        size: int = 0,
    ) -> AsyncIterator[tuple[StoredFile, ...]]:
        """Put every file in that a loader of the prompt names, and let the prompt name it by its content; yields what
        is in. Files that it copies go again if a GuardError leaves the block.

        `hold`: keeps what the prompt names from being swept. `called`: gets what each name was before. `size`: of the
        prompt's body.

        Raises ServerUnavailableError where the depot is away, DiskFullError, BadImageError.
        """
        copies: list[UploadedFile] = []
        try:
            by_name: dict[str, list[_Place]] = {}
            for place in await work(size, self._find, graph):
                by_name.setdefault(place.text, []).append(place)
            kept: dict[str, StoredFile] = {}
            for text, places in by_name.items():
                taken = await self._work(owner, partial(self._take, text, owner, copies))
                if taken is None:
                    continue
                if self._depot.is_away:  # nobody waits for it
                    raise make_refusal()
                name = f"{folder_of(owner)}/{taken.key}"
                kept[name] = taken
                called.setdefault(name, text)
                for place in places:
                    place.holder[place.key] = name
            if not kept:
                yield ()
                return
            await hold()
            async with self._uploads.place(owner, copies):
                puts = [self._work(owner, partial(self._put, name)) for name in kept]
                for done in await asyncio.gather(*puts, return_exceptions=True):
                    if isinstance(done, BaseException):
                        raise done
                yield tuple(kept.values())
        finally:
            await self._work(owner, lambda: _discard(copies))

    async def keep_upload(self, owner: str, name: str) -> None:
        """Put an upload in under the name that its owner has given it, so that other boxes find it by that.

        As far as that goes: a prompt that names the file puts it in, or is refused.
        """
        try:
            file = await self._work(owner, partial(self._put_upload, owner, name))
            if file is not None:
                await wrap_future(self._store.note_uploads(owner, [file]))
        except GuardError as error:
            log.warning("an upload of %s is not in the depot yet: %s", owner, error)

    def claim_upload(self, owner: str, sent: Path, wanted: Sequence[tuple[str, bool]]) -> str:
        """Choose a name for what was sent, over all boxes: see the store's method. Not for the event loop.

        Raises GuardError.
        """
        with translate_disk_errors(), open(sent, "rb") as handle:
            key, size = make_key(hash_file(handle), wanted[0][0]), os.fstat(handle.fileno()).st_size
        try:
            return self._store.claim_upload(owner, wanted, StoredFile("", key, size)).result(CLAIM_WAIT_S)
        except FutureTimeoutError:
            raise ServerUnavailableError("The job store did not answer.", retry_after_s=10) from None

    def _put_upload(self, owner: str, name: str) -> StoredFile | None:
        folder = owner_folder(owner)
        path = self._host.file("input", folder, name)
        if path is None or self._depot.is_away:
            return None
        with translate_disk_errors(), open(path, "rb", opener=_open_at_once) as handle:
            key = make_key(hash_file(handle), path.name)
            size = os.fstat(handle.fileno()).st_size
            with suppress(WrongBytesError):  # another upload has come in over it
                self._depot.put(key, handle)
                return StoredFile(name, key, size)
        return None

    def _find(self, graph: Mapping[str, Any]) -> list[_Place]:
        """Every input of a loader that may name a file."""
        return [
            _Place(node["inputs"], name)
            for node in graph.values()
            for name, names in self._host.file_inputs(node["class_type"]).items()
            if names is Names.FILE and isinstance(node["inputs"].get(name), str) and node["inputs"][name]
        ]

    def _take(self, text: str, owner: str, copies: list[UploadedFile]) -> StoredFile | None:
        """Copy the file, unless it has its stored name already. None where there is no such file."""
        kind, name = split_annotation(text)
        path = self._host.file(kind, "", name)
        if path is None:
            return None
        with translate_disk_errors():
            try:
                handle = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
                return None
            with handle:
                if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                    return None
                size = os.fstat(handle.fileno()).st_size
                is_stored = kind == "input" and name == f"{folder_of(owner)}/{path.name}" and KEY.fullmatch(path.name)
                if is_stored and hash_file(handle) == path.name[:64]:
                    os.utime(path)  # for the janitor it is new again
                    return StoredFile(path.name, path.name, size)
                folder = self._host.input_folder() / INCOMING
                folder.mkdir(parents=True, exist_ok=True)
                target = folder / uuid.uuid4().hex
                copy = UploadedFile("", os.path.basename(name), "", "", target)
                copies.append(copy)
                sha256, size = copy_and_hash(handle, target)
        key = make_key(sha256, path.name)
        copies[-1] = UploadedFile("", copy.filename, sha256, key[64:], target)
        return StoredFile(key, key, size)

    def _put(self, name: str) -> None:
        key = os.path.basename(name)
        found = self._depot.stat(key, is_sure=False)
        path = self._host.input_folder() / name
        with translate_disk_errors(), open(path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if found is not None and found.bytes == size:
                age_s = time.time() + (self._depot.skew_s or 0.0) - found.modified_s
                if age_s < self._fresh_s and self._depot.is_right(found):
                    return
            try:
                self._depot.put(key, handle)
            except WrongBytesError:
                raise BadImageError("An input file was changed while it was taken.") from None

    # Out of it. ----------------------------------------------------------------------------------------------

    async def bring(self, graph: Mapping[str, Any], owner: str, size: int = 0) -> bool:
        """Bring the owner's files here that the prompt names and that are not here. Returns whether a name changed,
        because the prompt was let in on another box. `size`: of its body.

        Raises ServerUnavailableError where the depot is away, DiskFullError.
        """
        return await self._bring(await work(size, self._find, graph), owner)

    async def bring_upload(self, owner: str, name: str) -> None:
        """Have the owner's upload of that name below input here, as it is on whichever box, if the depot answers."""
        own = owner_folder(owner)
        named = f"{own}/{name.removeprefix(f'{own}/')}" if own else name
        try:
            await self._bring([_Place({"name": named}, "name")], owner)
        except GuardError as error:
            log.warning("an upload of %s was not looked for in the depot: %s", owner, error)

    async def bring_result(self, owner: str, name: str) -> None:
        """Bring the owner's result of that name here, as loaders have it, if it is not here.

        Raises ServerUnavailableError where it may be in a depot, or on a box, that is away; DiskFullError.
        """
        await self._bring([_Place({"name": name}, "name")], owner)

    async def list_uploads(self, owner: str) -> list[str]:
        """List what the owner's uploads are called on all boxes."""
        return await wrap_future(self._store.list_uploads(owner, _LISTED))

    async def _bring(self, places: Sequence[_Place], owner: str) -> bool:
        if not places:
            return False
        await self._renew(places, owner)
        missing = await self._work(owner, lambda: list(self._list_missing(places, owner)))
        if not missing:
            return False
        uploads = sorted({file.path for file in missing if file.kind == "input"})
        keys = await wrap_future(self._store.find_uploads(owner, uploads)) if uploads else {}
        changed = False
        for file in missing:
            if file.kind == "input":
                key = keys.get(file.path)
                write = partial(self._depot.fetch, key) if key is not None else None
            else:
                found = await self._find_result(owner, file)
                write = partial(self._results.copy, *found) if found is not None else None
            if (
                write is not None
                and await self._work(owner, partial(self._fetch, write, file))
                and file.kind == "input"
            ):
                changed |= file.place.text != file.target
                file.place.holder[file.place.key] = file.target
        return changed

    async def _renew(self, places: Iterable[_Place], owner: str) -> None:
        """Replace copies of uploads that their owner has overwritten on another box since they came here."""
        own = owner_folder(owner)
        for text in {place.text for place in places}:
            kind, name = split_annotation(text)
            path = name.removeprefix(f"{own}/") if own else name
            if kind != "input" or KEY.fullmatch(os.path.basename(path)) or path.startswith(f"{FOLDER}/"):
                continue  # no upload of the owner's, or one that is called by its content
            target = f"{own}/{path}" if own else path
            here = await self._work(owner, partial(self._describe, target))
            if here is None:
                continue
            key = await wrap_future(self._store.find_newer_upload(owner, path, *here))
            if key is not None:
                missing = _Missing(_Place({}, ""), kind, path, target)
                await self._work(owner, partial(self._fetch, partial(self._depot.fetch, key), missing))

    def _describe(self, name: str) -> tuple[str, int] | None:
        """What the depot would call that file below input, and when it came. None where there is none."""
        path = self._host.file("input", "", name)
        if path is None or not os.path.isfile(path):
            return None
        with translate_disk_errors(), open(path, "rb", opener=_open_at_once) as handle:
            return make_key(hash_file(handle), path.name), int(os.fstat(handle.fileno()).st_mtime * 1000)

    async def _find_result(self, owner: str, file: _Missing) -> tuple[Job, Artifact] | None:
        """That result and its job, if it is one of the owner's."""
        maker = await wrap_future(self._store.find_maker(file.kind, file.target))
        if maker is None or maker[0].owner != owner:
            return None
        made = maker[0].result.artifacts[maker[1]]
        if made.copy is not None and made.copy.filename == os.path.basename(file.target):
            made = made.copy
        return maker[0], made

    async def bring_patiently(self, graph: Mapping[str, Any], owner: str, size: int = 0) -> None:
        """The same for a job that was let in: a depot that is away may be back in a moment, or there for others."""
        ends_s = time.monotonic() + WAIT_S
        for tries in itertools.count(1):
            try:
                await self.bring(graph, owner, size)
                return
            except ServerUnavailableError:
                is_better_elsewhere = tries > 1 and self._depot.is_away and self._runs_elsewhere()
                if is_better_elsewhere or time.monotonic() >= ends_s:
                    raise
            await asyncio.sleep(_AGAIN_S)

    def _list_missing(self, places: Iterable[_Place], owner: str) -> Iterator[_Missing]:
        own = owner_folder(owner)
        for place in places:
            kind, name = split_annotation(place.text)
            if self._exists(kind, name):
                continue
            path = name
            if name.startswith(f"{FOLDER}/"):
                path = name.partition("/")[2].partition("/")[2]
            folder = folder_of(owner) if kind == "input" and KEY.fullmatch(path) else own
            target = f"{folder}/{path}" if folder else path
            if not self._exists(kind, target):
                yield _Missing(place, kind, path, target)
            elif target != name and name.startswith(f"{FOLDER}/"):
                place.holder[place.key] = annotate(kind, target)  # its folder has another name on this box

    def _exists(self, kind: str, name: str) -> bool:
        path = self._host.file(kind, "", name)
        return path is not None and os.path.exists(path)

    def _fetch(self, write: Callable[[Path], bool], file: _Missing) -> bool:
        """Put the file where it is missing, if `write` can write it to a path at which there is none."""
        target = self._host.file(file.kind, "", file.target)
        if target is None:
            return False
        part = self._host.input_folder() / INCOMING / uuid.uuid4().hex
        with translate_disk_errors():
            try:
                for folder in (part.parent, target.parent):
                    folder.mkdir(parents=True, exist_ok=True)
                if not write(part):
                    log.warning("%s is neither here nor in the depot", file.target)
                    return False
                try:
                    with self._given.replacing(target):
                        os.replace(part, target)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    shutil.copyfile(part, target)  # a result, which nobody takes for one before it has its bytes
            finally:
                part.unlink(missing_ok=True)
        return True


def _open_at_once(path: str, flags: int) -> int:
    """Wait at no pipe that nobody writes to."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _discard(copies: Iterable[UploadedFile]) -> None:
    for copy in copies:
        with suppress(OSError):
            copy.path.unlink(missing_ok=True)
