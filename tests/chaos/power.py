"""Disks whose power can be cut: what had not been synced by then is gone. Two kinds, for a server's database.

`MountedDisk` is real: ext4 on a file. The server is killed, the file copied as it is, and the copy mounted, so ext4
replays its journal; what was still in the page cache is not in it. Takes root.

`TracedDisk` works without rights, and is stricter. `shims/power.c` writes down what the server does to the folder.
Afterwards only what a sync had covered is put back: a file's content by a sync of the file, its name, a rename or a
deletion by a sync of the folder. Of the rest some may be put back too, in any order, as a drive does it.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest
from chaos.preload import build


class Disk(Protocol):
    """A folder for a server's files, and what the server's environment must say."""

    folder: Path
    environment: dict[str, str]

    def cut(self) -> None:
        """The power fails. Call it when the server is dead; then the folder holds what is left."""


class MountedDisk:
    """A file system of its own, mounted from a file. Skips the test where that is not allowed."""

    BYTES = 256 * 2**20

    def __init__(self, at: Path) -> None:
        self.folder = at / "mounted"
        self.environment: dict[str, str] = {}
        self._image = at / "image"
        self._at = at
        self.folder.mkdir()
        with open(self._image, "wb") as image:
            image.truncate(self.BYTES)
        try:
            _run("mkfs.ext4", "-q", str(self._image))
            self._mount()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted from a file here, which takes root and Linux: {error}")

    def _mount(self) -> None:
        # Its journal is written only when somebody syncs, instead of every five seconds: more is lost.
        _run("mount", "-o", "loop,commit=300", str(self._image), str(self.folder))

    def cut(self) -> None:
        copy = self._at / "copy"
        _run("cp", "--sparse=always", str(self._image), str(copy))
        self.close()
        copy.replace(self._image)
        self._mount()

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("umount", str(self.folder))


@dataclass
class File:
    """What a disk holds of a file, and what it may forget."""

    content: bytearray = field(default_factory=bytearray)
    #: What was done since the last sync: (position in the log, offset, data; None cuts the file off there).
    pending: list[tuple[int, int, bytes | None]] = field(default_factory=list)

    def apply(self, offset: int, data: bytes | None) -> None:
        if data is None:
            del self.content[offset:]
            self.content.extend(bytes(offset - len(self.content)))
        else:
            self.content.extend(bytes(max(offset - len(self.content), 0)))
            self.content[offset : offset + len(data)] = data

    def sync(self, before: int) -> None:
        for _, offset, data in (change for change in self.pending if change[0] < before):
            self.apply(offset, data)
        self.pending = [change for change in self.pending if change[0] >= before]


class TracedDisk:
    """A folder whose changes are traced. `luck` is how much of what was not synced is there all the same."""

    HEAD = struct.Struct("<cIIQI")

    def __init__(self, at: Path, draw: random.Random | None = None, luck: float = 0.0) -> None:
        self.folder = at / "traced"
        self.folder.mkdir()
        self._log = at / "power.log"
        self._draw = draw or random.Random(0)
        self._luck = luck
        self.environment = {
            "LD_PRELOAD": build("power", at),
            "GUARDED_POWER_FOLDER": str(self.folder),
            "GUARDED_POWER_LOG": str(self._log),
        }
        #: What the disk held when the server began.
        self._begun: dict[Path, bytes] = {}

    def close(self) -> None:
        pass

    def cut(self) -> None:
        left = self._replay()
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        for path, content in left.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self._begun = left
        self._log.unlink(missing_ok=True)

    def _replay(self) -> dict[Path, bytes]:
        names = {path: File(bytearray(content)) for path, content in self._begun.items()}
        synced_names = dict(names)
        opened: dict[int, tuple[Path, File]] = {}
        begun: dict[int, int] = {}
        records = self._read()
        for position, (kind, fd, offset, data) in enumerate(records):
            match kind:
                case b"o":
                    path = Path(data.decode())
                    # 1: it is emptied; 2: it is a folder (opened to sync the names in it), or has no name.
                    file = File() if offset & 2 else names.setdefault(path, File())
                    if offset & 1:
                        file.pending.append((position, 0, None))
                    opened[fd] = path, file
                case b"c":
                    opened.pop(fd, None)
                case b"w":
                    opened[fd][1].pending.append((position, offset, data))
                case b"t":
                    opened[fd][1].pending.append((position, offset, None))
                case b"s":
                    begun[offset] = position
                case b"S":
                    path, file = opened[fd]
                    file.sync(before=begun[offset])
                    for name in [*names, *synced_names]:
                        if name.parent == path:
                            self._sync_name(name, names, synced_names)
                case b"r":
                    source, target = (Path(part.decode()) for part in data.split(b"\0"))
                    if source.name and target.name:
                        names[target] = names.pop(source)
                case b"u":
                    names.pop(Path(data.decode()), None)
        if self._luck:
            for name in [*names, *synced_names]:
                if self._draw.random() < self._luck:
                    self._sync_name(name, names, synced_names)
            for file in synced_names.values():
                for _, offset, written in file.pending:
                    if self._draw.random() < self._luck:
                        file.apply(offset, written)
        # SQLite never syncs the index of its log, and makes it anew from the log.
        return {path: bytes(file.content) for path, file in synced_names.items() if not path.name.endswith("-shm")}

    @staticmethod
    def _sync_name(name: Path, names: dict[Path, File], synced: dict[Path, File]) -> None:
        if name in names:
            synced[name] = names[name]
        else:
            synced.pop(name, None)

    def _read(self) -> list[tuple[bytes, int, int, bytes]]:
        """What the server did. The processes that it starts have nothing to do with its database."""
        records, at, server = [], 0, 0
        log = self._log.read_bytes() if self._log.exists() else b""
        while at + self.HEAD.size <= len(log):
            kind, pid, fd, offset, length = self.HEAD.unpack_from(log, at)
            data = log[at + self.HEAD.size : at + self.HEAD.size + length]
            at += self.HEAD.size + length
            server = server or pid
            if pid == server and len(data) == length:  # the kill may have cut the last one short
                records.append((kind, fd, offset, data))
        return records


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
