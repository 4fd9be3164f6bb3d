"""Download one file: under a temporary name, resumed where it broke off, and checked before it gets its own name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from ..store.file_lock import FileLock, LockedError
from .sources import Source

_CHUNK = 2**20
_TIMEOUT_S = 60.0
#: A connection that brings nothing new ends the download after so many tries; each that brings some begins anew.
_TRIES = 5
#: A manifest gives the size in whole MB; where a hash says what the file is, also as pages show it, with three digits.
_ROUNDED, _SHARE = 1_000_000, 0.005
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')

#: Told how many bytes are there, and how many there will be (0: nobody knows).
Progress = Callable[[int, int], None]


class FetchError(Exception):
    """The file could not be had; the message says why."""


class _BrokenOff(Exception):
    """The connection ended early."""


def fetch(
    source: Source,
    target: Path,
    *,
    size_mb: int,
    sha256: str = "",
    progress: Progress = lambda _have, _all: None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Bring the file. What has come stays as `<name>.part` where it fails, except for bytes that are wrong.

    Args:
        size_mb: how large it is, as the manifest says.
        sha256: what it must hash to; where it is not known, the hub's own word counts, and then the size.

    Raises:
        FetchError
    """
    part = target.with_name(f"{target.name}.part")
    lock = FileLock(target.with_name(f"{target.name}.part.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The command line and the server would write into one another's file.
        with lock.hold(0.0):
            try:
                _bring(source, part, size_mb, sha256, progress, pause)
                os.replace(part, target)
            finally:
                with contextlib.suppress(OSError):  # Windows deletes no open file
                    lock.path.unlink()
    except LockedError:
        raise FetchError("somebody else is downloading it") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(f"the disk is full; what has come stays as {part.name}") from None
        raise FetchError(f"{error.strerror or error}") from None


def _bring(
    source: Source, part: Path, size_mb: int, sha256: str, progress: Progress, pause: Callable[[float], None]
) -> None:
    """Have the whole file under its temporary name. Raises FetchError, OSError."""
    mark = part.with_name(f"{part.name}.etag")
    tries, told = 0, ""
    while True:
        had = part.stat().st_size if part.exists() else 0
        try:
            told = _receive(source, part, mark, size_mb, progress)
            break
        except _BrokenOff as error:
            grown = (part.stat().st_size if part.exists() else 0) > had
            tries = 1 if grown else tries + 1
            if tries >= _TRIES:
                raise FetchError(f"the connection keeps breaking off ({error}); run it again to go on") from None
            pause(min(2.0**tries, 30.0))
    _check(part, size_mb, sha256 or told)
    mark.unlink(missing_ok=True)


def _receive(source: Source, part: Path, mark: Path, size_mb: int, progress: Progress) -> str:
    """Get the rest of the file. Returns the SHA-256 that the hub says, or an empty text.

    Raises _BrokenOff where it may be tried again, FetchError where that makes no sense.
    """
    have = part.stat().st_size if part.exists() and mark.exists() else 0
    headers = {"User-Agent": "ComfyUI-Guarded", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": mark.read_text()}
    if source.token:
        headers["Authorization"] = f"Bearer {source.token}"
    linked: dict[str, str] = {}
    try:
        answer = _open(source.url, headers, linked)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is there is more than there is to have
            part.unlink(missing_ok=True)
            raise _BrokenOff("416") from None
        if error.code in (408, 429) or error.code >= 500:
            raise _BrokenOff(f"status {error.code}") from None
        more = "; it may need HF_TOKEN, or that you accept its licence there" if error.code in (401, 403) else ""
        raise FetchError(f"{urlsplit(source.url).netloc} says {error.code}{more}") from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise _BrokenOff(str(getattr(error, "reason", error))) from None
    with answer:
        if answer.status != 206:
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else 0
        if length:
            _refuse_size(total, size_mb)
        _refuse_space(part, int(length or 0))
        tag = answer.headers.get("ETag", "")
        if tag and not tag.startswith("W/"):
            mark.write_text(tag)
        else:
            mark.unlink(missing_ok=True)
        with open(part, "r+b" if have else "wb") as file:
            file.seek(have)
            file.truncate()
            _copy(answer, file, have, total, size_mb, progress)
    found = _SHA256.fullmatch(linked.get("X-Linked-Etag", "") or answer.headers.get("X-Linked-Etag", ""))
    return found[1] if found is not None else ""


def _copy(answer: Any, file: IO[bytes], have: int, total: int, size_mb: int, progress: Progress) -> None:
    while True:
        try:
            block = answer.read1(_CHUNK)  # what has come, so that a stop need not wait for more
        except (HTTPException, TimeoutError, ConnectionError) as error:
            partial = getattr(error, "partial", b"")
            file.write(partial)
            raise _BrokenOff(str(error) or type(error).__name__) from None
        if not block:
            break
        file.write(block)
        have += len(block)
        _refuse_size(have, size_mb, at_least=False)
        progress(have, total)
    if have < total:
        raise _BrokenOff(f"{have} of {total} bytes")


def _open(url: str, headers: dict[str, str], linked: dict[str, str]) -> Any:
    """Open an address. The token goes to its host alone; `linked` gets what the hub says before it leads on."""

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request: Any, fp: Any, code: int, msg: str, told: Any, newurl: str) -> Any:
            linked.update({name: told[name] for name in ("X-Linked-Etag",) if told.get(name)})
            if urlsplit(newurl).scheme not in ("https", urlsplit(request.full_url).scheme):
                raise FetchError("the source leads to an address without TLS")
            following = super().redirect_request(request, fp, code, msg, told, newurl)
            if following is not None and urlsplit(newurl).netloc != urlsplit(request.full_url).netloc:
                following.headers.pop("Authorization", None)
            return following

    request = urllib.request.Request(url, headers=headers)
    return urllib.request.build_opener(Redirects).open(request, timeout=_TIMEOUT_S)


def _check(part: Path, size_mb: int, sha256: str) -> None:
    """Raises FetchError, and deletes what is wrong, where the file is not the one that was meant."""
    try:
        _refuse_size(part.stat().st_size, size_mb, is_hashed=bool(sha256))
        if sha256:
            digest = hashlib.sha256()
            with open(part, "rb") as file:
                while block := file.read(_CHUNK):
                    digest.update(block)
            if digest.hexdigest() != sha256:
                raise FetchError("its SHA-256 is not the one that was promised; it was deleted")
    except FetchError:
        part.unlink(missing_ok=True)
        raise


def _refuse_size(size: int, size_mb: int, *, at_least: bool = True, is_hashed: bool = True) -> None:
    """Raises FetchError where a size is not what the manifest says, but for its rounding."""
    wanted = size_mb * 1_000_000
    rounded = max(_ROUNDED, wanted * _SHARE) if is_hashed else _ROUNDED
    if size > wanted + rounded or (at_least and size < wanted - rounded):
        raise FetchError(f"the source has {size} bytes, and the manifest says {size_mb} MB")


def _refuse_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free + (part.stat().st_size if part.exists() else 0)
    if free < needed:
        raise FetchError(f"the disk has {free // 1_000_000} MB free, and {needed // 1_000_000} MB are needed")
