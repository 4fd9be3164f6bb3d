"""Files that are made to hang, exhaust or crash the checks; and what happens when time runs out."""

import contextlib
import io
import os
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from contract.client import PATIENCE_S
from results import corpus, pictures
from results.checking import DEFAULTS, check, outcome, refusal

from comfyui_guarded.guard.errors import (
    ResultBlankError,
    ResultCorruptError,
    ResultIncompleteError,
    ResultTooSmallError,
)
from comfyui_guarded.guard.results import checks
from comfyui_guarded.guard.results.budget import Budget, BudgetFile
from comfyui_guarded.guard.results.containers import sniff
from comfyui_guarded.guard.results.within import run_within

VERDICTS = (ResultBlankError, ResultCorruptError, ResultIncompleteError, ResultTooSmallError)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.per_look_s = 0.0

    def __call__(self) -> float:
        self.now_s += self.per_look_s
        return self.now_s


@contextlib.contextmanager
def works_at_most(seconds: float) -> Iterator[None]:
    """By the processor time of all threads of this process, which other processes do not change."""
    began_s = time.process_time()
    yield
    assert time.process_time() - began_s < seconds


def small_film(frames: int = 100, **options: str) -> bytes:
    return corpus.film(pictures.pan(pictures.landscape(128), frames), **options)


SEEDS = {
    ".png": lambda: corpus.image(pictures.landscape(64), "PNG"),
    ".jpg": lambda: corpus.image(pictures.landscape(64), "JPEG", quality=95),
    ".webp": lambda: corpus.image(pictures.landscape(64), "WEBP", quality=95),
    ".gif": lambda: corpus.moving(pictures.pan(pictures.landscape(64), 4), "GIF"),
    ".mp4": lambda: small_film(50),
    ".webm": lambda: corpus.film(pictures.pan(pictures.landscape(128), 50), "webm", "libvpx-vp9", crf="15", b="0"),
    ".wav": lambda: corpus.wav(corpus.tone(0.2)),
    ".ogg": lambda: corpus.sound(corpus.tone(0.5), "ogg", "libopus"),
    ".flac": lambda: corpus.sound(corpus.tone(0.5), "flac", "flac"),
    ".mp3": lambda: corpus.sound(corpus.tone(0.5), "mp3", "libmp3lame"),
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("suffix", SEEDS)
def test_damaged_at_random_it_gets_a_verdict_and_nothing_else(suffix: str, tmp_path: Path):
    content = bytearray(SEEDS[suffix]())
    random = np.random.default_rng(len(suffix) + 11)
    path = tmp_path / f"x{suffix}"
    settings = DEFAULTS.model_copy(update={"min_video_bytes": 1, "min_image_bytes": 1, "check_timeout_s": 5})
    for _ in range(60):
        damaged = bytearray(content)
        # Half of the hits go into the header, where sizes and counts are.
        for place in random.integers(0, len(content), 3).tolist() + random.integers(0, 400, 3).tolist():
            damaged[place % len(content)] = int(random.integers(0, 256))
        path.write_bytes(damaged)
        with works_at_most(5), contextlib.suppress(*VERDICTS):
            check(path, settings)


@pytest.mark.parametrize(
    "content",
    [
        b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xfe" + bytes(20000),
        b"\x1a\x45\xdf\xa3\x84abcd\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" + bytes(20000),
        b"\0\0\0\x18ftypisom" + bytes(20000),
        b"\0\0\0\x10ftypisom\0\0\0\0" + struct.pack(">I", 8) * 5000,
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0" + b"!\xfe\x01a" * 10000,
        b"GIF89a"
        + struct.pack("<HH", 65535, 65535)
        + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0;"
        + bytes(2000),
        b"\xff\xd8" + b"\xff\xe1\0\x02" * 20000,
        b"\x89PNG\r\n\x1a\n" + (struct.pack(">I", 0) + b"teXt" + struct.pack(">I", 0)) * 2000,
        b"OggS" + bytes(20000),
        b"RIFF\xff\xff\xff\xffWAVEfmt \xff\xff\xff\xff" + bytes(2000),
        b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(20000),
        b"fLaC\x80\xff\xff\xff" + bytes(20000),
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n" * 500,
    ],
    ids=lambda content: f"{content[:8]!r}",
)
def test_made_up_files_are_refused_at_once(content: bytes, tmp_path: Path):
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with works_at_most(3):
        assert refusal(path).code in ("result_corrupt", "result_too_small")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path):
    path = tmp_path / "x.png"
    path.write_bytes(corpus.bomb())
    tracemalloc.start()
    assert "60000" in refusal(path).details
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


