"""A sound counts as what its loader makes of it, whatever its header says."""

import io
import struct
import zlib

import av
import numpy as np
import pytest
from policy.test_loaded import film, opened, tone  # noqa: F401
from unit.fakes import settings

from comfyui_guarded.guard.cost.values import Media
from comfyui_guarded.guard.errors import (
    BadAudioError,
    BadImageError,
    BadVideoError,
    PolicyViolationError,
    ServerUnavailableError,
)
from comfyui_guarded.guard.faces import sounds
from comfyui_guarded.guard.faces.films import HEAD_BYTES, look_at_film, sniff_more
from comfyui_guarded.guard.graph import Declared
from comfyui_guarded.guard.results import apart
from comfyui_guarded.guard.results.containers import BrokenFileError
from comfyui_guarded.guard.submit.policy import Policy

RATE, BLOCK = 192_000, 65_535
DECLARED = {
    "LoadAudio": Declared({"audio": "COMBO"}, (("AUDIO", "AUDIO"),)),
    "VHS_LoadAudioUpload": Declared(
        {"audio": "COMBO", "start_time": "FLOAT", "duration": "FLOAT"}, (("AUDIO", "audio"), ("FLOAT", "duration"))
    ),
    "LoadVideo": Declared({"file": "COMBO"}, (("VIDEO", "VIDEO"),)),
    "GetVideoComponents": Declared({"video": "VIDEO"}, (("IMAGE", "images"), ("AUDIO", "audio"), ("FLOAT", "fps"))),
    "TrimAudioDuration": Declared(
        {"audio": "AUDIO", "start_index": "FLOAT", "duration": "FLOAT"}, (("AUDIO", "AUDIO"),)
    ),
    "EmptyAudio": Declared({"duration": "FLOAT", "sample_rate": "INT", "channels": "INT"}, (("AUDIO", "AUDIO"),)),
    "AudioAdjustVolume": Declared({"audio": "AUDIO", "volume": "INT"}, (("AUDIO", "AUDIO"),)),
    "VAEEncodeAudio": Declared({"audio": "AUDIO", "vae": "VAE"}, (("LATENT", "LATENT"),)),
    "VAEDecodeAudio": Declared({"samples": "LATENT", "vae": "VAE"}, (("AUDIO", "AUDIO"),)),
    "EmptyLatentAudio": Declared({"seconds": "FLOAT", "batch_size": "INT"}, (("LATENT", "LATENT"),)),
    "KSampler": Declared({"latent_image": "LATENT", "steps": "INT"}, (("LATENT", "LATENT"),)),
    "PreviewAudio": Declared({"audio": "AUDIO"}, ()),
}


