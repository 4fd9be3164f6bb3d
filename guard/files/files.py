"""Find a caller's files: its uploads, the shared inputs, and the results of its jobs.

Every owner with a key has a folder below input, output and temp, and names the files in it as if they lay in the root
itself: `photo.png` is the owner's own where there is one, else the shared one. `local`, the operator at the machine,
uses the roots themselves, as in plain ComfyUI.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import heapq
import itertools
import os
import re
import shutil
from asyncio import wrap_future
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..client import LOCAL, Client
from ..depot.results import Results
from ..errors import ArtifactGoneError, FileInUseError, InvalidRequestError, NotFoundError
from ..host import Host
from ..job import RESULT_ROOTS, ROOTS, Artifact, Job
from ..quotas.threads import find_whose, run_beside
from ..results.opener import hash_file
from .content import check_content
from .given import Given
from .names import DEEPEST, annotate, is_plain, mentions_uploads, owner_folder, split_annotation
from .uploads import translate_disk_errors

#: So many of an owner's uploads are listed. They stand in the choices of each loader, and a bot sends thousands a day.
LISTED = 1000
#: So many uploads of one name get a number; the others get so many digits of their content's hash.
_NUMBERED = 9
_DIGITS = 10
#: So many names are looked at in a fleet: those with numbers, the one with the hash and a few more.
_CLAIMED = _NUMBERED + 5
#: NAME_MAX in bytes, less room for those.
_LONGEST_NAME = 240


class Makers(Protocol):
    """The part of the store that knows which job made a file."""

    def find_maker(self, kind: str, path: str) -> Future[tuple[Job, int] | None]:
        """See Store."""


class Uploaded(Protocol):
    """Uploads and results of all boxes: see :class:`.inputs.Inputs`."""

    async def keep_upload(self, owner: str, name: str) -> None: ...
    def claim_upload(self, owner: str, sent: Path, wanted: Sequence[tuple[str, bool]]) -> str: ...
    async def bring_upload(self, owner: str, name: str) -> None: ...
    async def bring_result(self, owner: str, name: str) -> None: ...
    async def list_uploads(self, owner: str) -> list[str]: ...


@dataclass(frozen=True)
class OwnFile:
    """A file that the caller may read.

    Attributes:
        name: by which a loader of ComfyUI finds it.
        job, artifact: for a result, the job that made it and which of its artifacts it is.
    """

    path: Path
    name: str
    job: Job | None = None
    artifact: Artifact | None = None


class Files:
    """Lives on the event loop, and looks at the disk on other threads."""

    def __init__(
        self,
        host: Host,
        store: Makers,
        results: Results | None = None,
        uploaded: Uploaded | None = None,
        given: Given | None = None,
    ) -> None:
        """
        Args:
            results: opens what jobs have made; by default on this box alone.
            uploaded: knows the uploads of all boxes; None: there are those of this one.
            given: the files that running jobs read, which no upload may replace.
        """
        self._uploaded = uploaded
        self._host = host
        self._store = store
        self._results = results or Results(host)
        self._given = given or Given()

    async def list_uploads(self, client: Client) -> list[str]:
        """List the newest uploads of a caller with a key, of those in its input folder itself, by name."""
        folder = self._host.file("input", "", owner_folder(client.owner))
        here = await run_beside(_list_newest, folder) if folder is not None else []
        return sorted({*here, *await self._uploaded.list_uploads(client.owner)}) if self._uploaded is not None else here

    async def find(self, client: Client, kind: str, name: str) -> OwnFile:
        """Find the file that the caller calls `name` below the root `kind`.

        Raises:
            NotFoundError: there is none, or it is not the caller's.
        """
        file = await self._find(client, kind, name) if is_plain(name) else None
        if file is None:
            raise NotFoundError(f"There is no file {name[:200]}.", extra_info={"filename": name[:200], "type": kind})
        return file

    async def _find(self, client: Client, kind: str, name: str) -> OwnFile | None:
        own = owner_folder(client.owner)
        if own and kind != "input":
            result = await self.find_result(client, kind, f"{own}/{name.removeprefix(f'{own}/')}")
            if result is not None:
                return result
        if kind == "input" and self._uploaded is not None:
            await self._uploaded.bring_upload(client.owner, name)
        upload = await run_beside(self.find_upload, client, kind, name)
        if upload is not None or kind == "input":
            return upload
        # An operator names files below the roots; so does whoever had results before owners had folders for them.
        return await self.find_result(client, kind, name)

    def save(self, client: Client, sent: Path, filename: str, kind: str, subfolder: str, overwrite: bool) -> str:
        """Move an upload into its owner's folder. Returns its name there. Not for the event loop.

        As in ComfyUI, a name that is taken gets a number, unless the file is the same or `overwrite` is set.

        Raises:
            InvalidRequestError: the name, the type or the subfolder is not allowed.
            BadImageError: it comes with a key and refers to other files.
            FileInUseError: a running job reads what it would replace.
            DiskFullError, ServerUnavailableError
        """
        if kind not in ROOTS:
            raise InvalidRequestError(f"type must be one of {', '.join(ROOTS)}.", extra_info={"field": "type"})
        if not _is_file_name(filename):
            raise InvalidRequestError("The file's name must be plain, without folders.")
        if client.owner != LOCAL.owner:
            check_content(sent, filename)
        own = owner_folder(client.owner)
        target = self._host.file(kind, "/".join(part for part in (own, subfolder) if part), filename)
        # The host follows links, so that a link that some node has made leads nowhere else.
        root = self._host.file(kind, "", own) if own else None
        is_outside = target is None or (root is not None and root not in target.parents)
        is_deep = len(re.split(r"[/\\]", subfolder)) > DEEPEST
        if is_outside or is_deep or (subfolder and not is_plain(subfolder)) or (own and mentions_uploads(subfolder)):
            raise InvalidRequestError(
                "subfolder must lie below the folder of its type.", extra_info={"field": "subfolder"}
            )
        assert target is not None
        with translate_disk_errors():
            if self._uploaded is not None and kind == "input" and not overwrite:
                names = list(itertools.islice(_list_names(sent, filename), _CLAIMED))
                before = f"{subfolder}/" if subfolder else ""
                wanted = [(before + name, _is_free(sent, target.parent / name)) for name in names]
                if claimed := self._uploaded.claim_upload(client.owner, sent, wanted):
                    # What lies here under that name otherwise is older than what the other boxes have.
                    filename, overwrite = claimed.removeprefix(before), True
            return _move_in(sent, target.parent, filename, overwrite, self._given)

    async def keep(self, client: Client, kind: str, name: str) -> None:
        """Keep what was saved under that name elsewhere too, if there is such a place."""
        if self._uploaded is not None and kind == "input":
            await self._uploaded.keep_upload(client.owner, name)

    def find_upload(self, client: Client, kind: str, name: str, *, folders: bool = False) -> OwnFile | None:
        """Find the caller's upload of that name, or else the shared input. Not for the event loop.

        Args:
            folders: accept a folder too.
        """
        own = owner_folder(client.owner)
        if own:
            name = name.removeprefix(f"{own}/")
            path = self._below(kind, f"{own}/{name}", folders)
            # The host follows links, so that a link that some node has made leads nowhere else.
            root = self._host.file(kind, "", own)
            if path is not None and root is not None and root in path.parents:
                return OwnFile(path, annotate(kind, f"{own}/{name}"))
        if kind != "input" or (path := self._below(kind, name, folders)) is None:
            return None
        return OwnFile(path, annotate(kind, name)) if client.operator or self._is_shared(name, path) else None

    async def find_result(self, client: Client, kind: str, name: str) -> OwnFile | None:
        """Find the result of one of the caller's jobs by its name below the root; for an operator, any file."""
        path = await run_beside(self._below, kind, name, False)
        is_here = path is not None
        if path is None and self._results.depot is not None and kind in RESULT_ROOTS:
            path = self._host.file(kind, "", name)  # what has gone from here may be there
        if path is None:
            return None
        maker = await wrap_future(self._store.find_maker(kind, name))
        if maker is not None and (client.operator or maker[0].owner == client.owner):
            job, index = maker
            artifact = job.result.artifacts[index]
            copy = artifact.copy
            is_copy = copy is not None and path.name == copy.filename
            return OwnFile(path, annotate(kind, name), job, copy if is_copy else artifact)
        return OwnFile(path, annotate(kind, name)) if client.operator and is_here else None

    async def check_unchanged(self, client: Client, file: OwnFile) -> None:
        """Check before ComfyUI opens the file by its name, which may be somebody else's file by now. What has gone from
        here comes back before that, where it is kept elsewhere.

        Raises:
            ArtifactGoneError: it is no longer what the client's job made.
            ServerUnavailableError, DiskFullError: it cannot be brought here now.
        """
        artifact = file.artifact
        if artifact is None:
            return
        if file.job is not None and self._uploaded is not None:
            await self._uploaded.bring_result(file.job.owner, file.name)
        if client.operator:
            return
        handle = await self._results.threads.run(find_whose(), self._results.open_here, artifact)
        if handle is None:
            raise ArtifactGoneError(f"{artifact.filename} is no longer what the job made.")
        handle.close()

    def _below(self, kind: str, name: str, folders: bool) -> Path | None:
        path = self._host.file(kind, "", name)
        if path is None:
            return None
        return path if os.path.isfile(path) or (folders and os.path.isdir(path)) else None

    def _is_shared(self, name: str, path: Path) -> bool:
        """Whether an input is everybody's: not an owner's, and no result, where output or temp lie below input."""
        if mentions_uploads(name) or mentions_uploads(str(path)):
            return False
        roots = self._host.folders()
        others = [Path(os.path.realpath(root)) for root in (roots.output, roots.temp) if root is not None]
        top = Path(os.path.realpath(self._host.input_folder()))
        return not any(top in root.parents and (root == path or root in path.parents) for root in others)