def test_a_large_picture_is_no_bomb_whatever_pillow_thinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    path = tmp_path / "x.png"
    path.write_bytes(corpus.image(pictures.landscape(128), "PNG"))
    check(path)
    assert refusal(path, DEFAULTS.model_copy(update={"max_image_pixels": 128 * 128 - 1})).code == "result_corrupt"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hold_anybody_up(tmp_path: Path):
    path = tmp_path / "x.png"
    os.mkfifo(path)
    assert refusal(path).code == "result_missing"


def test_a_folder_is_no_file(tmp_path: Path):
    (tmp_path / "x.png").mkdir()
    assert refusal(tmp_path / "x.png").code == "result_missing"


def test_a_long_film_is_sampled_and_passes(tmp_path: Path):
    path = tmp_path / "x.mp4"
    path.write_bytes(small_film(300, g="25"))
    settings = DEFAULTS.model_copy(update={"max_decoded_pixels": 40 * 128 * 128})
    artifact = check(path, settings)
    assert "partly_checked" in artifact.warnings
    assert (artifact.frames, artifact.duration_s) == (300, 12)


def test_what_is_sampled_is_still_looked_at(tmp_path: Path):
    """The decoded part moves; the rest is black, and the key frames there say so."""
    path = tmp_path / "x.mp4"
    frames = (
        frame if index < 20 else frame * 0 for index, frame in enumerate(pictures.pan(pictures.landscape(128), 400))
    )
    path.write_bytes(corpus.film(frames, g="25", crf="10"))
    settings = DEFAULTS.model_copy(update={"max_decoded_pixels": 10 * 128 * 128, "max_blank_share": 0.4})
    assert refusal(path, settings).code == "result_blank"


def test_a_long_animation_is_sampled_and_passes(tmp_path: Path):
    path = tmp_path / "x.gif"
    path.write_bytes(SEEDS[".gif"]())
    artifact = check(path, DEFAULTS.model_copy(update={"max_decoded_pixels": 2 * 64 * 64}))
    assert artifact.warnings == ("partly_checked",)
    assert artifact.frames == 4


def test_many_pictures_on_a_slow_machine_pass_with_a_warning(tmp_path: Path):
    """Half of the time gone, the rest are walked through and hashed, but not decoded."""
    clock = Clock()
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(corpus.image(pictures.landscape(64, number), "PNG"))
    clock.per_look_s = DEFAULTS.check_timeout_s * 0.006
    found = checks.check(outcome(*paths), DEFAULTS, Budget(DEFAULTS, clock))
    assert (found[0].warnings, found[-1].warnings) == ((), ("partly_checked",))


def test_with_the_time_gone_nothing_more_is_read():
    clock = Clock()
    budget = Budget(DEFAULTS, clock)
    file = BudgetFile(io.BytesIO(b"abc"), budget)
    assert file.read(1) == b"a"
    clock.now_s = DEFAULTS.check_timeout_s * 0.95
    with pytest.raises(ResultCorruptError, match="could not be checked within"):
        file.read(1)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".png", ".mp3"])
def test_a_disk_that_stalls_ends_the_checks_and_their_thread(suffix: str, tmp_path: Path):
    """Every read takes a while: once the checks have had their time, none follows, and their thread ends."""
    content = SEEDS[suffix]() * (1 if suffix != ".mp3" else 20)
    settings = DEFAULTS.model_copy(update={"check_timeout_s": 0.5})
    kind = sniff(content[:64])

    reads = 0

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal reads
            reads += 1
            time.sleep(0.2)
            return super().read(min(size or 0, 300) if size and size > 0 else 300)

    def check() -> None:
        run_within(0.5, lambda: checks.inspect(Slow(content), kind, len(content), settings, Budget(settings)))

    before = set(threading.enumerate())
    with (
        ThreadPoolExecutor(1) as one,
        pytest.raises(Exception, match=r"within|cut off|EOF|ended|Invalid|truncated|broken|missing"),
    ):
        one.submit(check).result()
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert reads <= 4, "0.5 s of them, and the one that was under way"


def test_memory_does_not_grow_with_the_frames_of_a_film(tmp_path: Path):
    """Python's side; benchmarks/validate.py measures the whole process."""
    peaks = []
    for frames in (50, 500):
        path = tmp_path / "x.mp4"
        path.write_bytes(small_film(frames))
        tracemalloc.start()
        check(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5 + 200_000