def check(graph, media=None):
    policy = Policy(settings(policy={"profile": "a5000"}).policy, describe=lambda kind: DECLARED.get(kind, Declared()))
    policy.check(graph, media or {})


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def silence(seconds, *, said=True, form="flac", rate=RATE):
    """FLAC, of which 65,535 samples take 14 bytes; with `form="matroska"` all its packets are of one moment."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream("flac", rate=rate)
        stream.codec_context.layout = "stereo"
        stream.codec_context.options = {"compression_level": "0"}
        stream.codec_context.open()
        block = stream.codec_context.frame_size
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * block), np.int16), "s16", "stereo")
        frame.sample_rate = rate
        for at in range(seconds * rate // block + 1):
            frame.pts = at * block
            for packet in stream.encode(frame):
                if form == "matroska":
                    packet.pts = packet.dts = 0
                    packet.duration = 1
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    data = bytearray(buffer.getvalue())
    if not said:
        at = data.find(b"fLaC") + 8
        data[at + 13] &= 0xF0
        data[at + 14 : at + 18] = bytes(4)
    return bytes(data)


def wav(rate, samples=b"\1\2" * 8000, form=1, bits=16):
    head = struct.pack("<HHIIHH", form, 1, rate, min(rate * bits // 8, 2**32 - 1), bits // 8, bits)
    chunks = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


@pytest.fixture
def decoded(monkeypatch):
    """Less is decoded than usual, so that shorter sounds are long ones."""
    monkeypatch.setattr(sounds, "_MOST_DECODED", 4_000_000)


@pytest.mark.usefixtures("decoded")
@pytest.mark.parametrize("class_type", ["LoadAudio", "VHS_LoadAudio"])
@pytest.mark.parametrize("said", [True, False])
def test_a_sound_lasts_as_long_as_what_is_decoded(opened, class_type, said):  # noqa: F811
    data = silence(50, said=said)
    assert len(data) < 100_000
    media = opened(class_type, data)
    assert media.seconds == pytest.approx(50, rel=0.03)
    assert media.samples == pytest.approx(50 * RATE * 2, rel=0.03)


@pytest.mark.usefixtures("decoded")
def test_times_of_packets_are_not_believed(opened):  # noqa: F811
    media = opened("LoadAudio", silence(50, form="matroska"))
    assert media.samples >= 50 * RATE * 2


@pytest.mark.parametrize("rate", [0, 1, 2_000_000_000])
@pytest.mark.parametrize("class_type", ["LoadAudio", "VHS_LoadAudio"])
def test_a_rate_that_no_sound_has_is_refused(opened, class_type, rate):  # noqa: F811
    assert opened(class_type, wav(8000)).seconds == 1
    with pytest.raises(BadAudioError):
        opened(class_type, wav(rate))


@pytest.mark.parametrize("class_type", ["LoadAudio", "VHS_LoadAudio"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, -2e6])
def test_samples_that_are_no_numbers_or_no_levels_are_refused(opened, class_type, value):  # noqa: F811
    samples = np.full(8000, 20, np.float32)  # 26 dB too loud
    assert opened(class_type, wav(8000, samples.tobytes(), 3, 32)).seconds == 1
    samples[4000] = value
    with pytest.raises(BadAudioError):
        opened(class_type, wav(8000, samples.tobytes(), 3, 32))


BOMB = Media(seconds=1500, samples=1500 * RATE * 2)
SONG = Media(seconds=300, samples=300 * 44_100 * 2)


@pytest.mark.parametrize("class_type", ["LoadAudio", "VHS_LoadAudioUpload"])
def test_a_sound_that_takes_gigabytes_is_refused_though_it_is_cut(class_type):
    graph = {
        "1": node(class_type, audio="x.flac"),
        "2": node("TrimAudioDuration", audio=["1", 0], start_index=0, duration=1),
        "3": node("PreviewAudio", audio=["2", 0]),
    }
    check(graph, {"1": SONG})
    for bomb in (BOMB, Media(seconds=1e18, samples=1e18), Media(seconds=88_200, samples=88_200)):
        with pytest.raises(PolicyViolationError):
            check(graph, {"1": bomb})


def test_a_loader_that_takes_a_part_takes_no_more():
    graph = {"1": node("VHS_LoadAudioUpload", audio="x.flac", start_time=0, duration=30)}
    check(graph, {"1": BOMB})


def test_a_part_of_a_song_may_be_worked_on():
    graph = {
        "1": node("LoadAudio", audio="x.flac"),
        "2": node("TrimAudioDuration", audio=["1", 0], start_index=0, duration=20),
        "3": node("VAEEncodeAudio", audio=["2", 0]),
        "4": node("KSampler", latent_image=["3", 0], steps=20),
    }
    check(graph, {"1": SONG})
    graph["3"] = node("VAEEncodeAudio", audio=["1", 0])
    with pytest.raises(PolicyViolationError):
        check(graph, {"1": SONG})


def test_a_film_with_a_long_sound_counts_as_much():
    graph = {"1": node("LoadVideo", file="x.mkv"), "2": node("GetVideoComponents", video=["1", 0])}
    check(graph, {"1": Media(64, 64, 24, 1, 24, 96_000)})
    check({"1": graph["1"]}, {"1": Media(64, 64, 24, 1, 24, 4e9)})
    with pytest.raises(PolicyViolationError):
        check(graph, {"1": Media(64, 64, 24, 1, 24, 4e9)})


@pytest.mark.parametrize(("count", "passes"), [(100, False), (30, True)])
@pytest.mark.parametrize("chained", [True, False])
def test_the_sounds_of_all_nodes_count_together(count, passes, chained):
    made = node("EmptyAudio", duration=240, sample_rate=RATE, channels=2)
    graph = {str(at): made for at in range(1 if chained else count)}
    if chained:
        graph |= {str(at): node("AudioAdjustVolume", audio=[str(at - 1), 0], volume=1) for at in range(1, count)}
    if passes:
        check(graph)
        return
    with pytest.raises(PolicyViolationError) as caught:
        check(graph)
    assert caught.value.details == "policy.max_film_pixels"


def test_the_sounds_of_decoded_latents_count_as_well():
    graph = {"0": node("EmptyLatentAudio", seconds=240, batch_size=1)}
    graph |= {str(at): node("VAEDecodeAudio", samples=["0", 0]) for at in range(1, 400)}
    with pytest.raises(PolicyViolationError):
        check(graph)


def test_the_sound_of_a_film_is_counted_at_its_door(opened):  # noqa: F811
    assert opened("LoadVideo", film(sound=True)).samples == pytest.approx(44_100 * 2, rel=0.1)
    assert opened("VHS_LoadVideo", film(sound=True)).samples == pytest.approx(44_100 * 2, rel=0.1)
    assert opened("LoadAudio", tone(2)).samples == 16_000


def many(channels, codec, form):
    """Sound of so many channels, in a film where the container is one of films."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        voice = container.add_stream(codec, rate=48_000, layout={6: "5.1", 7: "6.1", 8: "7.1"}[channels])
        voice.codec_context.open()
        seen = container.add_stream("mpeg4", rate=12) if form == "mov" else None
        if seen is not None:
            seen.width, seen.height, seen.pix_fmt = 64, 48, "yuv420p"
            container.mux(seen.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8))))
            container.mux(seen.encode())
        wanted = voice.codec_context
        resampler = av.AudioResampler(wanted.format, wanted.layout, 48_000, wanted.frame_size or None)
        frame = av.AudioFrame.from_ndarray(np.full((1, 9600 * channels), 3000, np.int16), "s16", wanted.layout)
        frame.sample_rate = 48_000
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(voice.encode(part))
        container.mux(voice.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("class_type", "codec", "form", "most"),
    [
        ("LoadAudio", "aac", "ipod", 7),
        ("LoadAudio", "libopus", "ogg", 7),
        ("LoadAudio", "pcm_s16le", "wav", 8),  # whose channels lie in one plane
        ("LoadVideo", "aac", "mov", 7),
        ("LoadVideo", "pcm_s16le", "mov", 7),  # which get one each
        ("LoadImageByLibav", "aac", "mov", 7),
        ("GuardedLoadSound", "aac", "mov", 8),
        ("GuardedLoadSound", "aac", "ipod", 8),
        ("VHS_LoadVideo", "aac", "mov", 8),
    ],
)
def test_a_sound_of_more_channels_than_its_loader_lives_through_is_refused(opened, class_type, codec, form, most):  # noqa: F811
    for channels in (6, 7, 8):
        if channels <= most:
            opened(class_type, many(channels, codec, form))
        else:
            with pytest.raises((BadAudioError, BadImageError, BadVideoError)):
                opened(class_type, many(channels, codec, form))


