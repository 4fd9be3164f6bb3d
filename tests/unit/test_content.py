"""Files that make their reader open others are refused; what real readers do with them is tried here, too."""

import contextlib
import io
import json
import os
import struct
import time
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from bounds.judges import read_peak
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from comfyui_guarded.guard.errors import BadImageError
from comfyui_guarded.guard.files.content import check_content, check_folder


def picture(kind: str, **options) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


def film(container: str, codec: str = "mpeg4") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        stream = target.add_stream(codec, rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for index in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index * 40, np.uint8), format="rgb24")
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return file.getvalue()


def sound(container: str, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        stream = target.add_stream(codec, rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        resampled = av.AudioResampler(stream.format.name, "mono", 48000, frame_size=stream.frame_size or None)
        for piece in resampled.resample(frame):
            target.mux(stream.encode(piece))
        target.mux(stream.encode())
    return file.getvalue()


M3U8 = (
    b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\n"
    b"../alice/secret.ts\n#EXT-X-ENDLIST\n"
)
CONCAT = b"ffconcat version 1.0\nfile secret.mp4\n"
SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
MPD = (
    b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:full:2011">'
    b"<Period><BaseURL>../alice/secret.mp4</BaseURL></Period></MPD>"
)
LISTS = {
    "hls": M3U8,
    "m3u": b"#EXTM3U\n../alice/clip.mp4\n",
    "concat": CONCAT,
    "dash": MPD,
    "dash with a prefix": MPD.replace(b"<MPD xmlns=", b"<d:MPD xmlns:d="),
    "sdp": SDP,
    "pls": b"[playlist]\nFile1=../alice/clip.mp4\n",
    "asx": b'<ASX version="3.0"><entry><ref href="file:///etc/passwd"/></entry></ASX>',
    "asf reference": b"[Reference]\nRef1=http://127.0.0.1/a.asf\n",
    "smil": b'<smil><body><video src="../alice/clip.mp4"/></body></smil>',
    "xspf": b'<?xml version="1.0"?>\n<playlist xmlns="http://xspf.org/ns/0/"><trackList/></playlist>',
    "wpl": b'<?wpl version="1.0"?><smil/>',
    "cue": b'TITLE "x"\nFILE "../alice/song.wav" WAVE\n  TRACK 01 AUDIO\n',
    "ism": b'<?xml version="1.0"?>\n<SmoothStreamingMedia MajorVersion="2">',
    "imf": b'<?xml version="1.0"?>\n<CompositionPlaylist xmlns="x">',
    "asset map": b'<?xml version="1.0"?>\n<AssetMap>',
    "vobsub": b"# VobSub index file, v7\nsize: 720x480\n",
    "ram": b"rtsp://127.0.0.1/a.rm\n",
    "addresses": b"\n  http://127.0.0.1:8188/view?filename=a.png\nhttp://x/",
    "mvg": b"push graphic-context\nviewbox 0 0 1 1\nimage over 0,0 0,0 'https://x/'\n",
    "vapoursynth": b"import vapoursynth as vs\n",
}
DISGUISES = {
    "as it is": lambda data: data,
    "after a mark": lambda data: b"\xef\xbb\xbf" + data,
    "after blanks": lambda data: b"\r\n \t\n" + data,
    "after a tag": lambda data: b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + data,
    "after two tags": lambda data: (b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)) * 2 + data,
    "in UTF-16": lambda data: data.decode().encode("utf-16"),
    "with a zero behind": lambda data: data + b"\n\0\0\0\0" * 100,
    "with Windows' lines": lambda data: data.replace(b"\n", b"\r\n"),
    "in capitals": lambda data: data.upper() if not data.startswith((b"#", b"ff", b"c=", b"v=")) else data,
}


def checked(tmp_path: Path, data: bytes, name: str = "a.bin") -> None:
    path = tmp_path / "stored"
    path.write_bytes(data)
    check_content(path, name)


def refused(tmp_path: Path, data: bytes, name: str = "a.bin") -> str:
    with pytest.raises(BadImageError) as caught:
        checked(tmp_path, data, name)
    assert caught.value.extra_info["filename"] == name
    return caught.value.message


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_other_files_is_refused_under_every_name(tmp_path, kind, disguise):
    data = DISGUISES[disguise](LISTS[kind])
    for name in ("clip.mp4", "photo.png", "song.mp3", "list.txt", "x"):
        refused(tmp_path, data, name)


@given(st.sampled_from(sorted(LISTS)), st.text("\t \r\n", max_size=20), st.binary(max_size=50))
def test_blanks_before_a_list_and_anything_behind_it_change_nothing(tmp_path_factory, kind, before, behind):
    refused(tmp_path_factory.mktemp("list"), before.encode() + LISTS[kind] + b"\n" + behind, "clip.mp4")


@pytest.mark.parametrize("name", ["a.m3u8", "a.M3U", "a.pls", "a.cue", "a.avs", "a.vpy", "a.sdp", "a.eps", "a.svgz"])
def test_a_name_that_readers_go_by_is_refused(tmp_path, name):
    refused(tmp_path, b"../alice/clip.mp4\n", name)


def test_libav_follows_such_a_list_and_never_sees_it(tmp_path):
    """Without the check, bob would have alice's film by his own upload."""
    (tmp_path / "alice").mkdir()
    (tmp_path / "bob").mkdir()
    (tmp_path / "alice/secret.ts").write_bytes(film("mpegts"))
    mine = tmp_path / "bob/list.m3u8"
    mine.write_bytes(M3U8)
    with av.open(str(mine)) as opened:
        assert opened.format.name == "hls"
        assert len(list(opened.decode(video=0))) == 5
    with pytest.raises(BadImageError):
        check_content(mine, "list.m3u8")


@pytest.mark.parametrize("front", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("behind", ["hls", "concat", "dash", "sdp"])
@pytest.mark.parametrize("suffix", ["png", "m3u8", "mp4"])
def test_a_picture_with_a_list_behind_it_is_a_picture_to_libav_and_pillow(tmp_path, front, behind, suffix):
    """So such a file need not be refused; what is checked here is that no reader follows it."""
    (tmp_path / "alice").mkdir()
    (tmp_path / "bob").mkdir()
    for name in ("alice/secret.ts", "bob/secret.mp4", "alice/secret.mp4"):
        (tmp_path / name).write_bytes(film("mpegts" if name.endswith("ts") else "mp4"))
    path = tmp_path / f"bob/a.{suffix}"
    path.write_bytes(picture(front) + LISTS[behind])
    with Image.open(path) as opened:
        opened.load()
    try:
        with av.open(str(path)) as opened:
            assert opened.format.name not in ("hls", "dash", "concat", "sdp")
            assert all((frame.width, frame.height) == (64, 48) for frame in opened.decode(video=0))
    except av.FFmpegError:
        pass


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM", "TGA"])
def test_pictures_are_taken(tmp_path, kind):
    checked(tmp_path, picture(kind), f"a.{kind.lower()}")


def test_a_photo_with_words_in_it_is_taken(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "see http://example.com/ #EXTM3U"
    checked(tmp_path, picture("JPEG", exif=exif, comment=b"http://example.com/"))


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "webm", "avi", "mpegts", "flv", "asf", "nut", "ogg"])
def test_films_are_taken(tmp_path, container):
    codec = {"webm": "libvpx", "flv": "flv", "asf": "msmpeg4v3", "ogg": "libvpx"}
    checked(tmp_path, film(container, codec.get(container, "mpeg4")))


@pytest.mark.parametrize(
    ("container", "codec"), [("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame"), ("ogg", "libopus")]
)
def test_sounds_are_taken(tmp_path, container, codec):
    checked(tmp_path, sound(container, codec))


def test_a_film_that_takes_its_data_from_another_file_is_refused(tmp_path):
    whole = film("mov")
    at = whole.index(b"dref") + 12
    assert whole[at + 8 : at + 12] == b"\0\0\0\1"
    refused(tmp_path, whole[: at + 8] + b"\0\0\0\0" + whole[at + 12 :], "a.mov")
    reference = struct.pack(">I4sI4s", 16, b"moov", 8, b"rmra")
    refused(tmp_path, reference, "a.mov")
    refused(tmp_path, struct.pack(">I4s", 8, b"wide") + reference, "a.mp4")


SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">%s</svg>'


@pytest.mark.parametrize(
    "inside",
    [b'<image href="http://127.0.0.1/"/>', b'<image xlink:href="../alice/photo.png"/>', b"<image x:href = '/etc/x'/>",
     b'<image\nhref="file:///etc/passwd"/>', b'<image href="&#104;ttp://x/"/>', b'<image href="data:image/svg+xml,x"/>',
     b'<rect style="fill:url(http://x/)"/>', b"<rect style=\"fill:url( 'a.svg#x')\"/>", b"<style>@import 'x';</style>",
     b"<style>a{b:u\\72l(x)}</style>", b'<rect style="&#117;rl(x)"/>', b"<script>x</script>", b"<foreignObject/>",
     b'<set attributeName="href" to="http://x/"/>', b'<rect onload="x()"/>', b'<g xml:base="http://x/"/>',
     b'<a href="https://example.com/"/>', b'<use href="x.svg#a"/>', b'<feImage href="x"/>', b"<svg:script/>"],
)  # fmt: skip
def test_a_drawing_with_links_is_refused(tmp_path, inside):
    for encode in (bytes, lambda data: data.decode().encode("utf-16")):
        refused(tmp_path, encode(SVG % inside), "a.svg")
    refused(tmp_path, SVG % inside, "a.png")


def test_other_ways_to_link_from_a_drawing_are_refused(tmp_path):
    for data in (
        b'<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + SVG % b"&x;",
        b'<!DOCTYPE svg SYSTEM "http://127.0.0.1/x.dtd">' + SVG % b"",
        b'<?xml-stylesheet href="x.css"?>' + SVG % b"",
        (SVG % b"<rect/>").replace(b'"1.0"?', b'"1.0" encoding="utf-7"?'),
    ):
        refused(tmp_path, data, "a.svg")


def test_a_drawing_of_its_own_is_taken(tmp_path):
    inside = (
        b'<defs><linearGradient id="a"/></defs><rect fill="url(#a)" style="stroke:url(\'#a\')"/><use xlink:href="#a"/>'
        b'<image href="data:image/png;base64,iVBORw0KGgo="/><text>see http://example.com/, C:/dir</text>'
    )
    dtd = b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">'
    checked(tmp_path, SVG % inside, "a.svg")
    checked(tmp_path, dtd + SVG % b"<rect/>", "a.svg")


def gltf(**scene) -> bytes:
    return json.dumps({"asset": {"version": "2.0"}, **scene}).encode()


def glb(scene: bytes) -> bytes:
    scene += b" " * (-len(scene) % 4)
    return struct.pack("<4sIII4s", b"glTF", 2, 20 + len(scene), len(scene), b"JSON") + scene


@pytest.mark.parametrize("wrap", [bytes, glb, lambda data: b"\xef\xbb\xbf" + data])
def test_a_scene_with_outside_files_is_refused(tmp_path, wrap):
    for scene in (
        gltf(buffers=[{"uri": "../alice/x.bin", "byteLength": 1}]),
        gltf(images=[{"uri": "http://127.0.0.1/"}]),
        gltf(extensions={"X": {"deep": [{"uri": "a"}]}}),
        gltf(buffers=[{"uri": "a"}]).replace(b'"uri"', b'"\\u0075ri"'),
        b'{"asset": {}, "buffers": [{"uri": "a"}], "buffers": []}',
    ):
        refused(tmp_path, wrap(scene), "a.glb")
    checked(tmp_path, wrap(gltf(buffers=[{"uri": "data:application/octet-stream;base64,AA=="}])), "a.glb")
    checked(tmp_path, wrap(gltf()), "a.glb")


@pytest.mark.parametrize(
    ("data", "name"),
    [(b"mtllib ../alice/x.mtl\nv 0 0 0\n", "a.obj"), (b"newmtl a\nmap_Kd ../alice/photo.png\n", "a.mtl"),
     (b"newmtl a\nmap_Kd -o 1 1 1 /etc/x.png\n", "a.mtl"), (b"v 0 0 0\ncall C:\\x.obj\n", "a.obj"),
     (b'#usda 1.0\ndef "x" (references = @../x.usd@) {}', "a.usda"),
     (b"<COLLADA><image><init_from>../x.png</init_from></image></COLLADA>", "a.dae"),
     (b'<COLLADA><instance_geometry url="../x.dae#a"/></COLLADA>', "a.dae"),
     (b'#VRML V2.0 utf8\nInline { url "http://x/" }', "a.wrl"),
     (b'<X3D><Scene><Inline url="x"/></Scene></X3D>', "a.x3d")],
)  # fmt: skip
def test_other_scenes_with_outside_files_are_refused(tmp_path, data, name):
    refused(tmp_path, data, name)


def test_a_scene_of_its_own_and_plain_texts_are_taken(tmp_path):
    for data, name in (
        (b"mtllib x.mtl\no a\nv 0 0 0\nf 1 1 1\n", "a.obj"),
        (b"# made by http://example.com/\nv 0 0 0\n", "a.obj"),
        (b"ply\nformat ascii 1.0\nend_header\n", "a.ply"),
        (b'<COLLADA><a source="#x"/><init_from>image-id</init_from></COLLADA>', "a.dae"),
        (b"a cat by the sea, see http://example.com/\nFILE\n", "a.txt"),
        (b'{"steps": 5, "uri": "http://x/"}', "a.json"),
        ("кот".encode(), "a.txt"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "a.latent"),
        (b"", "a.txt"),
    ):
        checked(tmp_path, data, name)


def test_programs_are_refused(tmp_path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", b"x")
        file.writestr("archive/big", bytes(3_000_000))
    array = io.BytesIO()
    np.save(array, np.array([object], dtype=object), allow_pickle=True)
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xc5\xd0\xd3\xc6" + bytes(30), b"\x80\x04\x95", archive.getvalue(),
                 array.getvalue()):  # fmt: skip
        refused(tmp_path, data, "a.png")
    plain = io.BytesIO()
    np.save(plain, np.zeros(5))
    checked(tmp_path, plain.getvalue(), "a.npy")


def test_a_folder_is_checked_to_its_last_file(tmp_path):
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    for index in range(3):
        (folder / f"{index}.png").write_bytes(picture("PNG"))
    check_folder(folder, "set")
    (folder / "deep/x.png").write_bytes(M3U8)
    with pytest.raises(BadImageError, match=r"set/deep/x\.png"):
        check_folder(folder, "set")
    with pytest.raises(BadImageError, match="more than 2 files"):
        check_folder(folder, "set", most=2)


@given(st.binary(max_size=400))
def test_no_bytes_break_the_check(tmp_path_factory, data):
    for front in (b"", b"ID3\x04\0\0\0\0\0\x02", b"\0\0\0\x18ftypisom", b"glTF\2\0\0\0", b"<svg>", b"{", b"PK\3\4"):
        with contextlib.suppress(BadImageError):
            checked(tmp_path_factory.mktemp("any"), front + data)


@pytest.mark.parametrize(
    "piece",
    [b"FILE ", b"style", b"v=0\n", b"<a ", b"href = ", b"url( ", b"<!DOCTYPE svg PUBLIC ", b"a" * 7, b"mtllib ", b" ",
     b"map_Kd x ", b"<init_from>x", b"\n", b'"uri" : ', b"map_"],
)  # fmt: skip
def test_a_large_text_costs_no_more_than_its_size(tmp_path, piece):
    for front in (b"", b"<svg ", b"<COLLADA ", b"v 0 0\n", b'{"asset":'):
        data = front + piece * (2**20 // len(piece))
        begin = time.process_time()
        with contextlib.suppress(BadImageError):
            checked(tmp_path, data, "a.txt")
        assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("before", "behind"),
    [(b"<COLLADA> url", b"</COLLADA>"), (b"<svg a='url(", b"#'/>"), (b"<svg a='href=\"", b"#\"/>"), (b"<svg a ", b"/>"),
     (b'{"asset": 1, "uri"', b"}"), (b"v 0 0 0\nmtllib x", b"\n")],
)  # fmt: skip
def test_a_long_run_of_blanks_costs_no_more_than_its_size(tmp_path, before, behind):
    """A pattern with room for blanks in two places would go through the run once for each of its blanks: it would keep
    all threads waiting for hours where the text has megabytes."""
    for blank in (b" ", b"\t", b"\n"):
        begin = time.process_time()
        checked(tmp_path, before + blank * 2**18 + behind, "a.txt")
        assert time.process_time() - begin < 5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak afresh")
def test_a_text_of_many_parts_is_refused_before_it_is_parsed(tmp_path):
    data = b'{"asset":[' + b"[]," * 2**22 + b"[]]}"
    before = read_peak(os.getpid(), afresh=True)
    refused(tmp_path, data, "a.gltf")
    assert read_peak(os.getpid()) - before < 4 * len(data)


def test_a_scene_with_its_meshes_in_it_is_taken(tmp_path):
    uri = "data:application/octet-stream;base64," + "A" * 3_000_000
    checked(tmp_path, gltf(buffers=[{"uri": uri, "byteLength": 2_250_000}]), "a.gltf")
    refused(tmp_path, gltf(buffers=[{"uri": uri}, {"uri": "x" + uri}]), "a.gltf")


def test_letters_in_numbers_of_any_length_are_no_way_around(tmp_path):
    for letter in (b"&#104;", b"&#x68", b"&#000104;", b"&#" + b"0" * 100 + b"104;", b"&#" + b"9" * 10_000 + b";"):
        refused(tmp_path, SVG % (b"<a " + letter + b'ref="http://x/"/>'), "a.svg")


LINKED = [
    b'<image href="http://127.0.0.1/"/>', b"<image href \n = \t 'http://127.0.0.1/'/>", b'<a &#104;ref="http://x/"/>',
    b"<rect style=\"fill:url( 'a.svg#x')\"/>", b"<style>@import 'x';</style>", b"<svg:script/>", b'<g onload="x()"/>',
    b'<set attributeName="x:href" to="http://x/"/>', b"<style>a{b:u\\72l(x)}</style>",
]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(LINKED), st.sampled_from([b"<g/>", b"<g>\n</g>", b"a", b" ", b"&#97;"]), st.integers(-150, 20))
def test_a_link_is_found_wherever_in_a_large_drawing_it_stands(tmp_path_factory, link, filling, place):
    """Also where two blocks meet in the middle of it."""
    size = 2**16 - len(SVG) + place
    before = (filling * (size // len(filling) + 1))[:size] if filling != b"&#97;" else filling * (size // 5)
    drawing = SVG % (b"<text>" + before + b"</text>" + link + b"<g/>" * 30_000)
    refused(tmp_path_factory.mktemp("svg"), drawing, "a.svg")


@settings(max_examples=20, deadline=None)
@given(st.integers(-100, 100), st.integers(0, 9000), st.booleans())
def test_a_file_elsewhere_is_found_wherever_its_line_is_and_however_long(tmp_path_factory, place, length, is_taken):
    line = b"mtllib " + b"x" * length + (b"" if is_taken else b" /etc/x")
    data = b"v 0 0 0\n" * ((2**16 + place) // 8) + line + b"\nf 1 1 1\n" * 9000
    check = checked if is_taken else refused
    check(tmp_path_factory.mktemp("obj"), data, "a.obj")


@settings(max_examples=20, deadline=None)
@given(st.integers(-150, 20))
def test_a_large_drawing_of_its_own_is_taken(tmp_path_factory, place):
    own = b"<use xlink:href=\"#a\"/><g style='fill:url( \"#a\")'/><image href='data:image/png;base64,AAAA'/>&#97;&amp;"
    drawing = SVG % (b" " * (2**16 - len(SVG) + place) + own * 2000)
    checked(tmp_path_factory.mktemp("svg"), drawing, "a.svg")
