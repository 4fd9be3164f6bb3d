"""Read the sound of a film, where it has one."""

from __future__ import annotations

from pathlib import Path

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
                layout = track.layout if track.layout.nb_channels <= _MOST_CHANNELS else "stereo"
                resampler = av.AudioResampler(format="flt", layout=layout, rate=rate)
                for frame in container.decode(track):
                    for part in resampler.resample(frame):
                        pieces.append(read_samples(part))
                        heard += pieces[-1].shape[1]
                    if heard >= longest_s * rate:
                        break
        except (av.FFmpegError, ValueError):  # ValueError: from here on it has another rate or other channels
            if not pieces:
                return None
    return (np.concatenate(pieces, axis=1)[:, : int(longest_s * rate)], rate) if heard else None
