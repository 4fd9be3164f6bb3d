"""Turn frames of sound into arrays: the one place that does, as PyAV's own way may end the process."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: PyAV takes a frame's planes to end where a pointer is null, and libav's own array ends behind the eighth: of more
#: channels with a plane each it reads on in memory that is not the frame's (`planes` in PyAV 18's `audio/frame.py`).
MOST_PLANES = 7
#: So many samples of a sound, of all channels together, are decoded before there is a job: 15 minutes in stereo.
MOST_DECODED = 48_000 * 900 * 2


def read_samples(frame: Any) -> NDArray[Any]:
    """A frame's samples as channels × samples, in the type that its decoder gives.

    Raises what libav or PyAV raises for samples that they cannot convert, as those of 64 bits.
    """
    channels = int(frame.layout.nb_channels)
    if frame.format.is_planar and channels > MOST_PLANES:
        return np.concatenate([_unpack(part, channels) for part in _pack(frame)], axis=1)
    if not frame.format.is_planar:
        return _unpack(frame, channels)
    samples: NDArray[Any] = frame.to_ndarray()
    return samples


def _pack(frame: Any) -> list[Any]:
    """The same with the channels in one plane by turns. The rate stays, so libav keeps nothing back."""
    import av  # heavy: only when there is a sound to look at

    packed: list[Any] = av.AudioResampler(format=frame.format.packed.name).resample(frame)
    return packed


def _unpack(frame: Any, channels: int) -> NDArray[Any]:
    samples: NDArray[Any] = frame.to_ndarray()
    apart: NDArray[Any] = samples.reshape(-1, channels).T
    return apart
