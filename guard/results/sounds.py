"""Read the sound of a film, where it has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .containers import sniff
from .film_files import open_container
from .samples import read_samples

#: Bytes from a file's head that tell its kind.
_HEAD = 64
_MOST_CHANNELS = 2


def read_sound(path: Path, longest_s: float) -> tuple[NDArray[np.float32], int] | None:
    """The first sound track as channels × samples in -1..1 and its rate, up to that length; None where there is none.

    More than two channels are mixed to two: nodes that save sounds make noise of them.
    What is damaged ends where the damage begins. Raises OSError where the file cannot be opened.
    """
    import av  # heavy: only when there is a sound to look at

    with open(path, "rb") as file:
        kind = sniff(file.read(_HEAD))
        file.seek(0)
        if kind is None or kind.name == "image":
            return None
        pieces: list[NDArray[np.float32]] = []
        heard, rate = 0, 0
        try:
            with open_container(file, kind) as container:
                track = next((each for each in container.streams.audio if each.codec_context is not None), None)
                if track is None:
                    return None
                rate = int(track.rate)
                resampler = None
                for frame in container.decode(track):
                    if resampler is None:
                        resampler, parts = _begin_to_resample(track, frame)
                    else:
                        parts = resampler.resample(frame)
                    for part in parts:
                        pieces.append(_mix(read_samples(part)))
                        heard += pieces[-1].shape[1]
                    if heard >= longest_s * rate:
                        break
        except (av.FFmpegError, ValueError):  # ValueError: from here on it has another rate or other channels
            if not pieces:
                return None
    return (np.concatenate(pieces, axis=1)[:, : int(longest_s * rate)], rate) if heard else None


def _begin_to_resample(track: Any, frame: Any) -> tuple[Any, list[Any]]:
    """A resampler for the track, and what it makes of the first frame. Raises what libav does."""
    import av

    layouts = ["stereo", track.layout] if track.layout.nb_channels > _MOST_CHANNELS else [track.layout]
    while True:
        resampler = av.AudioResampler(format="flt", layout=layouts.pop(0), rate=int(track.rate))
        try:
            return resampler, list(resampler.resample(frame))
        except (av.FFmpegError, ValueError):
            if not layouts:  # those whose order it does not know it does not mix
                raise


def _mix(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    if len(samples) <= _MOST_CHANNELS:
        return samples
    return np.repeat(samples.mean(axis=0, keepdims=True), _MOST_CHANNELS, axis=0)
