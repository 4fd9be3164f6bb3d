"""A model file is whole by its own structure, and no web page is taken for one."""

import io
import itertools
import json
import os
import pickle
import random
import struct
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_guarded.guard.templates.weights import find_fault

PAGE = (
    b"<!DOCTYPE html>\n<html><head><title>Access denied</title></head><body>" + b"<p>x</p>" * 2000 + b"</body></html>"
)
TEXTS = {
    "page": PAGE,
    "page after blanks": b"\r\n\r\n  " + PAGE,
    "page with a mark": b"\xef\xbb\xbf" + PAGE,
    "json": b'{"error": "Invalid credentials in Authorization header"}',
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 6938040682\n",
    "words": "Доступ запрещён. ".encode() * 300,
}
SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".sft", ".gguf", ".onnx", ".task", ".npz", "")
_names = itertools.count()


def noise(size):
    return random.Random(size).randbytes(size)


def safetensors(size=2000):
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + noise(size)


def torch_archive(size=2000):
    """As `torch.save` writes it: stored, the pickle first."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": 1}, 2))
        archive.writestr("archive/data/0", noise(size))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def field(number, content):
    if isinstance(content, int):
        return bytes([number << 3, content])
    length, head = len(content), bytearray([number << 3 | 2])
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes([*head, length]) + content


def onnx(size=2000):
    return field(1, 8) + field(2, b"pytorch") + field(7, noise(size)) + field(8, field(2, 17))


def gguf_text(text):
    return struct.pack("<Q", len(text)) + text


def gguf(size=3000):
    """As llama.cpp's gguf.md lays it out: entries, tensors, their bytes."""
    entries = [
        gguf_text(b"general.architecture") + struct.pack("<I", 8) + gguf_text(b"flux"),
        gguf_text(b"general.alignment") + struct.pack("<II", 4, 64),
        gguf_text(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + gguf_text(b"a") + gguf_text(b"b"),
        gguf_text(b"scores") + struct.pack("<IIQ2f", 9, 6, 2, 0.5, 0.5),
    ]
    places = [0, size]
    tensors = [gguf_text(b"w%d" % place) + struct.pack("<IQIQ", 1, size, 24, place) for place in places]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries + tensors)
    return head + bytes(-len(head) % 64) + noise(2 * size)


WHOLE = {
    ".safetensors": safetensors(),
    ".sft": safetensors(10),
    ".ckpt": torch_archive(),
    ".pt": torch_archive(10),
    ".pth": b"\x80\x02" + pickle.dumps({"w": noise(500)}, 2)[2:],
    ".bin": torch_archive(),
    ".gguf": gguf(),
    ".onnx": onnx(),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Write a file, and look at it as one of that many megabytes."""
    folder = tmp_path_factory.mktemp("models")

    def look(suffix, data, size_mb=1):
        path = folder / f"{next(_names)}{suffix}"
        path.write_bytes(data)
        try:
            return find_fault(path, size_mb)
        finally:
            path.unlink()

    return look


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_is_no_model_of_whatever_size_and_name(place, suffix, kind):
    text = TEXTS[kind]
    assert place(suffix, text) is not None
    assert place(suffix, text * (2_200_000 // len(text)), 2) is not None


@pytest.mark.parametrize("suffix", WHOLE)
def test_a_whole_one_is_whole_and_one_of_another_kind_is_not(place, suffix):
    assert place(suffix, WHOLE[suffix]) is None
    for other, data in WHOLE.items():
        kinds = [{".safetensors", ".sft"}, {".ckpt", ".pt", ".pth", ".bin"}, {".gguf"}, {".onnx"}]
        if not any({suffix, other} <= kind for kind in kinds):
            assert place(suffix, data) is not None, other


@settings(max_examples=120, deadline=None)
@given(st.sampled_from([".safetensors", ".ckpt", ".bin", ".pt", ".onnx", ".sft"]), st.floats(0, 0.9999))
def test_one_that_is_cut_anywhere_is_not_ready(place, suffix, share):
    data = WHOLE[suffix]
    assert place(suffix, data[: int(len(data) * share)]) is not None


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SUFFIXES)), st.binary(max_size=200))
def test_no_content_raises(place, suffix, data):
    place(suffix, data)
    for head in (b"PK\3\4", b"GGUF", b"\x08\x07", b"\x80\x02", b"\x10\0\0\0\0\0\0\0{", b"PK\5\6" + bytes(18)):
        place(suffix, head + data)


def test_what_says_nothing_of_its_length_goes_by_the_manifests(place):
    assert place(".gguf", WHOLE[".gguf"], 7) == "has 0 of about 7 MB; the download seems to have broken off"
    assert place(".pth", WHOLE[".pth"], 7) is not None
    assert place(".ckpt", torch_archive(1_500_000), 7) is None, "an archive is as long as its directory says"
    assert place(".yaml", b"model: x\n") is None


def test_bytes_behind_the_end_are_a_fault_of_safetensors(place):
    assert "behind its end" in place(".safetensors", safetensors() + b"\0")


def test_a_gguf_of_which_the_last_tensor_is_missing_has_broken_off(place):
    data = gguf(2_000_000)
    assert place(".gguf", data, 4) is None
    assert "has broken off" in place(".gguf", data[:1_900_000], 1)
    assert "no GGUF" in place(".gguf", b"GGUF\3\0\0\0" + noise(4_000_000), 4)


def test_what_is_no_file_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").mkdir()
    assert find_fault(tmp_path / "a.safetensors", 1) == find_fault(tmp_path / "b.safetensors", 1) == "is no file"
    (tmp_path / "c.safetensors").symlink_to(tmp_path / "nothing")
    assert find_fault(tmp_path / "c.safetensors", 1) is not None
