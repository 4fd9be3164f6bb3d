"""A caller's files: what it has uploaded, the shared inputs, and what its jobs have made.

Every owner with a key has a folder of its own below input, output and temp, which looks to that owner as if its
files lay in the root itself: `photo.png` is the owner's own where there is one, else the shared one. `local`, the
operator at the machine, has the roots themselves, as in plain ComfyUI.
"""

from __future__ import annotations

import asyncio
import errno
import filecmp
import os
import re
import shutil
from asyncio import wrap_future
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..client import Client
from ..errors import ArtifactGoneError, InvalidRequestError, NotFoundError
from ..host import Host
from ..job import ROOTS, Artifact, Job
from ..results.opener import ArtifactOpener
from ..store import Store
from .names import annotate, is_plain, mentions_uploads, owner_folder, split_annotation
from .uploads import translate_disk_errors

#: Folders in one another that an upload may go into.
_DEEPEST = 32

T = TypeVar("T")

_DRAWN_AT_ONCE = 2
#: NAME_MAX in bytes, and room for a number.
_LONGEST_NAME = 240


def _is_deep(folder: str) -> bool:
    """Deeper than anybody sorts files; thousands deep, not even Python's own functions reach the ground."""
    return len(re.split(r"[/\\]", folder)) > _DEEPEST


@dataclass(frozen=True)
class OwnFile:
    """A file that the caller may have.

    Attributes:
        name: as a loader of ComfyUI finds it.
        job, artifact: whose result it is, where it is one.
    """

    path: Path
    name: str
    job: Job | None = None
    artifact: Artifact | None = None


