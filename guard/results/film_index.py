"""Hold what the index of an MP4 or QuickTime film claims against what a reader would make of it.

libav keeps some thirty bytes for each sample that an index names, once more for each edit of its track, and an index
names as many as it likes: films of a kilobyte took gigabytes to open, here and in ComfyUI's own loader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import IO

#: Samples of all tracks together: some eight hours of 60 frames a second.
MOST_SAMPLES = 2**21
#: What counts samples or leads to it, wherever it stands: libav finds boxes inside of many others.
_MARKS = re.compile(rb"trak|hdlr|stts|stsz|stz2|stsc|stco|co64|elst|trun|moof|sidx|mfra|cmov")
_LEADING = frozenset({b"moof", b"sidx", b"mfra"})
#: One step of the search; and what must be in sight of a box behind its name.
_WINDOW, _SIGHT = 2**18, 24
#: Boxes at the top: a film that was sent as it came has some for each second.
_MOST_BOXES = 200_000
#: Handlers that make libav take a track for something else than a sound; all others it leaves alone.
_NO_SOUNDS = frozenset({b"vide", b"subp", b"clcp"})
#: PCM is kept by chunks, at most so many samples in one entry.
_PCM_AT_ONCE = 1024


@dataclass
class _Track:
    samples: int = 0
    edits: int = 1
    chunks: int = 0
    most_in_chunk: int = 0
    handlers: set[bytes] = field(default_factory=set)
    #: Each of its samples lasts one tick.
    is_even: bool = True

    @property
    def entries(self) -> int:
        is_pcm = b"soun" in self.handlers and not self.handlers & _NO_SOUNDS and self.is_even
        kept = self.chunks * -(-self.most_in_chunk // _PCM_AT_ONCE) if is_pcm else self.samples
        return kept * self.edits


def claims_too_much(handle: IO[bytes], size: int) -> bool:
    """Whether to read the file's index would take much memory. Looks at all of the file but its pictures and sounds."""
    counted, track, leads_into_data = 0, _Track(), False
    data: list[tuple[int, int]] = []
    for name, begin, end in _list_boxes(handle, size):
        if name == b"mdat":
            data.append((begin, end))
            continue
        for mark, at, length, body in _find(handle, begin, end):
            leads_into_data |= mark in _LEADING
            if mark == b"cmov":
                return True  # compressed, which nobody has written for decades: who knows what it holds
            if mark == b"trak":
                counted, track = counted + track.entries, _Track()
            elif mark == b"trun":
                counted += _number(body, 4)
            else:
                _note(handle, mark, at, length, body, track)
            if counted + track.entries > MOST_SAMPLES:
                return True
    for begin, end in data if leads_into_data else ():
        for mark, _at, length, body in _find(handle, begin, end):
            # Most that looks like it is a part of a picture.
            if mark == b"trun" and body[0] <= 1 and 16 <= length < 2**24:
                counted += _number(body, 4)
        if counted > MOST_SAMPLES:
            return True
    return False


def _note(handle: IO[bytes], mark: bytes, at: int, length: int, body: bytes, track: _Track) -> None:
    """Take down what a box says of its track; of several of a kind, the worst."""
    if mark == b"hdlr":
        track.handlers.add(body[8:12])
    elif mark in (b"stsz", b"stz2"):
        track.samples = max(track.samples, _number(body, 8))
    elif mark == b"elst":
        track.edits = max(track.edits, _number(body, 4))
    elif mark == b"stts":
        track.is_even &= _number(body, 4) == 1 and _number(body, 12) == 1
    elif mark in (b"stco", b"co64"):
        track.chunks = max(track.chunks, min(_number(body, 4), length // 4))
    elif mark == b"stsc":
        handle.seek(at + 12)  # its name, version and count
        entries = handle.read(min(_number(body, 4), length // 12, 2**16) * 12)
        most = max((_number(entries, begin + 4) for begin in range(0, len(entries) - 11, 12)), default=0)
        track.most_in_chunk = max(track.most_in_chunk, most if length < 2**19 else 2**32)


def _find(handle: IO[bytes], begin: int, end: int) -> Iterator[tuple[bytes, int, int, bytes]]:
    """The marks in a part of the file: name, where it stands, the length that its box claims, what is behind it."""
    for position in range(begin, end, _WINDOW):
        first = max(position - 4, 0)
        handle.seek(first)
        window = handle.read(min(position + _WINDOW, end) + _SIGHT - first)
        for found in _MARKS.finditer(window):
            at = first + found.start()
            if position <= at < position + _WINDOW:
                body = window[found.end() : found.end() + _SIGHT - 4].ljust(_SIGHT, b"\0")
                yield found[0], at, int.from_bytes(window[max(found.start() - 4, 0) : found.start()], "big"), body


def _list_boxes(handle: IO[bytes], size: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes at the top: name, begin and end. What cannot be read as boxes is one without a name."""
    position = 0
    for name, begin, position in islice(iterate_readable_boxes(handle, 0, size), _MOST_BOXES):
        yield name, begin, position
    if position < size:
        yield b"", position, size


def _number(body: bytes, at: int) -> int:
    return int.from_bytes(body[at : at + 4], "big")


def iterate_readable_boxes(handle: IO[bytes], begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, begin, end) of each box between two places, as far as they make sense."""
    position = begin
    while position + 8 <= end:
        handle.seek(position)
        head = handle.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            length = end - position
        if length < 8:
            return
        yield head[4:8], position, min(position + length, end)
        position += length
