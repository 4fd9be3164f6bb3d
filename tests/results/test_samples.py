"""Sounds of many channels are read, judged and played, and the process lives on: PyAV's own way ends it."""

import ast
import io
import struct
import subprocess
import sys

import av
import numpy as np
import pytest
from package.test_rooms import ROOT, python_files
from unit.fakes import settings

from comfyui_guarded.guard.errors import InternalError
from comfyui_guarded.guard.results import apart
from comfyui_guarded.guard.results.budget import Budget
from comfyui_guarded.guard.results.checks import inspect
from comfyui_guarded.guard.results.containers import BrokenFileError, sniff

#: Runs in a process of its own: where the promise is broken, no more than that one ends.
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import conftest, pathlib
import av, numpy as np
from comfyui_guarded.guard.results import film_files, samples, sounds

for channels in map(int, sys.argv[3:]):
    layout = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
    for form in ("s16", "s16p", "fltp", "s32p", "dbl", "dblp", "u8p"):
        packed = av.AudioFormat(form).packed.name
        for count in (1024, 1, 777, 2048):
            kind = av.audio.frame.format_dtypes[packed]
            wanted = (np.arange(channels * count).reshape(channels, count) % 120).astype(kind)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wanted.T.reshape(1, -1)), packed, layout)
            frame.sample_rate = 48000
            if form != packed:
                frame = av.AudioResampler(format=form).resample(frame)[0]
            found = samples.read_samples(frame)
            assert found.dtype == kind and np.array_equal(found, wanted), (form, count, found.shape)
            film_files.Loudness("aac").hear(frame)

    folder = pathlib.Path(sys.argv[2])
    for name, codec in (("a.wav", "pcm_s16le"), ("a.mka", "pcm_f32le")):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=48000, layout=layout)
            frame = av.AudioFrame.from_ndarray(np.full((1, channels * 4800), 3277, np.int16), "s16", layout)
            frame.sample_rate = 48000
            for part in (*av.AudioResampler(format=stream.format.name).resample(frame), None):
                container.mux(stream.encode(part))
        found, rate = sounds.read_sound(folder / name, 60)
        assert found.shape == (min(channels, 2), 4800), found.shape
        assert np.allclose(found, 0.1, atol=0.001) or (channels > 2 and np.isfinite(found).all()), found
"""


def test_sounds_of_any_number_of_channels_are_read_and_the_process_lives_on(tmp_path):
    given = [sys.executable, "-c", SCRIPT, str(ROOT / "tests"), str(tmp_path), *map(str, (1, 2, 6, 7, 8, 9, 16, 64))]
    ran = subprocess.run(given, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_samples_become_arrays_in_one_place_alone():
    """A frame of sound takes no `format` there, a picture does: all other calls name one."""
    found = []
    for name in python_files():
        if name.startswith("tests/") or name == "guard/results/samples.py":
            continue
        nodes = list(ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))))
        named = {id(each.func) for each in nodes if isinstance(each, ast.Call) and _names_format(each)}
        found += [
            (name, each.lineno)
            for each in nodes
            if isinstance(each, ast.Attribute) and each.attr == "to_ndarray" and id(each) not in named
        ]
    assert found == []


def _names_format(call: ast.Call) -> bool:
    return "format" in {each.arg for each in call.keywords}


def six_channels():
    """A film's sound in the usual order, and the same in Apple's: C, L, R, ... PyAV 18 frees that order twice."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as container:
        container.metadata["title"] = "titled"
        sound = container.add_stream("pcm_s16le", rate=48_000, layout="5.1")
        waves = (np.sin(np.arange(6 * 48_000) / 20) * 9000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(waves.reshape(1, -1), "s16", "5.1")
        frame.sample_rate = 48_000
        for part in (frame, None):
            container.mux(sound.encode(part))
    usual = buffer.getvalue()
    at = usual.index(b"chan") + 8
    return usual, usual[:at] + struct.pack(">I", (122 << 16) | 6) + usual[at + 4 :]


def test_a_result_whose_channels_have_an_order_of_their_own_is_refused_and_ends_nothing(monkeypatch, tmp_path):
    results = settings().results
    usual, odd = six_channels()

    def look(data):
        with (tmp_path / "x.mov").open("w+b") as handle:
            handle.write(data)
            handle.flush()
            return inspect(handle, sniff(data[:32]), len(data), results, Budget(results))

    assert look(usual).duration_s == pytest.approx(1, abs=0.1)
    for each in (odd, odd.replace(b"titled", b"\xff" * 6)):
        with pytest.raises(BrokenFileError, match="ends the process"):
            look(each)
    monkeypatch.setattr(apart, "_HEAR", "import this_is_not_there")
    with pytest.raises(InternalError):
        look(odd)
