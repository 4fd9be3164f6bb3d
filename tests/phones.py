"""Photos as phones write them: more than one picture in a file, or a film behind it."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 192, 128
#: How the camera was held: its picture is to be turned by 90 degrees.
ON_ITS_SIDE = 6


def scene(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Red above, blue below, and something to see in both; a red sign at the left."""
    down, across = np.mgrid[0:height, 0:width]
    waves = (np.sin(across / 7) * 30 + np.cos(down / 5) * 20).astype(int)
    pixels = np.zeros((height, width, 3), int)
    pixels[..., 0] = np.where(down < height / 2, 190, 40) + waves
    pixels[..., 1] = 60 + waves
    pixels[..., 2] = np.where(down < height / 2, 40, 190) + waves
    pixels[:, : width // 8] = (250, 250, 250)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def held(orientation: int = ON_ITS_SIDE) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "A phone"
    return exif.tobytes()


def segment(code: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(content) + 2) + content


def put_in(picture: bytes, *segments: bytes) -> bytes:
    """The picture with segments before its tables, behind its EXIF data, as cameras write them."""
    at = _find_place(picture)
    return picture[:at] + b"".join(segments) + picture[at:]


def _find_place(picture: bytes) -> int:
    at = 2
    while picture[at : at + 2] in (b"\xff\xe0", b"\xff\xe1"):
        at += 2 + int.from_bytes(picture[at + 2 : at + 4], "big")
    return at


def xmp(text: str) -> bytes:
    packet = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>{text}</rdf:RDF></x:xmpmeta>'
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet.encode())


def list_pictures(first: int, others: list[int], behind: int) -> bytes:
    """The segment by which a file says that more pictures follow (CIPA DC-007); `behind`: its place in the file."""
    entries = struct.pack(">LLLHH", 0x20030000, first, 0, 0, 0)
    at = first
    for size in others:
        entries += struct.pack(">LLLHH", 0, size, at - behind - 8, 0, 0)
        at += size
    count = len(others) + 1
    ifd = struct.pack(">H", 3) + struct.pack(">HHL4s", 0xB000, 7, 4, b"0100")
    ifd += struct.pack(">HHLL", 0xB001, 4, 1, count) + struct.pack(">HHLL", 0xB002, 7, len(entries), 50)
    return segment(0xE2, b"MPF\0" + b"MM\0*" + struct.pack(">L", 8) + ifd + struct.pack(">L", 0) + entries)


def with_pictures(before: bytes, others: list[bytes]) -> bytes:
    """A picture with others behind it and the list of them, as Android and iOS write it."""
    sizes, place = [len(each) for each in others], _find_place(before)
    room = len(list_pictures(len(before), sizes, place))
    return put_in(before, list_pictures(len(before) + room, sizes, place)) + b"".join(others)


def ultra_hdr(orientation: int = ON_ITS_SIDE) -> bytes:
    """As libultrahdr writes it: XMP and ISO 21496-1 say that the smaller picture behind is a map of gains."""
    gain = segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0" + bytes(60))
    gain_map = put_in(
        jpeg(scene(WIDTH // 4, HEIGHT // 4).convert("L")), xmp('<rdf:Description hdrgm:GainMapMax="2"/>'), gain
    )
    told = f"""<rdf:Description xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0">
 <Container:Directory><rdf:Seq><rdf:li><Container:Item Item:Semantic="Primary" Item:Mime="image/jpeg"/></rdf:li>
 <rdf:li><Container:Item Item:Semantic="GainMap" Item:Mime="image/jpeg" Item:Length="{len(gain_map)}"/></rdf:li>
 </rdf:Seq></Container:Directory></rdf:Description>"""
    first = jpeg(scene(), exif=held(orientation))
    version = segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0" + bytes(4))
    return with_pictures(put_in(first, xmp(told), version), [gain_map])


def apple_hdr() -> bytes:
    """As iOS exports it: no XMP beside the first picture."""
    gain_map = put_in(
        jpeg(scene(WIDTH // 2, HEIGHT // 2).convert("L")), xmp('<rdf:Description HDRGainMapVersion="65536"/>')
    )
    return with_pictures(jpeg(scene(), exif=held()), [gain_map])


def by_pillow(count: int) -> bytes:
    """As cameras with two lenses: all of one size."""
    file = io.BytesIO()
    first, *others = (scene() for _ in range(count))
    first.save(file, "MPO", save_all=True, append_images=others, quality=92)
    return file.getvalue()


def without_list() -> bytes:
    """As some older phones: the picture that is not yet blurred lies behind, and a trailer of their own."""
    return jpeg(scene(), exif=held()) + jpeg(scene(WIDTH * 2, HEIGHT * 2)) + b"SEFH" + bytes(40) + b"SEFT"


def cut_by_others() -> bytes:
    """The list of pictures is there, and no other picture: some messenger has cut it off."""
    whole = by_pillow(2)
    return whole[: whole.index(b"\xff\xd9\xff\xd8") + 2] if b"\xff\xd9\xff\xd8" in whole else whole


def film() -> bytes:
    """No real film: boxes as an MP4 has them, with what looks like the beginning of a picture among its data."""
    noise = np.random.default_rng(5).integers(0, 255, 40_000, np.uint8).tobytes()
    data = noise[:9000] + b"\xff\xd8\xff\xe0\0\x10JFIF" + noise[9000:] + b"\xff\xd9"
    return struct.pack(">L", 24) + b"ftypmp42\0\0\0\0mp42isom" + struct.pack(">L", len(data) + 8) + b"mdat" + data


def motion_photo() -> bytes:
    told = '<rdf:Description GCamera:MotionPhoto="1" GCamera:MicroVideoOffset="40000"/>'
    return put_in(jpeg(scene(), exif=held()), xmp(told)) + film()


def motion_in_hdr() -> bytes:
    return ultra_hdr() + film()


PHOTOS: dict[str, Callable[[], bytes]] = {
    "Ultra HDR": ultra_hdr,
    "Apple's HDR": apple_hdr,
    "two lenses": lambda: by_pillow(2),
    "five pictures": lambda: by_pillow(5),
    "without a list": without_list,
    "cut by others": cut_by_others,
    "motion photo": motion_photo,
    "motion photo in HDR": motion_in_hdr,
    "zeros behind": lambda: jpeg(scene(), exif=held()) + bytes(300),
}