def caf(labels):
    """A sound of 16 bits whose channels have these labels of Core Audio (1 left, 2 right, ...), in this order."""
    samples = (np.sin(np.arange(9600 * len(labels)) / 20) * 9000).astype("<i2").tobytes()
    described = struct.pack(">d4sIIIII", 48_000.0, b"lpcm", 2, 2 * len(labels), 1, len(labels), 16)
    order = struct.pack(">III", 0, 0, len(labels)) + b"".join(
        struct.pack(">II", label, 0) + bytes(12) for label in labels
    )
    chunks = ((b"desc", described), (b"chan", order), (b"data", bytes(4) + samples))
    return b"caff\0\1\0\0" + b"".join(name + struct.pack(">q", len(data)) + data for name, data in chunks)


@pytest.mark.parametrize("class_type", ["LoadAudio", "GuardedLoadSound", "VHS_LoadVideo"])
@pytest.mark.parametrize("labels", [[2, 1], [3, 1, 2], [6, 5, 4, 3, 2, 1]])
def test_a_sound_that_ends_whoever_asks_for_its_channels_ends_not_the_server(opened, class_type, labels):  # noqa: F811
    """PyAV 18 frees the order of the channels twice, if it is one of the file's own."""
    with pytest.raises((BadAudioError, BadVideoError)) as refused:
        opened(class_type, caf(labels))
    assert "ends the process that reads it" in refused.value.details


