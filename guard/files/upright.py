"""Turn a picture upright that says that it is mirrored, which ComfyUI 0.33's LoadImage only turns.

The EXIF orientations 2, 4, 5 and 7 mirror a picture; few devices write them, front cameras and editors among these.
libav's frames have an angle and no mirror, so that the node gets such a picture the wrong way round.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from .jpegs import find_exif

#: The EXIF tag that says how the camera was held, and those of its values by which a picture is mirrored.
_ORIENTATION = 0x0112
_MIRRORED = frozenset({2, 4, 5, 7})
#: Larger pictures stay as they are. One of so many takes 200 MB and a second or two: `decode_beside` bounds these.
_MOST_PIXELS = 32_000_000
#: Who writes a picture puts no more pieces into it.
_MOST_CHUNKS = 1000
_MOST_EXIF_BYTES = 2**20
_QUALITY = 95
TURNED = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tiff": "TIFF"}


def is_mirrored(path: Path, suffix: str) -> bool:
    """Whether a picture says that it is mirrored. Raises OSError where the disk does."""
    return suffix in TURNED and _find_orientation(path, TURNED[suffix]) in _MIRRORED


def turn_upright(path: Path, suffix: str) -> str:
    """Write a mirrored picture anew as it is meant to be seen, in its format and with what it says of itself.

    Returns the SHA-256 of the new file, in hexadecimal; empty where the file stays as it is: it holds several pictures,
    or cannot be read. Nobody else may have the file yet. Raises OSError where the disk does.
    """
    form = TURNED[suffix]
    part = path.with_name(f"{path.name}~")
    try:
        if not _write(path, part, form):
            return ""
        digest = hashlib.sha256()
        with open(part, "rb") as handle:
            while block := handle.read(2**20):
                digest.update(block)
        os.replace(part, path)
        return digest.hexdigest()
    finally:
        part.unlink(missing_ok=True)


def _find_orientation(path: Path, form: str) -> int:
    """What a picture's EXIF data says, without a look at its pixels; 0: nothing."""
    from PIL import Image, TiffImagePlugin

    try:
        if form == "TIFF":
            with open(path, "rb") as handle:
                header = TiffImagePlugin.ImageFileDirectory_v2(handle.read(8))
                handle.seek(header.next)
                header.load(handle)
                return int(header.get(_ORIENTATION, 0)) if not header.next else 0
        if form == "JPEG":
            data = find_exif(path)
        else:
            with open(path, "rb") as handle:
                data = next((data for name, data in _list_chunks(handle, form) if name in (b"eXIf", b"EXIF")), b"")
        if not data:
            return 0
        exif = Image.Exif()
        exif.load(data)
        return int(exif.get(_ORIENTATION, 0))
    except OSError:
        raise
    except Exception:  # Pillow raises almost anything on hostile input
        return 0


def _list_chunks(handle: IO[bytes], form: str) -> Iterator[tuple[bytes, bytes]]:
    """(name, the data of EXIF) of each chunk of a PNG or WEBP."""
    png = form == "PNG"
    at, end = 8 if png else 12, os.fstat(handle.fileno()).st_size
    for _chunk in range(_MOST_CHUNKS):
        handle.seek(at)
        head = handle.read(8)
        if len(head) < 8 or at >= end:
            return
        length, name = (
            (int.from_bytes(head[:4], "big"), head[4:]) if png else (int.from_bytes(head[4:], "little"), head[:4])
        )
        yield name, handle.read(length) if name in (b"eXIf", b"EXIF") and length <= _MOST_EXIF_BYTES else b""
        at += 8 + length + (4 if png else length & 1)


def _write(path: Path, part: Path, form: str) -> bool:
    from PIL import Image, ImageOps

    # Of a path Pillow maps a grey TIFF into memory, and forgets to turn it.
    with suppress(Exception), open(path, "rb") as source, Image.open(source, formats=[form]) as image:
        several = form != "TIFF" and getattr(image, "n_frames", 1) > 1  # a TIFF's are counted already
        if several or image.width * image.height > _MOST_PIXELS:
            return False
        options = _keep_ways(path, image, form)
        upright = ImageOps.exif_transpose(image)
        for name in ("exif", "icc_profile", "xmp", "dpi"):
            if upright.info.get(name):
                options[name] = upright.info[name]
        if form == "TIFF":
            options.pop("exif", None)
        if form == "PNG":
            options["pnginfo"] = _keep_texts(image, upright)
        with open(part, "xb") as handle:
            upright.save(handle, form, **options)
        return True
    return False


def _keep_ways(path: Path, image: Any, form: str) -> dict[str, Any]:
    """How the format's writer is to write it."""
    if form == "JPEG":
        from PIL import JpegImagePlugin

        # Its own tables, so that next to nothing is lost.
        return {"qtables": image.quantization, "subsampling": JpegImagePlugin.get_sampling(image)}
    if form == "WEBP":
        with open(path, "rb") as handle:
            lossless = any(name == b"VP8L" for name, _data in _list_chunks(handle, form))
        return {"quality": _QUALITY, "lossless": lossless, "exact": True, "method": 0}
    if form == "TIFF":
        return {"compression": image.info.get("compression")}
    return {"compress_level": 2}


def _keep_texts(image: Any, upright: Any) -> Any:
    from PIL import PngImagePlugin

    texts = PngImagePlugin.PngInfo()
    for name in getattr(image, "text", {}):
        if isinstance(text := upright.info.get(name), str) and not name.startswith("Raw profile type"):
            texts.add_itxt(name, text) if not text.isascii() or name.startswith("XML:") else texts.add_text(name, text)
    return texts
