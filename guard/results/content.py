"""Check pixels: is there a picture at all, and does it move?

Levels are 0..255 throughout, whatever the source (float arrays in 0..1, 8 and 10 bit files). Every finding is named
and carries its measurement; the thresholds are settings (`results.*`), with their reasons in docs/results.md.

Arrays are frames × height × width × channels, float in 0..1: numpy's, or anything that has `.detach().cpu().numpy()`,
so a torch tensor is taken without importing torch. Nothing here copies a batch; allocations are at most as large as
one frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..settings import ResultsSettings
from .findings import Fault, Finding

Range = tuple[float, float]
Thumb = NDArray[np.float32]

#: A frame is compared with others as a grid of this many cells a side. A cell of a 512 pixel frame is 8 pixels wide:
#: coarse enough for a codec's noise to average out, fine enough for an eyelid to show.
THUMB_SIDE = 64
#: … and, for what moves as a whole, as a grid of this many blocks of cells a side.
_BLOCKS = 8
_CELL_NOISE = 5.0
#: Look at this many frames of a batch at most for movement and speckle, and at all of them for NaN and blankness.
SAMPLES = 64
#: Look first at a grid of this many points a side: if two of them differ, the frame is not blank.
_PROBES = 9

# Speckle of decoded NaN: pixels of exactly 0 between bright ones. A quarter of full scale keeps dark textures out;
# 32 pixels and 0.02 % keep out the eyes of pixel art, which come in ones and twos; and a channel of 16 levels or fewer
# is a dither or a palette, where isolated black is meant. Grain that is clipped at 0 leaves pixels just above 0, too:
# at least a quarter as many (Gaussian grain of 60 levels on a level of 40). NaN leaves none.
_SPECKLE_NEIGHBOUR = 0.25
_SPECKLE_PIXELS = 32
_SPECKLE_SHARE = 0.0002
_SPECKLE_LEVELS = 16
_SPECKLE_NEAR = 16 / 255
_SPECKLE_NEAR_SHARE = 0.25


@dataclass(frozen=True)
class Levels:
    """The darkest and the brightest level of each band of one frame.

    `light`: the bands that say how bright it is (all colours of RGB, Y of YCbCr). `others`: those that only say
    whether there is more than one colour (Cb, Cr). `alpha`: the opacity.
    """

    light: Sequence[Range]
    others: Sequence[Range] = ()
    alpha: Range | None = None


def find_blank(levels: Levels, settings: ResultsSettings) -> Finding | None:
    """Find whether a frame shows nothing: it is flat, black, white or transparent."""
    flat, black = settings.flat_levels, settings.black_level
    if levels.alpha is not None:
        if levels.alpha[1] <= black:
            return Finding(Fault.TRANSPARENT, "it is transparent all over", levels.alpha[1], black)
        if levels.alpha[1] - levels.alpha[0] > flat:
            return None  # a shape, whatever its colour
    darkest, brightest = min(low for low, _ in levels.light), max(high for _, high in levels.light)
    if brightest <= black:
        return Finding(Fault.BLACK, f"its brightest level is {brightest:.3g} of 255", brightest, black)
    if darkest >= 255 - flat:
        return Finding(Fault.WHITE, f"its darkest level is {darkest:.3g} of 255", darkest, 255 - flat)
    spread = max(high - low for low, high in (*levels.light, *levels.others))
    if spread <= flat:
        return Finding(Fault.FLAT, f"its colours differ by {spread:.3g} of 255 levels", spread, flat)
    return None


class Footage:
    """What frames show one after the other: how long it is blank, and whether anything moves. Constant memory."""

    def __init__(self, settings: ResultsSettings) -> None:
        self._settings = settings
        self._cells: _Extremes | None = None
        self._blocks: _Extremes | None = None
        self._first_blank: Finding | None = None
        self._compared = 0
        self._seen = 0.0
        self._blank = 0.0

    def see(self, blank: Finding | None, thumb: Thumb | None, shown: float = 1.0) -> None:
        """Take the next frame: how it is blank, if it is, and its thumbnail (see :func:`make_thumbnail`), if any.

        `shown`: for how long, in any unit, where that differs: some writers merge equal frames into one.
        """
        self._seen += shown
        if blank is not None:
            self._blank += shown
            self._first_blank = self._first_blank or blank
        if thumb is None:
            return
        self._compared += 1
        blocks = _average(thumb, _BLOCKS)
        if self._cells is None or self._blocks is None:
            self._cells, self._blocks = _Extremes(thumb), _Extremes(blocks)
        else:
            self._cells.add(thumb)
            self._blocks.add(blocks)

    @property
    def movement(self) -> float:
        """How much the frames differ, in levels, without the noise of an encoder.

        An encoder at work on a still picture changes single cells by several levels, each in its own direction, from
        one key frame to the next. Something that moves changes a cell by more, or many neighbours in the same
        direction: the larger counts of the change of a block of cells, and of a fifth of that of a single cell.
        """
        if self._cells is None or self._blocks is None:
            return 0.0
        return max(self._blocks.spread(), self._cells.spread() / _CELL_NOISE)

    def findings(self) -> Iterator[Finding]:
        """Blank first: a black video is frozen, too, but that is not what is wrong with it."""
        if not self._seen:
            return
        share = self._blank / self._seen
        if self._first_blank is not None and share > self._settings.max_blank_share:
            if self._blank == self._seen:
                yield self._first_blank
            else:
                text = f"{share:.0%} of it is blank"
                yield Finding(Fault.BLANK_FRAMES, text, round(share, 3), self._settings.max_blank_share)
        elif self._compared > 1 and self.movement <= self._settings.frozen_levels:
            text = f"its frames differ by {self.movement:.2g} of 255 levels"
            yield Finding(Fault.FROZEN, text, round(self.movement, 3), self._settings.frozen_levels)


class _Extremes:
    """The least and the most that each cell has been."""

    def __init__(self, cells: Thumb) -> None:
        self._least = cells
        self._most = cells

    def add(self, cells: Thumb) -> None:
        """A frame of another size than the first counts as a change of everything."""
        if cells.shape != self._least.shape:
            self._most = self._least + np.float32(255)
            return
        self._least = np.minimum(self._least, cells)
        self._most = np.maximum(self._most, cells)

    def spread(self) -> float:
        return float(np.max(self._most - self._least))


def make_thumbnail(grey: NDArray[Any]) -> Thumb:
    """height × width (× channels) levels, as means over a grid of at most THUMB_SIDE cells a side. Edges that fill no
    whole cell are left out."""
    return _average(grey, THUMB_SIDE)


def _average(grey: NDArray[Any], side: int) -> Thumb:
    height, width = grey.shape[:2]
    rows, columns = max(height // side, 1), max(width // side, 1)
    tall, wide = height // rows, width // columns
    cells = grey[: tall * rows, : wide * columns].reshape(tall, rows, wide, columns, *grey.shape[2:])
    means: Thumb = cells.mean(axis=(1, 3, *range(4, cells.ndim)), dtype=np.float32)
    return means


def as_array(images: Any) -> NDArray[Any]:
    """An IMAGE as a numpy view: frames × height × width × channels. A tensor on the CPU shares its memory.

    Raises:
        ValueError: it has another number of axes.
    """
    if hasattr(images, "detach"):
        images = images.detach().cpu()
        if str(getattr(images, "dtype", "")) == "torch.bfloat16":  # numpy has no such type
            images = images.float()
        images = images.numpy()
    array: NDArray[Any] = np.asarray(images)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or 0 in array.shape:
        raise ValueError(f"an image of frames × height × width × channels was expected, got {array.shape}")
    return array


@dataclass(frozen=True)
class Checks:
    """Which checks of an array are wanted, and what it should be; None: any."""

    nan: bool = True
    blank: bool = True
    speckle: bool = True
    frozen: bool = False
    width: int | None = None
    height: int | None = None
    frames: int | None = None


def check_images(images: NDArray[Any], checks: Checks, settings: ResultsSettings) -> list[Finding]:
    """The faults of a batch of pictures, each of which must be good by itself; the worst first.

    Args:
        images: frames × height × width × channels, float in 0..1; see :func:`as_array`.
    """
    return [*_check_shape(images, checks), *_check_pixels(images, checks, settings, each=True)]


def check_frames(images: NDArray[Any], checks: Checks, settings: ResultsSettings) -> list[Finding]:
    """The faults of the frames of one video, of which some may be blank (a fade); the worst first."""
    return [*_check_shape(images, checks), *_check_pixels(images, checks, settings, each=False)]


def _check_shape(images: NDArray[Any], checks: Checks) -> Iterator[Finding]:
    frames, height, width, _ = images.shape
    for name, has, wanted in (("wide", width, checks.width), ("high", height, checks.height)):
        if wanted is not None and has != wanted:
            yield Finding(Fault.WRONG_SIZE, f"it is {has} pixels {name}; {wanted} were expected", has, wanted)
    if checks.frames is not None and frames < checks.frames:
        text = f"it has {frames} frames; {checks.frames} were expected"
        yield Finding(Fault.TOO_FEW_FRAMES, text, frames, checks.frames)


def _check_pixels(images: NDArray[Any], checks: Checks, settings: ResultsSettings, *, each: bool) -> Iterator[Finding]:
    step = max(1, len(images) // SAMPLES)
    footage = Footage(settings)
    first_blank: Finding | None = None
    speckle: Finding | None = None
    for index, frame in enumerate(images):
        if checks.nan and (nan := _find_nan(frame, index)) is not None:
            yield nan
            return  # every other measure of it would be NaN
        sampled = index % step == 0 or index == len(images) - 1
        empty = (
            find_blank(_measure_levels(frame), settings) if checks.blank and _may_be_blank(frame, settings) else None
        )
        if empty is not None and first_blank is None:
            first_blank = Finding(empty.fault, empty.text, empty.measured, empty.limit, index)
        if sampled and checks.speckle and speckle is None:
            speckle = _find_speckle(frame, index)
        if checks.frozen or not each:
            # A frame that is not sampled still counts as blank or not; only its movement is not looked at.
            thumb = make_thumbnail(frame[..., :3]) * _scale(frame) if sampled and checks.frozen else None
            footage.see(empty, thumb)
    if each and first_blank is not None:
        yield first_blank
    for finding in footage.findings():
        if (finding.fault is Fault.FROZEN and checks.frozen) or (finding.fault is not Fault.FROZEN and not each):
            yield finding
    if speckle is not None:
        yield speckle


def _find_nan(frame: NDArray[Any], index: int) -> Finding | None:
    """The sum over a frame is NaN or infinite when any value is: one pass, no allocation."""
    if frame.dtype.kind != "f":
        return None
    with np.errstate(all="ignore"):
        total = frame.sum(dtype=np.float32 if frame.dtype.itemsize < 8 else np.float64)
    if np.isfinite(total):
        return None
    bad = int(frame.size - np.isfinite(frame).sum())
    if not bad:
        return None  # finite, but too large to add up
    text = f"frame {index} has {bad} values that are NaN or infinite"
    return Finding(Fault.NAN, text, bad, 0, index)


def _scale(frame: NDArray[Any]) -> float:
    return 255.0 if frame.dtype.kind == "f" else 255.0 / np.iinfo(frame.dtype).max


def _split_bands(frame: NDArray[Any]) -> tuple[list[NDArray[Any]], NDArray[Any] | None]:
    """Split height × width × channels into its colours and its alpha."""
    channels = frame.shape[-1]
    alpha = frame[..., channels - 1] if channels in (2, 4) else None
    return [frame[..., band] for band in range(min(channels, 3) if channels != 2 else 1)], alpha


def _measure_range(band: NDArray[Any], scale: float) -> Range:
    """Values outside 0..1 are cut off here, as saving cuts them off."""
    low, high = float(band.min()) * scale, float(band.max()) * scale
    return min(max(low, 0.0), 255.0), min(max(high, 0.0), 255.0)


def _measure_levels(frame: NDArray[Any]) -> Levels:
    scale = _scale(frame)
    colours, alpha = _split_bands(frame)
    return Levels(
        [_measure_range(band, scale) for band in colours],
        (),
        _measure_range(alpha, scale) if alpha is not None else None,
    )


def _may_be_blank(frame: NDArray[Any], settings: ResultsSettings) -> bool:
    """False where a few points already show something; then the whole frame need not be read."""
    height, width = frame.shape[:2]
    points = frame[:: max(height // _PROBES, 1), :: max(width // _PROBES, 1)]
    return find_blank(_measure_levels(points), settings) is not None


def _find_speckle(frame: NDArray[Any], index: int) -> Finding | None:
    """Find pixels that are exactly 0 in a channel while all four neighbours are bright in it: NaN after a conversion to
    integers. Even where half of all pixels are NaN, many of them stand alone."""
    height, width = frame.shape[:2]
    if height < 3 or width < 3:
        return None
    bright, near = (level * 255.0 / _scale(frame) for level in (_SPECKLE_NEIGHBOUR, _SPECKLE_NEAR))
    for band in _split_bands(frame)[0]:
        if band.min() != 0:
            continue
        inner = band[1:-1, 1:-1]
        alone = inner <= near
        for neighbour in (band[:-2, 1:-1], band[2:, 1:-1], band[1:-1, :-2], band[1:-1, 2:]):
            alone &= neighbour > bright
        count = int((alone & (inner == 0)).sum())
        share = count / inner.size
        if count < _SPECKLE_PIXELS or share < _SPECKLE_SHARE:
            continue
        if int(alone.sum()) - count >= _SPECKLE_NEAR_SHARE * count:
            continue
        sample = band[:: max(height // 64, 1), :: max(width // 64, 1)]
        if len(np.unique(np.round(sample * (_scale(frame))))) <= _SPECKLE_LEVELS:
            continue
        text = f"{count} single pixels of frame {index} are holes, as NaN leaves them"
        return Finding(Fault.SPECKLE, text, round(share, 6), _SPECKLE_SHARE, index)
    return None