class Files:
    """Event loop; the looking is done on other threads."""

    def __init__(self, host: Host, store: Store) -> None:
        self._host = host
        self._store = store
        self._drawing = asyncio.Semaphore(_DRAWN_AT_ONCE)
        self._opener = ArtifactOpener()

    async def work_on_pictures(self, work: Callable[[], T]) -> T:
        """Work on decoded pictures, on another thread. Little at a time: each may hold a large one in memory."""
        async with self._drawing:
            return await asyncio.to_thread(work)

    async def list_uploads(self, client: Client) -> list[str]:
        """The names of what a caller with a key has uploaded for its prompts, without subfolders."""
        folder = self._host.file("input", "", owner_folder(client.owner))
        return await asyncio.to_thread(_list_files, folder) if folder is not None else []

    async def find(self, client: Client, kind: str, name: str) -> OwnFile:
        """The file that the caller means by `name` below the root `kind`.

        Raises:
            NotFoundError: there is none, or none that is the caller's.
        """
        found = await asyncio.to_thread(self.find_upload, client, kind, name) if is_plain(name) else None
        if found is None and kind != "input" and is_plain(name):
            found = await self.find_result(client, kind, name)
        if found is None:
            raise NotFoundError(f"There is no file {name[:200]}.", extra_info={"filename": name[:200], "type": kind})
        return found

    def save(self, client: Client, sent: Path, filename: str, kind: str, subfolder: str, overwrite: bool) -> str:
        """Move an upload into its owner's folder, and say what it is called there. Not for the event loop.

        As ComfyUI does it: without `overwrite` a name that is taken gets a number, unless the file is the same.

        Raises:
            InvalidRequestError: the name, the type or the subfolder will not do.
            DiskFullError, ServerUnavailableError
        """
        if kind not in ROOTS:
            raise InvalidRequestError(f"type must be one of {', '.join(ROOTS)}.", extra_info={"field": "type"})
        if not _is_file_name(filename):
            raise InvalidRequestError("The file's name must be a plain one, without folders.")
        own = owner_folder(client.owner)
        target = self._host.file(kind, "/".join(part for part in (own, subfolder) if part), filename)
        # Its real place: a link that some node has made leads nowhere else.
        root = self._host.file(kind, "", own) if own else None
        outside = target is None or (root is not None and root not in target.parents) or _is_deep(subfolder)
        if outside or (subfolder and not is_plain(subfolder)) or (own and mentions_uploads(subfolder)):
            raise InvalidRequestError(
                "subfolder must lie below the folder of its type.", extra_info={"field": "subfolder"}
            )
        assert target is not None
        with translate_disk_errors():
            return _move_in(sent, target.parent, filename, overwrite)

    def find_upload(self, client: Client, kind: str, name: str, *, folders: bool = False) -> OwnFile | None:
        """The caller's upload of that name, or the shared input. Looks at the disk: not for the event loop.

        Args:
            folders: a folder will do as well.
        """
        own = owner_folder(client.owner)
        if own:
            name = name.removeprefix(f"{own}/")
            path = self._below(kind, f"{own}/{name}", folders)
            # Its real place: a link that some node has made leads nowhere else.
            root = self._host.file(kind, "", own)
            if path is not None and root is not None and root in path.parents:
                return OwnFile(path, annotate(kind, f"{own}/{name}"))
        if kind != "input" or (path := self._below(kind, name, folders)) is None:
            return None
        return OwnFile(path, annotate(kind, name)) if client.operator or self._is_shared(name, path) else None

    async def find_result(self, client: Client, kind: str, name: str) -> OwnFile | None:
        """The result of a job of the caller's; an operator may have whatever lies there."""
        path = await asyncio.to_thread(self._below, kind, name, False)
        if path is None:
            return None
        made = await wrap_future(self._store.find_maker(kind, name))
        if made is not None and (client.operator or made[0].owner == client.owner):
            job, index = made
            return OwnFile(path, annotate(kind, name), job, job.result.artifacts[index])
        return OwnFile(path, annotate(kind, name)) if client.operator else None

    async def check_unchanged(self, client: Client, found: OwnFile) -> None:
        """Before another hand opens the file: a name that was deleted may be somebody else's by now.

        Raises:
            ArtifactGoneError: it is no longer what the client's job made.
        """
        artifact = found.artifact
        if artifact is None or client.operator:
            return
        handle = await asyncio.to_thread(self._opener.open, artifact, found.path)
        if handle is None:
            raise ArtifactGoneError(f"{artifact.filename} is no longer what the job made.")
        handle.close()

    def _below(self, kind: str, name: str, folders: bool) -> Path | None:
        path = self._host.file(kind, "", name)
        if path is None:
            return None
        return path if os.path.isfile(path) or (folders and os.path.isdir(path)) else None

    def _is_shared(self, name: str, path: Path) -> bool:
        """Whether an input is everybody's: not an owner's, and no result, where such a root lies below input."""
        if mentions_uploads(name) or mentions_uploads(str(path)):
            return False
        places = self._host.folders()
        others = [Path(os.path.realpath(root)) for root in (places.output, places.temp) if root is not None]
        top = Path(os.path.realpath(self._host.input_folder()))
        return not any(top in root.parents and (root == path or root in path.parents) for root in others)


def _move_in(sent: Path, folder: Path, filename: str, overwrite: bool) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    name, (stem, suffix) = filename, os.path.splitext(filename)
    copy = 0
    while not overwrite and not _take_name(folder / name):
        if _is_same(sent, folder / name):
            os.utime(folder / name)  # sent again: it is as young as if it had been written
            sent.unlink()
            return name
        copy += 1
        name = f"{stem} ({copy}){suffix}"
    try:
        os.replace(sent, folder / name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = folder / f".{sent.name}"
        try:
            shutil.copyfile(sent, beside)
            os.replace(beside, folder / name)
        finally:
            beside.unlink(missing_ok=True)
    return name


def _take_name(path: Path) -> bool:
    """Whether the name is ours now: of two uploads at once, one gets it."""
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
    """Whether an upload may be called so: on any file system, and so that a prompt can name it."""
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


def _list_files(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        return []
