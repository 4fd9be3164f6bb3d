"""Pictures of the kinds that people make, and of the kinds that go wrong. All are float arrays, height × width × 3."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]
SIDE = 512


def _grid(side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    return y, x


def _grain(side: int, strength: float, seed: int = 1) -> Picture:
    return np.random.default_rng(seed).normal(0, strength, (side, side, 3)).astype(np.float32)


def _rgb(grey: NDArray[np.float32], tint: tuple[float, float, float] = (1, 1, 1)) -> Picture:
    return np.clip(grey[..., None] * np.array(tint, np.float32), 0, 1)


def _disc(side: int, y: float, x: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = _grid(side)
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def landscape(side: int = SIDE, seed: int = 1) -> Picture:
    """Sky, hills and meadow with texture."""
    y, x = _grid(side)
    hills = 0.5 + 0.08 * np.sin(x * 9) + 0.04 * np.sin(x * 23 + seed)
    sky = np.stack([0.45 + 0.3 * y, 0.6 + 0.25 * y, 0.85 + 0.1 * y], -1)
    meadow = np.stack([0.25 + 0.1 * x, 0.45 - 0.2 * (y - 0.5), 0.15 + 0 * x], -1)
    picture = np.where((y > hills)[..., None], meadow, sky).astype(np.float32)
    return np.clip(picture + _grain(side, 0.02, seed), 0, 1)


def night(side: int = SIDE) -> Picture:
    """A street at night: nearly everything under level 12, three lamps."""
    y, x = _grid(side)
    grey = 0.015 + 0.02 * y
    for lamp in (0.2, 0.5, 0.8):
        grey = grey + 0.9 * np.exp(-((x - lamp) ** 2 + (y - 0.4) ** 2) / 0.0004)
    return np.clip(_rgb(grey.astype(np.float32), (1, 0.85, 0.6)) + np.abs(_grain(side, 0.006)), 0, 1)


def stars(side: int = SIDE) -> Picture:
    """Black, with 60 stars of a pixel or two."""
    picture = np.zeros((side, side, 3), np.float32)
    random = np.random.default_rng(3)
    for row, column in random.integers(0, side - 2, (60, 2)):
        picture[row : row + 2, column] = random.uniform(0.3, 1)
    return picture


def dark_room(side: int = SIDE) -> Picture:
    """Nothing brighter than level 30."""
    y, x = _grid(side)
    return np.clip(_rgb((0.02 + 0.09 * np.exp(-((x - 0.6) ** 2 + (y - 0.5) ** 2) * 8)).astype(np.float32)), 0, 1)


def portrait_on_black(side: int = SIDE) -> Picture:
    """A dim face in front of nothing."""
    y, x = _grid(side)
    face = np.exp(-((((x - 0.5) / 0.14) ** 2 + ((y - 0.42) / 0.2) ** 2) ** 2))
    picture = _rgb((0.55 * face).astype(np.float32), (1, 0.75, 0.6))
    for eye in (0.44, 0.56):
        picture[_disc(side, 0.38, eye, 0.02)] *= 0.2
    return picture


def snow(side: int = SIDE) -> Picture:
    """A white field with the faint blue shadows of drifts, 236 to 255."""
    y, x = _grid(side)
    shade = 0.035 * (1 + np.sin(x * 7 + 3 * np.sin(y * 5)))
    return np.clip(_rgb((1 - shade).astype(np.float32)) + np.array([-0.008, -0.004, 0], np.float32), 0, 1)


def fog(side: int = SIDE) -> Picture:
    """A shore in fog, which hangs in banks: grey from 176 to 202."""
    y, x = _grid(side)
    banks = 0.015 * np.sin(x * 4 * np.pi) * np.sin(y * 5)
    grey = 0.71 + 0.06 * y + 0.02 * (np.abs(y - 0.6 - 0.02 * np.sin(x * 9)) < 0.03) + banks
    return _rgb(grey.astype(np.float32), (0.99, 1, 1.0))


def pale_sketch(side: int = SIDE) -> Picture:
    """A pencil drawing, so faint that it differs from its paper by 12 levels."""
    picture = np.full((side, side, 3), 0.97, np.float32)
    picture[_disc(side, 0.5, 0.5, 0.3) & ~_disc(side, 0.5, 0.5, 0.296)] = 0.923
    return picture


def logo_on_white(side: int = SIDE) -> Picture:
    picture = np.ones((side, side, 3), np.float32)
    picture[_disc(side, 0.5, 0.5, 0.08)] = (0.8, 0.1, 0.1)
    picture[_disc(side, 0.5, 0.5, 0.04)] = (1, 1, 1)
    return picture


def small_logo_on_white(side: int = SIDE) -> Picture:
    """8 × 8 pixels in a corner."""
    picture = np.ones((side, side, 3), np.float32)
    picture[side - 20 : side - 12, side - 20 : side - 12] = (0.1, 0.1, 0.6)
    return picture


def pixel_art(side: int = SIDE) -> Picture:
    """A 16 × 16 sprite of eight colours, enlarged; outlines and eyes are pure black."""
    random = np.random.default_rng(5)
    palette = random.uniform(0.3, 1, (8, 3)).astype(np.float32)
    palette[0] = 0
    sprite = random.integers(1, 8, (16, 8))
    sprite[::5, ::3] = 0
    sprite = np.concatenate([sprite, sprite[:, ::-1]], 1)
    return np.kron(palette[sprite], np.ones((side // 16, side // 16, 1), np.float32))


def sprite(side: int = 64) -> Picture:
    """The same at its own size: black in single pixels, 130 of them."""
    picture = np.array(pixel_art(side)[:: side // 16, :: side // 16])
    picture = np.tile(picture, (side // 16, side // 16, 1))
    picture[3::6, 3::6] = 0
    return picture


def dither(side: int = SIDE) -> Picture:
    """A landscape in black and white dots."""
    grey = landscape(side).mean(-1)
    bayer = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.float32) / 16
    return _rgb((grey > np.tile(bayer, (side // 4, side // 4))).astype(np.float32))


def qr_code(side: int = SIDE) -> Picture:
    cells = np.random.default_rng(7).integers(0, 2, (32, 32)).astype(np.float32)
    return _rgb(np.kron(cells, np.ones((side // 32, side // 32), np.float32)))


def pepper(side: int = SIDE) -> Picture:
    """A salad with pepper on it: black grains, each a few pixels wide with soft edges."""
    picture = landscape(side, 4) * 0.5 + 0.4
    for row, column in np.random.default_rng(9).integers(4, side - 6, (120, 2)):
        picture[row - 1 : row + 3, column - 1 : column + 3] *= 0.5
        picture[row : row + 2, column : column + 2] = 0
    return picture.astype(np.float32)


def flat(level: tuple[float, float, float], side: int = SIDE) -> Picture:
    return np.broadcast_to(np.array(level, np.float32), (side, side, 3)).copy()


def nearly_flat(side: int = SIDE) -> Picture:
    """One grey with a level of dither: what an encoder, or a VAE given nothing, makes of it."""
    return np.clip(flat((0.5, 0.5, 0.5), side) + _grain(side, 0.002).clip(-0.004, 0.004), 0, 1)


def nearly_black(side: int = SIDE) -> Picture:
    """Noise up to level 6."""
    return np.random.default_rng(2).uniform(0, 6 / 255, (side, side, 3)).astype(np.float32)


def with_decoded_nan(picture: Picture, share: float, seed: int = 1) -> Picture:
    """What a save of NaN leaves: that share of the values is 0, scattered."""
    broken = picture.copy()
    broken[np.random.default_rng(seed).uniform(size=picture.shape[:2]) < share] = 0
    return broken


#: Legitimate pictures. None of them may be refused.
GOOD = {
    "landscape": landscape,
    "night": night,
    "stars": stars,
    "dark_room": dark_room,
    "portrait_on_black": portrait_on_black,
    "snow": snow,
    "fog": fog,
    "pale_sketch": pale_sketch,
    "logo_on_white": logo_on_white,
    "small_logo_on_white": small_logo_on_white,
    "pixel_art": pixel_art,
    "dither": dither,
    "qr_code": qr_code,
    "pepper": pepper,
}


# Films: frames one after the other. --------------------------------------------------------------------------

Film = Iterator[Picture]


def talking_head(frames: int = 375, side: int = SIDE) -> Film:
    """A calm portrait: the mouth moves a little, the eyes close for four frames every three seconds."""
    y, x = _grid(side)
    base = np.stack([0.35 + 0.05 * y, 0.38 + 0.05 * x, 0.42 + 0 * x], -1).astype(np.float32)
    face = np.exp(-((((x - 0.5) / 0.17) ** 2 + ((y - 0.45) / 0.24) ** 2) ** 3))[..., None]
    base = base * (1 - face) + face * np.array([0.8, 0.62, 0.52], np.float32)
    base = np.clip(base + _grain(side, 0.01), 0, 1)
    for eye in (0.43, 0.57):
        base[_disc(side, 0.4, eye, 0.022)] = (0.15, 0.12, 0.1)
    for index in range(frames):
        frame = base.copy()
        opening = 0.006 + 0.006 * (1 + np.sin(index * 0.9)) * (index % 50 < 30)
        mouth = ((x - 0.5) / 0.05) ** 2 + ((y - 0.56) / opening) ** 2 < 1
        frame[mouth] = (0.35, 0.12, 0.12)
        if index % 75 < 4:
            for eye in (0.43, 0.57):
                frame[_disc(side, 0.4, eye, 0.022)] = (0.72, 0.55, 0.46)
        yield frame


def small_motion(frames: int = 100, side: int = SIDE) -> Film:
    """A camera that stands still: in all of a landscape, a boat of 10 × 5 pixels drifts by half a pixel a frame."""
    still = landscape(side)
    for index in range(frames):
        frame = still.copy()
        column = side // 4 + index // 2
        frame[side // 3 : side // 3 + 5, column : column + 10] = (0.9, 0.9, 0.85)
        yield frame


def breathing(frames: int = 75, side: int = SIDE) -> Film:
    """A still in which nothing moves but the light: 4 levels up and down over three seconds."""
    still = landscape(side)
    for index in range(frames):
        yield np.clip(still + np.float32(2 / 255 * np.sin(index * 2 * np.pi / frames)), 0, 1)


def pan(picture: Picture, frames: int = 50) -> Film:
    for index in range(frames):
        yield np.roll(picture, 2 * index, axis=1)


def fade_in(frames: int = 75, side: int = 256) -> Film:
    """A second of black, and then a picture comes up and moves."""
    for index, frame in enumerate(pan(landscape(side), frames)):
        yield frame * np.float32(min(max((index - 25) / 25, 0), 1))


def frozen(frames: int = 100, side: int = SIDE) -> Film:
    still = landscape(side)
    for _ in range(frames):
        yield still


def breaks_off(frames: int = 75, side: int = 256) -> Film:
    """NaN from a quarter of the way on: black to the end."""
    for index, frame in enumerate(pan(landscape(side), frames)):
        yield frame if index < frames // 4 else np.zeros_like(frame)


def still_of(picture: Picture, frames: int = 50) -> Film:
    for _ in range(frames):
        yield picture