def test_the_same_sound_in_the_usual_order_is_heard(opened):  # noqa: F811
    opened("LoadAudio", caf([1, 2]))


@pytest.mark.parametrize(
    ("code", "error", "why"),
    [
        ("while True: pass", BrokenFileError, "too long"),
        ("import sys; sys.exit(3)", BrokenFileError, "three hours"),
        ("import os; os.kill(os.getpid(), 9)", ServerUnavailableError, "now"),
        ("import this_is_not_there", ServerUnavailableError, "now"),
    ],
)
def test_a_child_that_says_nothing_of_the_sound_is_not_taken_for_its_fault(monkeypatch, tmp_path, code, error, why):
    monkeypatch.setattr(apart, "LONGEST_S", 5)
    monkeypatch.setattr(apart, "_HEAR", code)
    path = tmp_path / "sound.caf"
    path.write_bytes(caf([1, 2]))
    with path.open("rb") as handle, pytest.raises(error, match=why):
        look_at_film(handle, sniff_more(path.read_bytes()[:HEAD_BYTES]), "audio", "libav")


def titled(count):
    """A second of FLAC with so many titles, of which libav compares each with all before."""
    data = silence(1)
    titles = [b"T%d=x" % at for at in range(count)]
    comment = struct.pack("<I", 0) + struct.pack("<I", count) + b"".join(struct.pack("<I", len(t)) + t for t in titles)
    assert data[:4] == b"fLaC"
    assert data[4] == 0, "the first block is the one of the stream"
    return data[:42] + struct.pack(">I", 0x04000000 | len(comment)) + comment + data[42:]


@pytest.mark.parametrize("class_type", ["LoadAudio", "VHS_LoadAudio"])
def test_a_sound_that_takes_for_ever_to_open_is_refused(monkeypatch, opened, class_type):  # noqa: F811
    monkeypatch.setattr(apart, "_HEAR", apart._HEAR.replace(f"allow({apart.OPENED_WITHIN_S})", "allow(1)"))
    opened(class_type, titled(100))
    with pytest.raises(BadAudioError) as refused:
        opened(class_type, titled(50_000))
    assert "takes too long" in refused.value.details


def covered(pictures):
    """A second of FLAC with pictures in it, which libav decodes as it opens the file."""
    data = silence(1)
    blocks = b""
    for at, picture in enumerate(pictures):
        text = struct.pack(">II", at, 9) + b"image/png" + struct.pack(">IIIIII", 0, 0, 0, 0, 0, len(picture))
        blocks += struct.pack(">I", 0x06000000 | len(text + picture)) + text + picture
    return data[:42] + blocks + data[42:]


def test_a_sound_whose_covers_take_gigabytes_is_refused(monkeypatch, opened):  # noqa: F811
    monkeypatch.setattr(apart, "_HEAR", apart._HEAR.replace(str(apart.MOST_MEMORY), str(512 << 20)))
    side, chunks = 3000, zlib.compressobj(1)
    row = bytes(1 + 8 * side)
    pixels = b"".join(chunks.compress(row) for _ in range(side)) + chunks.flush()
    parts = (b"IHDR", struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b"")
    head = b"\x89PNG\r\n\x1a\n"
    large = head + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    of_this_process = np.ones(600 << 20, np.uint8)  # which is as large as ComfyUI with a model
    opened("LoadAudio", covered([large]))
    del of_this_process
    with pytest.raises(BadAudioError) as refused:
        opened("LoadAudio", covered([large] * 9))
    assert "too much memory" in refused.value.details


def test_a_sound_is_heard_to_its_end(monkeypatch, opened):  # noqa: F811
    """What changes behind what is decoded here would still end the loader."""
    monkeypatch.setattr(apart, "_HEAR", apart._HEAR.replace(str(apart.MOST_SAMPLES), "1000"))
    with pytest.raises(BadAudioError) as refused:
        opened("LoadAudio", caf([1, 2]))
    assert "three hours" in refused.value.details