def _move_in(sent: Path, folder: Path, filename: str, overwrite: bool, given: Given) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        try:
            _replace(sent, folder / filename, given)
        except FileInUseError:
            if not _is_same(sent, folder / filename):
                raise
            sent.unlink()
        return filename
    for name in _list_names(sent, filename):
        if _take_name(folder / name):
            try:
                _replace(sent, folder / name, given)
            except FileInUseError:
                (folder / name).unlink()
                raise
            return name
        if _is_same(sent, folder / name):
            os.utime(folder / name)  # sent again, so for the janitor it is new
            sent.unlink()
            return name
    raise AssertionError("names have no end")


def _replace(sent: Path, target: Path, given: Given) -> None:
    """Put the file there, from another disk too. Raises FileInUseError."""
    try:
        with given.replacing(target):
            os.replace(sent, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = target.parent / f".{sent.name}"
        try:
            shutil.copyfile(sent, beside)
            with given.replacing(target):
                os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)


def _list_names(sent: Path, filename: str) -> Iterator[str]:
    """Names for an upload: the wanted one, a few with numbers as in ComfyUI, and one with its hash.

    With numbers alone, the thousandth upload of one name would look at a thousand files.
    """
    stem, suffix = os.path.splitext(filename)
    yield filename
    for copy in range(1, _NUMBERED + 1):
        yield f"{stem} ({copy}){suffix}"
    with open(sent, "rb") as file:
        digest = hash_file(file)
    yield f"{stem} ({digest[:_DIGITS]}){suffix}"
    for copy in itertools.count(_NUMBERED + 1):
        yield f"{stem} ({copy}){suffix}"


def _is_free(sent: Path, path: Path) -> bool:
    """Whether an upload may have that name, as far as this box knows."""
    return not os.path.lexists(path) or _is_same(sent, path)


def _take_name(path: Path) -> bool:
    """Create an empty file of that name. False where it is taken: of two uploads at once, one gets the name."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    return True


def _is_same(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _is_file_name(name: str) -> bool:
    """Whether an upload may have that name: on this file system, and so that a prompt can name it."""
    odd = any(letter in name for letter in ("/", "\\", *(':*?"<>|' if os.name == "nt" else "")))
    odd = odd or mentions_uploads(name)
    short = len(name.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME
    return (
        short
        and is_plain(name)
        and name.isprintable()
        and name != "."
        and not odd
        and split_annotation(name)[1] == name
    )


def _list_newest(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(name for _changed_s, name in heapq.nlargest(LISTED, _date_files(entries)))
    except FileNotFoundError:
        return []


def _date_files(entries: Iterable[os.DirEntry[str]]) -> Iterator[tuple[float, str]]:
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            if entry.is_file(follow_symlinks=False):
                yield entry.stat(follow_symlinks=False).st_mtime, entry.name
