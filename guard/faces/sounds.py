"""Count what a sound holds, as its loader will decode it: of a megabyte of silence a header may say anything.

A quarter of an hour is decoded. Behind that counts what each packet says that it holds, or no less than the longest
before it, in formats whose packets are about alike. Of others nobody knows how long they are.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cost.ranges import ENDLESS
from ..results.samples import MOST_DECODED, read_samples

_MOST_DECODED = MOST_DECODED
#: What sounds have: below is no voice, above nothing that any encoder takes.
LEAST_RATE, MOST_RATE = 1_000, 768_000
#: Of full scale; 120 dB above it, which no sound has. From 1e8 on libav's AAC encoder was seen not to come back.
MOST_LEVEL = 1e6
#: Decoders that give floating-point samples as they stand in the file.
_FLOATING = ("pcm_f", "wavpack")
#: Decoders of formats whose packets hold about as much each, however many bytes they have.
_EVEN = re.compile(r"(?:lib)?(?:aac|mp[123]|opus|vorbis|e?ac3|amr|opencore_amr|wma)", re.ASCII)
_PCM = re.compile(r"pcm_[a-z]*(\d*)", re.ASCII)
_FLAC_SHORT, _FLAC_LONG = 6, 7


class UnfitError(Exception):
    """The file has not what its loader reads; the message ends a sentence about it."""


def check_rate(sound: Any) -> None:
    """Raises UnfitError where its header says what no sound has."""
    rate = sound.codec_context.sample_rate or 0
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise UnfitError(f"its header says {rate} samples a second; {LEAST_RATE} to {MOST_RATE} can be")


class Counter:
    """Takes the packets of one sound.

    Args:
        fails: its loader ends with the first packet that cannot be decoded, and so does this.

    Attributes:
        samples: of all channels together; `ENDLESS` where nobody knows.
        seconds: the same as time.
    """

    def __init__(self, sound: Any, *, fails: bool) -> None:
        self._context = sound.codec_context
        self._name = str(self._context.codec.name)
        self._fails = fails
        self._longest = 0.0
        self._form: tuple[str, int, str] | None = None
        self._left = _MOST_DECODED
        self.samples = self.seconds = 0.0

    def take(self, packet: Any) -> None:
        """Count it, decoded as long as little enough was.

        Raises:
            UnfitError: a sample is no number or no level, or, with `fails`, its loader ends with it.
            Exception: with `fails`, whatever libav raises.
        """
        if self._left <= 0:
            count = self._read(packet)
            if count:
                self.samples = min(self.samples + count, ENDLESS)
                per_second = max(self._context.sample_rate, 1) * max(self._context.layout.nb_channels, 1)
                self.seconds = ENDLESS if count >= ENDLESS else self.seconds + count / per_second
            return
        try:
            frames = packet.decode()
        except Exception:  # libav raises almost anything
            if self._fails:
                raise
            return
        found = 0
        for frame in frames:
            self._compare(frame)
            found += frame.samples * frame.layout.nb_channels
            self.seconds += frame.samples / max(frame.sample_rate, 1)
            if self._name.startswith(_FLOATING):
                _check_level(read_samples(frame))
        self.samples += found
        self._left -= found
        self._longest = max(self._longest, found)

    def _compare(self, frame: Any) -> None:
        form = frame.layout.name, frame.sample_rate, frame.format.name
        if self._fails and form != (self._form or form):
            raise UnfitError(
                "its sound changes its rate or its channels, which this server's loader cannot put together"
            )
        self._form = form

    def _read(self, packet: Any) -> float:
        """How many samples a packet holds that is not decoded, at most about."""
        if not packet.size:
            return 0
        if (pcm := _PCM.match(self._name)) is not None:
            return float(packet.size * 8 / max(int(pcm[1] or 8), 1))
        head = bytes(packet)[:32]
        if self._name == "flac":
            return _read_flac(head)
        if self._name == "wavpack" and head[:4] == b"wvpk":
            return float(int.from_bytes(head[20:24], "little") * max(self._context.layout.nb_channels, 1))
        return self._longest if _EVEN.match(self._name) else ENDLESS


def _check_level(samples: NDArray[Any]) -> None:
    if samples.dtype.kind != "f":
        return
    if not np.isfinite(samples).all():
        raise UnfitError("some of its samples are no numbers")
    if samples.size and np.abs(samples).max() > MOST_LEVEL:
        raise UnfitError(f"some of its samples are more than {MOST_LEVEL:g} times full scale")


def _read_flac(head: bytes) -> float:
    """The length of a frame and its channels, by its header (RFC 9639, 9.1)."""
    if len(head) < 6 or head[0] != 0xFF:
        return 0
    head = head.ljust(16, b"\0")
    code, channels = head[2] >> 4, (head[3] >> 4) + 1 if head[3] >> 4 < 8 else 2
    if code in (_FLAC_SHORT, _FLAC_LONG):
        at = 4 + max(8 - (head[4] ^ 0xFF).bit_length(), 1)
        length = head[at] + 1 if code == _FLAC_SHORT else int.from_bytes(head[at : at + 2], "big") + 1
    else:
        length = 192 if code == 1 else 576 << max(code - 2, 0) if code < _FLAC_SHORT else 256 << (code - 8)
    return length * channels
